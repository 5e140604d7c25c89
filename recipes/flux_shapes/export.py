"""The trained parts as the folders that users load: a FluxPipeline and a CLIPModel, in bf16."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from jaxtyping import Float
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTextModel, T5EncoderModel

from recipes.flux_shapes.text import build_clip_tokenizer, build_t5_tokenizer


@torch.no_grad()
def fold_normalisation(
    vae: AutoencoderKL, mean: Float[np.ndarray, " c"], std: Float[np.ndarray, " c"]
) -> AutoencoderKL:
    """Move the latents' normalisation, channel by channel, into the 1 x 1 convolutions around them.

    Afterwards the encoder's latents have mean 0 and standard deviation 1 in every channel, the decoder
    takes such latents, and scaling_factor 1 with shift_factor 0 is exact.
    """
    m, s = torch.from_numpy(mean).float(), torch.from_numpy(std).float()
    channels = len(m)
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:channels] /= s[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - m) / s
    quant.bias[channels:] -= 2 * s.log()  # the log-variance scales with it
    post.bias += (post.weight[:, :, 0, 0] * m).sum(1)
    post.weight *= s[None, :, None, None]
    return vae


def export_flux(
    out: Path,
    transformer: FluxTransformer2DModel,
    vae: AutoencoderKL,
    t5: T5EncoderModel,
    clip: CLIPModel,
    length: int,
) -> None:
    """Write the FluxPipeline folder. The autoencoder must have its normalisation folded in."""
    text_encoder = CLIPTextModel(clip.config.text_config)
    text_encoder.load_state_dict(clip.text_model.state_dict())
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=build_clip_tokenizer(length),
        text_encoder_2=t5,
        tokenizer_2=build_t5_tokenizer(length),
        transformer=transformer,
    ).to(torch.bfloat16)
    _replace_folder(out, lambda folder: pipeline.save_pretrained(folder, safe_serialization=True))


def export_clip(out: Path, clip: CLIPModel, length: int) -> None:
    """Write the CLIPModel folder with its processor."""
    size = clip.config.vision_config.image_size
    processor = CLIPProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": size},
            crop_size={"height": size, "width": size},
            image_mean=[0.5, 0.5, 0.5],
            image_std=[0.5, 0.5, 0.5],
        ),
        tokenizer=build_clip_tokenizer(length),
    )

    def write(folder: Path) -> None:
        clip.to(torch.bfloat16).save_pretrained(folder, safe_serialization=True)
        processor.save_pretrained(folder)

    _replace_folder(out, write)


def _replace_folder(out: Path, write: Callable[[Path], None]) -> None:
    """Write a folder beside its place and rename it over the old one, so that readers see a whole one."""
    fresh, old = (out.with_name(f".{out.name}.{suffix}.{os.getpid()}") for suffix in ("new", "old"))
    fresh.mkdir(parents=True)
    write(fresh)
    if out.exists():
        out.rename(old)
    fresh.rename(out)
    shutil.rmtree(old, ignore_errors=True)
