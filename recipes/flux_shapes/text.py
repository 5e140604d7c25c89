"""Words for the model: both tokenizers, and the T5 encoder trained on parsing captions.

The encoder learns to tell, from every token of an object's phrase, that object's shape, colour, size and
side, and from every token the background. Frozen afterwards, like FLUX's, it hands the transformer an
already understood sentence: that, more than anything, is what makes relations come out right.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from fluxscope.shapes import world
from recipes.flux_shapes.progress import Stage, set_rate
from recipes.flux_shapes.settings import RecipeSettings, TextSettings

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
ATTRIBUTES = (len(world.SHAPES), len(world.COLORS), len(world.SIZES), 1 + len(world.RELATIONS))
"""Classes of the per-token labels: shape, colour, size, side (0: the caption states no relation)."""

_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_STRANGE = "strange"  # any word that the vocabulary does not have


def _word_tokenizer(special: tuple[str, str, str], template: str) -> Tokenizer:
    """Whole words and commas, lower-cased; all else is dropped, unknown words become the unknown token."""
    ids = {word: i for i, word in enumerate((*special, *world.VOCABULARY))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    pattern = Regex(r"[\p{L}\p{N}]+|,")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(token, ids[token]) for token in special[:2]]
    )
    return tokenizer


def build_t5_tokenizer(length: int) -> PreTrainedTokenizerFast:
    """T5's manner: ids pad 0, end 1, unknown 2; the end token after the words."""
    return PreTrainedTokenizerFast(
        tokenizer_object=_word_tokenizer((PAD, END, UNKNOWN), f"$A {END}"),
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=length,
    )


def build_clip_tokenizer(length: int) -> PreTrainedTokenizerFast:
    """CLIP's manner: start and end tokens around the words, padded with the end token."""
    return PreTrainedTokenizerFast(
        tokenizer_object=_word_tokenizer((CLIP_START, CLIP_END, UNKNOWN), f"{CLIP_START} $A {CLIP_END}"),
        bos_token=CLIP_START,
        eos_token=CLIP_END,
        pad_token=CLIP_END,
        unk_token=UNKNOWN,
        model_max_length=length,
    )


def tokenize(tokenizer: PreTrainedTokenizerFast, texts: list[str], length: int) -> Int64[Tensor, "b n"]:
    """Token ids exactly as FluxPipeline makes them."""
    return tokenizer(
        texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids


def build_t5(settings: TextSettings) -> T5EncoderModel:
    """An untrained T5 encoder over the vocabulary."""
    return T5EncoderModel(
        T5Config(
            vocab_size=3 + len(world.VOCABULARY),
            d_model=settings.width,
            d_kv=settings.head_width,
            d_ff=settings.ff_width,
            num_layers=settings.layers,
            num_heads=settings.heads,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
            is_encoder_decoder=False,
            tie_word_embeddings=False,
        )
    )


def perturb(caption: str, rng: np.random.Generator) -> str:
    """Put one to three unknown words between the words of a caption, or in place of harmless ones."""
    words = world.split_words(caption)
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(len(words) + 1))
        if place < len(words) and words[place] in ("a", "picture", ",") and rng.random() < 0.5:
            words[place] = _STRANGE
        else:
            words.insert(place, _STRANGE)
    return " ".join(words)


def token_labels(caption: str, length: int) -> tuple[Int64[np.ndarray, "n 4"], int]:
    """What each token should tell (shape, colour, size, side), and the caption's background; -1: nothing."""
    said = world.parse_caption(caption)
    labels = np.full((length, 4), -1, np.int64)
    for i, thing in enumerate(said.objects[:2]):
        relation = said.relation if i == 0 or said.relation is None else _OPPOSITE[said.relation]
        labels[thing.start : thing.stop] = (
            world.SHAPES.index(thing.shape),
            list(world.COLORS).index(thing.color),
            -1 if thing.size is None else list(world.SIZES).index(thing.size),
            0 if relation is None else 1 + world.RELATIONS.index(relation),
        )
    background = -1 if said.background is None else list(world.BACKGROUNDS).index(said.background)
    return labels, background


def _caption_batch(
    settings: RecipeSettings, tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator
) -> tuple[Int64[Tensor, "b n"], Int64[Tensor, "b n 4"], Int64[Tensor, " b"]]:
    own, length = settings.text, settings.sequence_length
    captions = []
    for _ in range(own.batch):
        scene = world.sample_scene(rng, split="train")
        text = world.caption(scene, world.sample_phrasing(rng))
        captions.append(perturb(text, rng) if rng.random() < own.unknown_words else text)
    labels = [token_labels(text, length) for text in captions]
    tokens = torch.from_numpy(np.stack([tags for tags, _ in labels]))
    backgrounds = torch.tensor([background for _, background in labels])
    return tokenize(tokenizer, captions, length), tokens, backgrounds


def parsing_loss(
    states: Float[Tensor, "b n d"],
    heads: nn.ModuleList,
    labels: Int64[Tensor, "b n 4"],
    background: Int64[Tensor, " b"],
    real: Tensor,
) -> tuple[Float[Tensor, ""], float]:
    """Cross-entropy of all labels, and the share of tokens whose labels are all right."""
    loss, right = states.new_zeros(()), torch.ones_like(labels[..., 0], dtype=torch.bool)
    for i in range(4):
        scores, wanted = heads[i](states), labels[..., i]
        loss = loss + F.cross_entropy(scores.flatten(0, 1), wanted.flatten(), ignore_index=-1)
        right &= (scores.argmax(-1) == wanted) | (wanted < 0)
    everywhere = torch.where(real, background[:, None], -1)  # pads need not tell
    scores = heads[4](states)
    loss = loss + F.cross_entropy(scores.flatten(0, 1), everywhere.flatten(), ignore_index=-1)
    right &= (scores.argmax(-1) == everywhere) | (everywhere < 0)
    return loss, right[real].float().mean().item()


def train_text(work: Path, settings: RecipeSettings, minutes: float | None = None) -> T5EncoderModel:
    """Train the T5 encoder on parsing captions; goes on from `text.pt` where there is one."""
    own = settings.text
    torch.manual_seed(settings.seed)
    tokenizer = build_t5_tokenizer(settings.sequence_length)
    encoder = build_t5(own)
    heads = nn.ModuleList(nn.Linear(own.width, n) for n in (*ATTRIBUTES, len(world.BACKGROUNDS)))
    both = nn.ModuleDict({"encoder": encoder, "heads": heads})
    optimizer = torch.optim.AdamW(both.parameters(), own.learning_rate, weight_decay=0.01)
    stage = Stage(work, "text", own.steps, minutes, settings.seed + 3)
    if stage.state:
        both.load_state_dict(stage.state["model"])
        optimizer.load_state_dict(stage.state["optimizer"])
    if stage.done:
        return encoder.eval()
    for rng in stage.steps():
        set_rate(optimizer, stage.rate(warmup=100, decay=0.9))
        ids, labels, background = _caption_batch(settings, tokenizer, rng)
        states = encoder(input_ids=ids).last_hidden_state
        loss, right = parsing_loss(states, heads, labels, background, ids != tokenizer.pad_token_id)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        stage.log(loss=loss.item(), right=right)
        if stage.due():
            stage.save(model=both.state_dict(), optimizer=optimizer.state_dict())
    stage.save(done=True, model=both.state_dict(), optimizer=optimizer.state_dict())
    return encoder.eval()
