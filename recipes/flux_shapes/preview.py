"""Looks at a transformer in training: draws test captions, lets the oracle judge, keeps a sample sheet."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from fluxscope.files import append_jsonl, save_image
from fluxscope.shapes import oracle, world
from recipes.flux_shapes import data
from recipes.flux_shapes.settings import RecipeSettings
from recipes.flux_shapes.transformer import build_transformer, velocity
from recipes.flux_shapes.words import TextEncoders, Words

_STEPS = 20
_SEED = 900  # of the captions: test scenes only, so none of them is trained on


@dataclass(frozen=True)
class Preview:
    """What previews need. The autoencoder has its normalisation folded in."""

    work: Path
    settings: RecipeSettings
    encoders: TextEncoders
    vae: AutoencoderKL
    pictures: int = 32

    def look(self, name: str, weights: dict[str, Tensor], guidance: float, classifier_free: bool) -> float:
        """Draw and judge with these weights; returns the share of pictures with everything right.

        Args:
            name: of the sheet, `<name>_samples.png`, and of the log, `<name>_fidelity.jsonl`.
            weights: a transformer's state; its depth is read off it.
            guidance: its scale.
            classifier_free: two forwards a step, for weights that have no distilled guidance yet.
        """
        examples = [data.example(_SEED, i, split="test") for i in range(self.pictures)]
        texts = [world.caption(e.scene) for e in examples]
        images = self.draw(weights, texts, guidance, classifier_free)
        judged = [oracle.judge(e.scene, image) for e, image in zip(examples, images, strict=True)]
        shares = {
            key: float(np.mean([getattr(j, key) for j in judged if getattr(j, key) is not None]))
            for key in ("all_right", "background", "count", "shape", "color", "size", "relation", "iou")
        }
        print(f"{name} at guidance {guidance}: ", {k: round(v, 3) for k, v in shares.items()}, flush=True)
        append_jsonl(self.work / f"{name}_fidelity.jsonl", {"guidance": guidance, **shares})
        save_image(self.work / f"{name}_samples.png", sheet(images))
        return shares["all_right"]

    @torch.no_grad()
    def draw(
        self, weights: dict[str, Tensor], texts: list[str], guidance: float, classifier_free: bool
    ) -> UInt8[np.ndarray, "b h w 3"]:
        """Pictures of these captions, seeds 0, 1, 2, ..., by 20 Euler steps."""
        model = build_transformer(self.settings, *_depth(weights))
        model.load_state_dict(weights)
        model.eval()
        length = self.settings.sequence_length
        words, nothing = (self.encoders.from_texts(t, length) for t in (texts, [""] * len(texts)))
        tokens, channels = (world.RESOLUTION // 16) ** 2, 4 * self.settings.autoencoder.latent_channels
        noise = [
            torch.randn(tokens, channels, generator=torch.Generator().manual_seed(i))
            for i in range(len(texts))
        ]
        latents = torch.stack(noise)
        times = torch.linspace(1, 0, _STEPS + 1)
        for now, then in pairwise(times):
            step = _guided if classifier_free else _embedded
            latents = latents + (then - now) * step(model, latents, now, words, nothing, guidance)
        return data.to_images(self.vae.decode(unpack(latents)).sample)


def _embedded(
    model: torch.nn.Module, latents: Tensor, now: Tensor, words: Words, nothing: Words, guidance: float
) -> Tensor:
    n = len(latents)
    return velocity(model, latents, now.expand(n), words, torch.full((n,), guidance))


def _guided(
    model: torch.nn.Module, latents: Tensor, now: Tensor, words: Words, nothing: Words, guidance: float
) -> Tensor:
    with_words = _embedded(model, latents, now, words, nothing, 1.0)
    without = _embedded(model, latents, now, nothing, nothing, 1.0)
    return without + guidance * (with_words - without)


def _depth(weights: dict[str, Tensor]) -> tuple[int, int]:
    def count(stack: str) -> int:
        return len({name.split(".")[1] for name in weights if name.startswith(stack + ".")})

    return count("transformer_blocks"), count("single_transformer_blocks")


def unpack(packed: Float[Tensor, "b t c4"]) -> Float[Tensor, "b c h w"]:
    """Tokens back to latent pixels: the inverse of `latents.pack`."""
    b, t, c4 = packed.shape
    side = round(t**0.5)
    squares = packed.view(b, side, side, c4 // 4, 2, 2)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(b, c4 // 4, 2 * side, 2 * side)  # b c h w


def sheet(images: UInt8[np.ndarray, "b h w 3"], columns: int = 8) -> Image.Image:
    """Pictures in rows."""
    rows = [
        np.concatenate(list(images[i : i + columns]), axis=1)
        for i in range(0, len(images) - columns + 1, columns)
    ]
    return Image.fromarray(np.concatenate(rows))
