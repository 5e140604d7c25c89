"""ReLU with an L1 penalty: the classical SAE.

    z = ReLU(W_enc (x - b_pre) + b_enc)
    loss = |x - x'|^2 / d + l1_coeff * sum(z) / sqrt(d)

Bricken et al. 2023, "Towards monosemanticity". The penalty is divided by sqrt(d) because activations are
scaled to a mean squared norm of d while training, so that one l1_coeff means the same at every width.
It shrinks codes, and latents that die are resampled (`fluxscope.sae.train`).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from fluxscope.sae.base import LinearSae


@final
class SparseAutoencoder(LinearSae):
    """An SAE whose codes are sparse because they were penalised in training.

    Args:
        input_dim: d, width of the activations.
        hidden_dim: f, number of features.
        l1_coeff: weight of the penalty; matters in training only.
    """

    architecture: ClassVar[str] = "relu"
    features_stand_alone: ClassVar[bool] = True

    def __init__(self, input_dim: int, hidden_dim: int, l1_coeff: float = 0.0) -> None:
        super().__init__(input_dim, hidden_dim)
        self.l1_coeff = l1_coeff

    @classmethod
    def from_config(cls, input_dim: int, hidden_dim: int, config: dict[str, Any]) -> SparseAutoencoder:
        return cls(input_dim, hidden_dim, float(config.get("l1_coeff") or 0.0))

    def config(self) -> dict[str, Any]:
        return super().config() | {"l1_coeff": self.l1_coeff, "use_topk": False, "topk_k": None}

    def encode(self, x: Float[Tensor, "*tokens d"]) -> Float[Tensor, "*tokens f"]:
        return torch.relu(self.pre_activations(x))

    def training_loss(self, x: Float[Tensor, "b d"], sparsity: float) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, reconstruction, code); the penalty is multiplied by `sparsity`, which warms it up."""
        reconstruction, code = self(x)
        penalty = code.sum(-1).mean() / math.sqrt(self.input_dim)
        return (x - reconstruction).square().mean() + sparsity * self.l1_coeff * penalty, reconstruction, code
