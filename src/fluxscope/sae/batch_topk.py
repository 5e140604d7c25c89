"""BatchTopK: the b k largest pre-activations of a whole batch form its codes.

    training    z = BatchTopK_{b k}(ReLU(W_enc (x - b_pre) + b_enc)) over the b tokens of a batch
    afterwards  z = pre where pre > threshold, else 0

Bussmann, Leask and Nanda 2024 (arXiv 2412.06410). Tokens that need more latents take them from tokens that
need fewer; trained as TopK is. A token alone has no batch, so after training one threshold stands for it:
the value that leaves k latents a token on held-out tokens (`calibrate`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from fluxscope.errors import CheckpointError
from fluxscope.sae.base import LinearSae
from fluxscope.sae.config_values import positive_integer
from fluxscope.sae.kernels import Weights
from fluxscope.sae.largest import Entries, Scratch, largest_overall
from fluxscope.sae.topk_family import TopKFamily, check_k


class ThresholdedSae(LinearSae):
    """Parent of the SAEs that share k b latents among b tokens in training, and have a threshold afterwards.

    Args:
        input_dim: d, width of the activations.
        hidden_dim: f, number of features.
        k: mean number of active features a token, 1 to f.
    """

    threshold: Tensor

    def __init__(self, input_dim: int, hidden_dim: int, k: int) -> None:
        check_k(k, hidden_dim)
        super().__init__(input_dim, hidden_dim)
        self.k = k
        self.register_buffer("threshold", torch.tensor(-1.0))

    def config(self) -> dict[str, Any]:
        return super().config() | {"l1_coeff": 0.0, "use_topk": False, "topk_k": self.k}

    def scale_codes(self, factor: float | Float[Tensor, " f"]) -> None:
        self.threshold.mul_(factor)

    def encode(self, x: Float[Tensor, "*tokens d"]) -> Float[Tensor, "*tokens f"]:
        """The code by the threshold.

        Raises:
            CheckpointError: the threshold was never set.
        """
        if not self.calibrated:
            raise CheckpointError(
                f"this {self.architecture} SAE has no threshold yet", "Calibrate it on held-out activations."
            )
        pre = self.pre_activations(x)
        return torch.where(pre > self.threshold, pre, 0.0)

    @property
    def calibrated(self) -> bool:
        return float(self.threshold) >= 0

    @torch.no_grad()
    def calibrate(self, batches: Sequence[Tensor]) -> None:
        """Set the threshold so that the tokens, (t, d) a batch, have k active features on average.

        It lies midway between the last value kept and the first one left out.
        """
        kept = sum(map(len, batches)) * self.k
        assert kept > 0, "calibration on no tokens"
        pool = self.threshold.new_zeros(0)
        for batch in batches:
            pre = torch.relu(self.pre_activations(batch.to(self.pre_bias))).flatten()
            pool = torch.cat([pool, pre])
            pool = pool.topk(min(kept + 1, len(pool)), sorted=False).values
        lowest = pool.topk(2, largest=False).values if len(pool) > kept else pool.new_zeros(1)
        self.threshold.copy_(lowest.mean())


@final
class BatchTopKSparseAutoencoder(ThresholdedSae):
    """An SAE with k active features a token on average."""

    architecture: ClassVar[str] = "batch_topk"

    @classmethod
    def from_config(
        cls, input_dim: int, hidden_dim: int, config: dict[str, Any]
    ) -> BatchTopKSparseAutoencoder:
        return cls(input_dim, hidden_dim, positive_integer(config.get("topk_k"), "topk_k"))


@dataclass(frozen=True)
class BatchChosen(TopKFamily):
    """Parent of the settings of such SAEs: in training the largest latents of the whole batch are chosen."""

    def choose(self, centred: Float[Tensor, "b d"], weights: Weights, scratch: Scratch) -> Entries:
        pre = scratch.get("pre", (len(centred), len(weights.encoder)), centred)
        torch.addmm(weights.bias, centred, weights.encoder.T, out=pre)
        return largest_overall(pre, len(centred) * self.k)


@final
@dataclass(frozen=True)
class BatchTopK(BatchChosen):
    """Settings of BatchTopK: those of its family."""

    sae: ClassVar[type[LinearSae]] = BatchTopKSparseAutoencoder

    def build(self, input_dim: int, hidden_dim: int) -> BatchTopKSparseAutoencoder:
        return BatchTopKSparseAutoencoder(input_dim, hidden_dim, self.k)
