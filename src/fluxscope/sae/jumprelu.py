"""JumpReLU: each feature has a threshold of its own, learned with the rest.

    z = pre * H(pre - threshold),  pre = W_enc (x - b_pre) + b_enc,  H the step function
    loss = |x - x'|^2 / d + l0_coeff * L0

Rajamanoharan et al. 2024 (arXiv 2407.14435). The step has no gradient; for the thresholds, its derivative is
estimated with a rectangular kernel of width `bandwidth` (section 4 there):

    d z / d threshold ~ -(threshold / bandwidth) * rect((pre - threshold) / bandwidth)
    d H / d threshold ~ -(1 / bandwidth) * rect((pre - threshold) / bandwidth)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fluxscope.fields import setting
from fluxscope.sae.base import LinearSae
from fluxscope.sae.config_values import coefficient
from fluxscope.sae.penalised import Penalised

BANDWIDTH = 0.1
"""In units of normalised activations, whose mean squared norm is d: pre-activations are of the order of 1."""
INITIAL_THRESHOLD = 0.1


@final
class JumpReLUSparseAutoencoder(LinearSae):
    """An SAE with one threshold a feature.

    Args:
        input_dim: d, width of the activations.
        hidden_dim: f, number of features.
        l0_coeff: weight of the L0 penalty; matters in training only.
    """

    architecture: ClassVar[str] = "jumprelu"
    features_stand_alone: ClassVar[bool] = True

    def __init__(self, input_dim: int, hidden_dim: int, l0_coeff: float = 0.0) -> None:
        super().__init__(input_dim, hidden_dim)
        self.l0_coeff = l0_coeff
        self.threshold = nn.Parameter(torch.full((hidden_dim,), INITIAL_THRESHOLD))

    @classmethod
    def from_config(
        cls, input_dim: int, hidden_dim: int, config: dict[str, Any]
    ) -> JumpReLUSparseAutoencoder:
        return cls(input_dim, hidden_dim, coefficient(config, "l0_coeff"))

    def config(self) -> dict[str, Any]:
        return super().config() | {"l0_coeff": self.l0_coeff, "use_topk": False, "topk_k": None}

    def scale_codes(self, factor: float | Float[Tensor, " f"]) -> None:
        self.threshold.mul_(factor)

    @torch.no_grad()
    def constrain(self) -> None:
        """Unit decoder directions; thresholds not below zero."""
        super().constrain()
        self.threshold.clamp_min_(0)

    def encode(self, x: Float[Tensor, "*tokens d"]) -> Float[Tensor, "*tokens f"]:
        return _jump(torch.relu(self.pre_activations(x)), self.threshold)


def _jump(pre: Tensor, threshold: Tensor) -> Tensor:
    code: Tensor = _Jump.apply(pre, threshold)  # type: ignore[no-untyped-call]
    return code


def _window(pre: Tensor, threshold: Tensor) -> Tensor:
    """rect((pre - threshold) / bandwidth), for positive pre-activations."""
    return ((pre - threshold).abs() < BANDWIDTH / 2) & (pre > 0)


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        pre, threshold = ctx.saved_tensors
        d_threshold = -(threshold / BANDWIDTH) * (_window(pre, threshold) * grad)
        return grad * (pre > threshold), d_threshold.flatten(0, -2).sum(0)


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        pre, threshold = ctx.saved_tensors
        return None, -((_window(pre, threshold) * grad) / BANDWIDTH).flatten(0, -2).sum(0)


@final
@dataclass(frozen=True)
class JumpReLU(Penalised):
    """Settings of JumpReLU.

    Args:
        l0_coeff: weight of the L0 penalty.
    """

    l0_coeff: float = setting(0.003, "Penalties are 0 or more.", low=0.0)
    sae: ClassVar[type[LinearSae]] = JumpReLUSparseAutoencoder

    def build(self, input_dim: int, hidden_dim: int) -> JumpReLUSparseAutoencoder:
        return JumpReLUSparseAutoencoder(input_dim, hidden_dim, self.l0_coeff)

    def loss(
        self, sae: LinearSae, x: Float[Tensor, "b d"], warmth: float
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "b d"], Float[Tensor, "b f"]]:
        assert isinstance(sae, JumpReLUSparseAutoencoder)
        pre = torch.relu(sae.pre_activations(x))
        code = _jump(pre, sae.threshold)
        reconstruction = sae.decode(code)
        l0 = _Step.apply(pre, sae.threshold).sum(-1).mean()  # type: ignore[no-untyped-call]
        return (x - reconstruction).square().mean() + warmth * self.l0_coeff * l0, reconstruction, code
