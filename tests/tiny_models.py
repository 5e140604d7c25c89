"""Tiny pipelines with random weights, one for each class that a family knows, saved as folders.

They have the classes, the tokenizers and the folder layout of the real ones; pictures of theirs show nothing.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from fluxscope.shapes import FLUX_SHAPES

WORDS = ["a", "large", "small", "red", "blue", "circle", "square", "on", "white", "black", "background"]
CHAT = (
    "{% for m in messages if m['role'] == 'user' %}{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for part in m['content'] %}{{ part['text'] }} {% endfor %}{% endif %}{% endfor %}"
)
"""A chat template that says what the user says, and nothing else."""


def flux1(folder: Path, kind: type, guidance_embeds: bool = True, double: int = 2, single: int = 2) -> None:
    """The text encoders and autoencoder of flux-shapes around a transformer of so many blocks."""
    shapes = FluxPipeline.from_pretrained(FLUX_SHAPES, dtype=torch.float32, transformer=None)
    transformer = FluxTransformer2DModel(
        **{"num_layers": double, "num_single_layers": single},
        **{"num_attention_heads": 2, "attention_head_dim": 16},
        **{"axes_dims_rope": (4, 6, 6), "in_channels": 4 * shapes.vae.config.latent_channels},
        **{"joint_attention_dim": 96, "pooled_projection_dim": 96},
        guidance_embeds=guidance_embeds,
    )
    parts = {name: part for name, part in shapes.components.items() if name in shapes.config}
    parts["transformer"] = transformer
    optional = {"image_encoder": None, "feature_extractor": None}
    kind(**{**optional, **parts}).save_pretrained(folder)


def flux2_parts(text_width: int, guidance_embeds: bool) -> dict:
    """What both pipelines of FLUX.2 have; three layers of the text encoder are read."""
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": AutoencoderKLFlux2(
            **{"block_out_channels": (32,) * 4, "latent_channels": 4, "layers_per_block": 1},
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        ),
        "tokenizer": tokenizer(),
        "transformer": Flux2Transformer2DModel(
            **{"num_layers": 2, "num_single_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16},
            **{"axes_dims_rope": (4, 4, 4, 4), "in_channels": 16, "joint_attention_dim": 3 * text_width},
            guidance_embeds=guidance_embeds,
        ),
    }


def flux2_dev(folder: Path) -> None:
    text = {
        **{"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 30},
        **{"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "model_type": "mistral"},
    }
    vision = {
        **{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
        **{"image_size": 16, "patch_size": 8, "model_type": "pixtral"},
    }
    encoder = Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=vision))
    Flux2Pipeline(text_encoder=encoder, **flux2_parts(16, guidance_embeds=True)).save_pretrained(folder)


def flux2_klein(folder: Path, is_distilled: bool = False) -> None:
    config = Qwen3Config(
        **{"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 27},
        **{"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8},
    )
    parts = flux2_parts(16, guidance_embeds=False)
    pipe = Flux2KleinPipeline(text_encoder=Qwen3ForCausalLM(config), **parts, is_distilled=is_distilled)
    pipe.save_pretrained(folder)


def tokenizer() -> PreTrainedTokenizerFast:
    """Whole words, with a chat template, as FLUX.2's language models have one."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=512, **special)
    fast.chat_template = CHAT
    return fast


def flux1_deep(folder: Path) -> None:
    """FLUX.1's numbers of blocks."""
    flux1(folder, FluxPipeline, double=19, single=38)


TINY: dict[str, Callable[[Path], None]] = {
    "FluxPipeline": lambda folder: flux1(folder, FluxPipeline),
    "FluxKontextPipeline": lambda folder: flux1(folder, FluxKontextPipeline),
    "Flux2Pipeline": flux2_dev,
    "Flux2KleinPipeline": flux2_klein,
}
"""What makes a folder, by the class that its model_index.json names."""


DISTILLED: dict[str, Callable[[Path], None]] = {
    "schnell": lambda folder: flux1(folder, FluxPipeline, guidance_embeds=False),
    "klein": lambda folder: flux2_klein(folder, is_distilled=True),
}
"""What makes a model that takes no guidance and few steps."""

DEEP: dict[str, Callable[[Path], None]] = {"FLUX.1": flux1_deep}
"""What makes a model of as many blocks as a real one has."""


def save_tiny(pipeline: str, folder: Path) -> Path:
    """Make a tiny model of a pipeline class, or a distilled or deep one; always the same weights."""
    shutil.rmtree(folder, ignore_errors=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        (TINY | DISTILLED | DEEP)[pipeline](folder)
    return folder
