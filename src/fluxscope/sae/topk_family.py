"""What TopK, BatchTopK and Matryoshka share: latents are chosen, and the chosen ones alone are computed.

The loss is the squared error, and AuxK (`auxk`) revives dead latents.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fluxscope.errors import CheckpointError
from fluxscope.fields import setting
from fluxscope.sae.architecture import Architecture, Moment, StepResult
from fluxscope.sae.auxk import aux_step
from fluxscope.sae.base import LinearSae
from fluxscope.sae.kernels import Weights, sparse_step
from fluxscope.sae.largest import Entries, Scratch


@dataclass(frozen=True)
class TopKFamily(Architecture):
    """Parent of the settings of the family.

    Args:
        k: active features a token, or their mean.
        aux_coeff: weight of the AuxK loss.
        aux_k: dead latents that take part in it per token; None: d / 2.
    """

    k: int = setting(16, "Active features a token.", low=1)
    _: KW_ONLY
    aux_coeff: float = setting(1 / 32, "Weight of the AuxK loss; 0 for none.", low=0.0)
    aux_k: int | None = setting(None, "Dead latents in the AuxK loss.", low=1)

    @abstractmethod
    def choose(self, centred: Float[Tensor, "b d"], weights: Weights, scratch: Scratch) -> Entries:
        """The latents that form the batch's codes.

        Args:
            centred: x - b_pre.
        """

    def prefixes(self, hidden_dim: int) -> tuple[int, ...]:
        """Sizes of the nested dictionaries that must each reconstruct x; empty: only the whole one."""
        return ()

    def check(self, hidden_dim: int) -> None:
        check_k(self.k, hidden_dim)

    def gradients(
        self, sae: LinearSae, x: Float[Tensor, "b d"], moment: Moment, scratch: Scratch
    ) -> StepResult:
        weights, grads = Weights.of(sae), Weights.gradients_of(sae)
        centred = x - weights.pre_bias
        entries = self.choose(centred, weights, scratch)
        outcome = sparse_step(x, centred, entries, weights, grads, self.prefixes(sae.hidden_dim))
        loss = outcome.loss
        dead = moment.dead.nonzero().flatten()
        if len(dead):
            k = self.aux_k or sae.input_dim // 2
            loss = loss + aux_step(centred, outcome.residual, dead, k, self.aux_coeff, weights, grads)
        fired = torch.zeros_like(weights.bias).index_add_(0, entries.feature, (entries.value > 0).float())
        return StepResult(loss, outcome.residual, fired)


def check_k(k: int, hidden_dim: int) -> None:
    """Raises CheckpointError unless k lies between 1 and the number of features."""
    if not 1 <= k <= hidden_dim:
        raise CheckpointError(
            f"k = {k} active features of {hidden_dim} cannot be", f"Choose k between 1 and {hidden_dim}."
        )
