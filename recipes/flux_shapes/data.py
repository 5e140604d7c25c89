"""Training pictures and captions, each a function of a seed and its number: nothing is stored.

`example(seed, 17)` is the same scene, wording and picture on every machine, so a stage that is killed
and goes on sees exactly the data it would have seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fluxscope.shapes import world


@dataclass(frozen=True)
class Example:
    """A training scene and its words."""

    scene: world.Scene
    caption: str


def example(seed: int, number: int, split: world.Split = "train") -> Example:
    """The scene and caption of this number; the seed separates one stage's data from another's."""
    rng = np.random.default_rng((seed, number))
    scene = world.sample_scene(rng, split=split)
    return Example(scene, world.caption(scene, world.sample_phrasing(rng)))


def pictures(examples: Iterable[Example]) -> UInt8[np.ndarray, "b h w 3"]:
    """The rendered pictures of some examples."""
    return np.stack([world.render(e.scene).image for e in examples])


def to_tensor(images: UInt8[np.ndarray, "b h w 3"]) -> Float[Tensor, "b 3 h w"]:
    """Pictures as diffusers takes them: channels first, -1 to 1."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(tensor: Float[Tensor, "b 3 h w"]) -> UInt8[np.ndarray, "b h w 3"]:
    """The inverse of `to_tensor`, clipped to what pixels can hold."""
    pixels = ((tensor.float() + 1) * 127.5).clamp(0, 255).round()
    return pixels.permute(0, 2, 3, 1).to(torch.uint8).numpy()
