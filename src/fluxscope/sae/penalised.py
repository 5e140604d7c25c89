"""What ReLU and JumpReLU share: a penalty makes their codes sparse, and autograd finds the gradients."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fluxscope.fields import setting
from fluxscope.sae.architecture import Architecture, Moment, StepResult
from fluxscope.sae.base import LinearSae
from fluxscope.sae.largest import Scratch


@dataclass(frozen=True)
class Penalised(Architecture):
    """Parent of the settings of both.

    Args:
        sparsity_warmup_share: first share of the steps, over which the penalty rises from zero.
    """

    _: KW_ONLY
    sparsity_warmup_share: float = setting(0.1, "A share of the steps, 0 to 1.", low=0.0, high=1.0)

    @abstractmethod
    def loss(
        self, sae: LinearSae, x: Float[Tensor, "b d"], warmth: float
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "b d"], Float[Tensor, "b f"]]:
        """(loss, reconstruction, code), for autograd.

        Args:
            warmth: what the penalty is multiplied by, 0 to 1.
        """

    def gradients(
        self, sae: LinearSae, x: Float[Tensor, "b d"], moment: Moment, scratch: Scratch
    ) -> StepResult:
        sae.zero_grad()
        with torch.enable_grad():
            loss, reconstruction, code = self.loss(sae, x, self.warmth(moment))
            loss.backward()
        return StepResult(loss.detach(), x - reconstruction.detach(), (code > 0).sum(0))

    def warmth(self, moment: Moment) -> float:
        """What the penalty is multiplied by at a step: 0 rising to 1."""
        return min(1.0, moment.step / max(1, round(moment.steps * self.sparsity_warmup_share)))
