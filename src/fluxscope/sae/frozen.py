"""A control: an SAE that learns to encode, while its decoder stays the random one that it began with.

It shows what comes of sparsity and a learned encoder alone; on the usual measures it is close to a trained
SAE (arXiv 2602.14111).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from fluxscope.sae.architecture import Architecture, Moment, StepResult
from fluxscope.sae.base import LinearSae
from fluxscope.sae.kernels import Weights
from fluxscope.sae.largest import Scratch
from fluxscope.sae.topk import TopK, TopKSparseAutoencoder


@final
@dataclass(frozen=True)
class FrozenDecoder(Architecture):
    """TopK whose decoder learns nothing.

    Args:
        topk: how it is otherwise.
    """

    sae: ClassVar[type[LinearSae]] = TopKSparseAutoencoder
    topk: TopK = field(default_factory=TopK)

    def build(self, input_dim: int, hidden_dim: int) -> LinearSae:
        return self.topk.build(input_dim, hidden_dim)

    def check(self, hidden_dim: int) -> None:
        self.topk.check(hidden_dim)

    def gradients(
        self, sae: LinearSae, x: Float[Tensor, "b d"], moment: Moment, scratch: Scratch
    ) -> StepResult:
        result = self.topk.gradients(sae, x, moment, scratch)
        with torch.no_grad():
            Weights.gradients_of(sae).decoder.zero_()
        return result
