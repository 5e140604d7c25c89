"""What an SAE architecture says of itself: its settings, and what is its own in building and training.

An architecture's file holds the SAE, a `LinearSae`: how it encodes, what a checkpoint's config says of it,
what its parameters must obey, whether it is calibrated. Beside it stand its settings, a frozen dataclass that
is an `Architecture`: `TopK(k=16)`, `ReLU(l1_coeff=0.15)`. All else of training is `train.Trainer`'s.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from fluxscope.fields import Checked
from fluxscope.sae.base import LinearSae
from fluxscope.sae.largest import Scratch

_HIGHEST_LR = 4e-3


@dataclass(frozen=True, eq=False)
class Moment:
    """Where a training stands.

    Args:
        step: of the optimiser, counted from 0.
        steps: how many there will be.
        dead: the latents that have been silent for long.
    """

    step: int
    steps: int
    dead: Bool[Tensor, " f"]


@dataclass(frozen=True, eq=False)
class StepResult:
    """What one batch gave, beside the gradients.

    Args:
        residual: x - reconstruction.
        fired: on how many tokens each latent fired.
    """

    loss: Float[Tensor, ""]
    residual: Float[Tensor, "b d"]
    fired: Tensor


@dataclass(frozen=True)
class Architecture(Checked, ABC):
    """Settings of one architecture, and how it is trained with them. Its sparsity stands in `table`."""

    sae: ClassVar[type[LinearSae]]

    @property
    def name(self) -> str:
        """As users and checkpoints name it."""
        return self.sae.architecture

    @abstractmethod
    def build(self, input_dim: int, hidden_dim: int) -> LinearSae:
        """A fresh SAE."""

    @abstractmethod
    def gradients(
        self, sae: LinearSae, x: Float[Tensor, "b d"], moment: Moment, scratch: Scratch
    ) -> StepResult:
        """Fill the gradients of the parameters with those of the loss of one batch.

        Args:
            sae: one that `build` made.
            x: normalised activations.
            scratch: buffers kept from step to step.
        """

    def check(self, hidden_dim: int) -> None:
        """Raises FluxscopeError for settings that cannot be with so many features."""

    def peak_lr(self, hidden_dim: int) -> float:
        """The highest learning rate, where none is set.

        1e-3 x sqrt(12,288 / f), at most 4e-3: four times the scaling law of Gao et al. 2024
        (arXiv 2406.04093), since runs here are of millions of tokens, not billions (measured in
        docs/sae-training.md).
        """
        return min(1e-3 * math.sqrt(12288 / hidden_dim), _HIGHEST_LR)

    def revive(
        self,
        sae: LinearSae,
        x: Float[Tensor, "b d"],
        residual: Float[Tensor, "b d"],
        moment: Moment,
        generator: torch.Generator,
    ) -> Int64[Tensor, " n"]:
        """Give dead latents new weights after a step, in architectures that do.

        Returns:
            The latents that begin anew: the optimiser forgets what it knew of them.
        """
        return torch.empty(0, dtype=torch.int64, device=x.device)
