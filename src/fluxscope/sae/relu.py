"""ReLU with an L1 penalty: the classical SAE.

    z = ReLU(W_enc (x - b_pre) + b_enc)
    loss = |x - x'|^2 / d + l1_coeff * sum(z) / sqrt(d)

Bricken et al. 2023, "Towards monosemanticity". The penalty is divided by sqrt(d) because activations are
scaled to a mean squared norm of d while training, so that one l1_coeff means the same at every width.
It shrinks codes, and latents that die are resampled (`ReLU.revive`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fluxscope.fields import setting
from fluxscope.sae.architecture import Moment
from fluxscope.sae.base import LinearSae
from fluxscope.sae.config_values import coefficient
from fluxscope.sae.penalised import Penalised


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
        return cls(input_dim, hidden_dim, coefficient(config, "l1_coeff"))

    def config(self) -> dict[str, Any]:
        return super().config() | {"l1_coeff": self.l1_coeff, "use_topk": False, "topk_k": None}

    def encode(self, x: Float[Tensor, "*tokens d"]) -> Float[Tensor, "*tokens f"]:
        return torch.relu(self.pre_activations(x))


@final
@dataclass(frozen=True)
class ReLU(Penalised):
    """Settings of ReLU with an L1 penalty.

    Args:
        l1_coeff: weight of the penalty.
        resample_every: steps between resamplings of dead latents, in the first half of training; None: an
            eighth of the steps.
    """

    l1_coeff: float = setting(0.05, "Penalties are 0 or more.", low=0.0)
    resample_every: int | None = setting(None, "Steps between resamplings.", low=1)
    sae: ClassVar[type[LinearSae]] = SparseAutoencoder

    def build(self, input_dim: int, hidden_dim: int) -> SparseAutoencoder:
        return SparseAutoencoder(input_dim, hidden_dim, self.l1_coeff)

    def peak_lr(self, hidden_dim: int) -> float:
        """2e-4 x sqrt(2^14 / f), the scaling law of Gao et al. 2024 (arXiv 2406.04093)."""
        return 2e-4 * math.sqrt(2**14 / hidden_dim)

    def loss(
        self, sae: LinearSae, x: Float[Tensor, "b d"], warmth: float
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "b d"], Float[Tensor, "b f"]]:
        reconstruction, code = sae(x)
        penalty = code.sum(-1).mean() / math.sqrt(sae.input_dim)
        return (x - reconstruction).square().mean() + warmth * self.l1_coeff * penalty, reconstruction, code

    @torch.no_grad()
    def revive(
        self,
        sae: LinearSae,
        x: Float[Tensor, "b d"],
        residual: Float[Tensor, "b d"],
        moment: Moment,
        generator: torch.Generator,
    ) -> Int64[Tensor, " n"]:
        """Point dead latents at inputs that are reconstructed badly (Bricken et al. 2023).

        Inputs are drawn with probability proportional to their squared loss; the encoder row gets a fifth
        of the mean norm of the living ones.
        """
        ids = moment.dead.nonzero().flatten()
        if not self.resampling_due(moment) or not 0 < len(ids) < len(moment.dead):
            return ids[:0]
        loss = residual.square().sum(1).square().double().cpu()
        chosen = torch.multinomial(loss, len(ids), replacement=True, generator=generator).to(x.device)
        directions = torch.nn.functional.normalize(x[chosen] - sae.pre_bias, dim=1)
        living = sae.encoder.weight[~moment.dead].norm(dim=1).mean()
        sae.decoder.weight.T[ids] = directions
        sae.encoder.weight[ids] = 0.2 * living * directions
        sae.encoder.bias[ids] = 0
        return ids

    def resampling_due(self, moment: Moment) -> bool:
        every = self.resample_every or max(1, moment.steps // 8)
        return 0 < moment.step <= moment.steps // 2 and moment.step % every == 0
