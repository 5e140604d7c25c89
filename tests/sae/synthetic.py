"""Activations with a known sparse structure."""

from dataclasses import replace

import torch

from fluxscope.sae.architecture import Architecture
from fluxscope.sae.table import K, named


def activations(n: int, seed: int, scale: float = 7.0) -> torch.Tensor:
    """Sums of three of 24 directions, far from the origin and far from unit size."""
    directions = torch.nn.functional.normalize(
        torch.randn(24, 16, generator=torch.Generator().manual_seed(99)), dim=1
    )
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(n, 24, generator=generator).argsort(1)[:, :3]
    strength = 1 + torch.rand(n, 3, generator=generator)
    code = torch.zeros(n, 24).scatter(1, chosen, strength)
    return scale * (code @ directions) + 50


def settings(name: str, k: int) -> Architecture:
    """An architecture's settings as they are by default, but for k where it has one."""
    entry = named(name)
    chosen = entry.load()()
    return replace(chosen, k=k) if entry.sparsity is K else chosen
