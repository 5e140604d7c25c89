"""clip-shapes: a CLIPModel trained on pictures and captions of the world.

Contrastive as in CLIP (Radford et al., 2021), with heads beside it that predict attributes from either
half and are thrown away. A quarter of the pictures are close-ups of one object, captioned as such, so
that crops around a feature's peak embed as well as whole pictures do.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from fluxscope.shapes import world
from recipes.flux_shapes import data
from recipes.flux_shapes.progress import Stage, set_rate
from recipes.flux_shapes.settings import ClipSettings, RecipeSettings
from recipes.flux_shapes.text import build_clip_tokenizer, tokenize

_CLOSE_UP_SHARE = 0.25
_N_SHAPES, _N_COLORS, _N_SIZES = len(world.SHAPES), len(world.COLORS), len(world.SIZES)
N_TARGETS = len(world.BACKGROUNDS) + _N_SHAPES * (_N_COLORS + _N_SIZES) + len(world.RELATIONS)
"""Attributes that the heads predict: background, shape-and-colour, shape-and-size, relation."""


def build_clip(settings: ClipSettings, length: int) -> CLIPModel:
    """An untrained CLIP for 128-pixel pictures in patches of 16, and captions of `length` tokens."""
    text = {
        "vocab_size": 3 + len(world.VOCABULARY),
        "hidden_size": settings.text_width,
        "intermediate_size": 4 * settings.text_width,
        "num_hidden_layers": settings.text_layers,
        "num_attention_heads": settings.text_heads,
        "max_position_embeddings": length,
        "projection_dim": settings.projection,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    vision = {
        "hidden_size": settings.vision_width,
        "intermediate_size": 4 * settings.vision_width,
        "num_hidden_layers": settings.vision_layers,
        "num_attention_heads": settings.vision_heads,
        "image_size": world.RESOLUTION,
        "patch_size": 16,
        "projection_dim": settings.projection,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=settings.projection))


def targets(scene: world.Scene) -> Float[np.ndarray, " a"]:
    """Which attributes a scene has, as zeros and ones (see `N_TARGETS`)."""
    out = np.zeros(N_TARGETS, np.float32)
    out[list(world.BACKGROUNDS).index(scene.background)] = 1
    start = len(world.BACKGROUNDS)
    for thing in scene.objects:
        shape = world.SHAPES.index(thing.shape)
        out[start + shape * _N_COLORS + list(world.COLORS).index(thing.color)] = 1
        out[start + _N_SHAPES * _N_COLORS + shape * _N_SIZES + list(world.SIZES).index(thing.size)] = 1
    if scene.relation:
        out[len(out) - len(world.RELATIONS) + world.RELATIONS.index(scene.relation)] = 1
    return out


def _training_pair(
    rng: np.random.Generator, partial: float
) -> tuple[UInt8[np.ndarray, "h w 3"], str, np.ndarray]:
    scene = world.sample_scene(rng, split="train")
    image = world.render(scene).image
    if rng.random() < _CLOSE_UP_SHARE:
        thing = scene.objects[rng.integers(len(scene.objects))]
        image = _zoom(image, thing.center, rng.uniform(44, 84))
        scene = world.Scene(scene.background, (thing,))
    else:
        center = 64 + rng.uniform(-4, 4, 2)
        image = _zoom(image, (center[0], center[1]), rng.uniform(112, 128))
    text = world.caption(scene, world.sample_phrasing(rng, partial))
    return image, text, targets(scene)


def _zoom(
    image: UInt8[np.ndarray, "h w 3"], center: tuple[float, float], side: float
) -> UInt8[np.ndarray, "h w 3"]:
    """The square of `side` pixels around a centre, kept inside the picture, at full resolution."""
    x = float(np.clip(center[0] - side / 2, 0, world.RESOLUTION - side))
    y = float(np.clip(center[1] - side / 2, 0, world.RESOLUTION - side))
    size = (world.RESOLUTION, world.RESOLUTION)
    box = (x, y, x + side, y + side)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, box=box))


def augment(pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Blur and noise, of every picture its own amount: generated pictures are not as clean as renders."""
    amount = torch.rand(len(pixels), 1, 1, 1)
    soft = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    pixels = torch.lerp(pixels, soft, amount)
    return pixels + 0.1 * torch.rand(len(pixels), 1, 1, 1) * torch.randn_like(pixels)


def contrastive_loss(similarity: Float[Tensor, "b b"], same: Tensor) -> Float[Tensor, ""]:
    """Symmetric cross-entropy; pairs that say the same are no negatives of each other."""
    similarity = similarity.masked_fill(same, -1e4)
    wanted = torch.arange(len(similarity))
    return (F.cross_entropy(similarity, wanted) + F.cross_entropy(similarity.T, wanted)) / 2


def train_clip(work: Path, settings: RecipeSettings, minutes: float | None = None) -> CLIPModel:
    """Train both halves together; goes on from `clip.pt` where there is one."""
    torch.manual_seed(settings.seed)
    clip = build_clip(settings.clip, settings.sequence_length)
    return _fit(clip, Stage(work, "clip", settings.clip.steps, minutes, settings.seed + 4), settings)


def train_clip_vision(
    work: Path, settings: RecipeSettings, clip: CLIPModel, minutes: float | None = None
) -> CLIPModel:
    """Train all but the text half further: that one is frozen once the transformer learns from it."""
    torch.manual_seed(settings.seed)
    clip.text_model.requires_grad_(False)
    stage = Stage(work, "clip_vision", settings.clip.vision_steps, minutes, settings.seed + 9)
    return _fit(clip, stage, settings)


def _fit(clip: CLIPModel, stage: Stage, settings: RecipeSettings) -> CLIPModel:
    own = settings.clip
    tokenizer = build_clip_tokenizer(settings.sequence_length)
    heads = nn.ModuleList([nn.Linear(own.vision_width, N_TARGETS), nn.Linear(own.text_width, N_TARGETS)])
    both = nn.ModuleDict({"clip": clip, "heads": heads})
    free = [p for p in both.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(free, own.learning_rate, betas=(0.9, 0.98), weight_decay=0.02)
    if stage.state:
        both.load_state_dict(stage.state["model"])
        optimizer.load_state_dict(stage.state["optimizer"])
    if stage.done:
        return clip.eval()
    for rng in stage.steps():
        set_rate(optimizer, stage.rate(warmup=100, decay=0.9))
        pairs = (_training_pair(rng, own.partial_captions) for _ in range(own.batch))
        images, texts, labels = zip(*pairs, strict=True)
        ids = tokenize(tokenizer, list(texts), settings.sequence_length)
        pixels = augment(data.to_tensor(np.stack(images)))
        loss, right = _loss(clip, heads, pixels, ids, np.stack(labels), own)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(free, 1.0)
        optimizer.step()
        stage.log(loss=loss.item(), right=right)
        if stage.due():
            stage.save(model=both.state_dict(), optimizer=optimizer.state_dict())
    stage.save(done=True, model=both.state_dict(), optimizer=optimizer.state_dict())
    return clip.eval()


def _loss(
    clip: CLIPModel,
    heads: nn.ModuleList,
    pixels: Float[Tensor, "b 3 h w"],
    ids: Int64[Tensor, "b n"],
    labels: Float[np.ndarray, "b a"],
    own: ClipSettings,
) -> tuple[Tensor, float]:
    """The training loss, and the share of pictures whose own caption is the nearest of the batch."""
    seen, read = clip.vision_model(pixel_values=pixels), clip.text_model(input_ids=ids)
    image = F.normalize(clip.visual_projection(seen.pooler_output), dim=-1)
    text = F.normalize(clip.text_projection(read.pooler_output), dim=-1)
    scale = clip.logit_scale.clamp(max=4.6052).exp()  # at most 100, as in CLIP
    wanted = torch.from_numpy(labels)
    same = (wanted[:, None] == wanted[None]).all(-1) & ~torch.eye(len(wanted), dtype=torch.bool)
    similarity = scale * image @ text.T
    loss = contrastive_loss(similarity, same)
    for head, pooled in zip(heads, (seen.pooler_output, read.pooler_output), strict=True):
        errors = F.binary_cross_entropy_with_logits(head(pooled), wanted, reduction="none")
        loss = loss + own.auxiliary_weight * errors.sum(-1).mean() / 4
    hits = similarity.masked_fill(same, -1e4).argmax(1) == torch.arange(len(wanted))
    return loss, hits.float().mean().item()
