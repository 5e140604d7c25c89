"""TopK: exactly the k largest pre-activations of a token form its code.

    z = TopK_k(ReLU(W_enc (x - b_pre) + b_enc))

Gao et al. 2024, "Scaling and evaluating sparse autoencoders" (arXiv 2406.04093). Trained on the squared
error alone, with an auxiliary loss (AuxK) in which the latents that have died reconstruct what is left over.
L0 is k by construction, no shrinkage arises, and k is the one setting: the default here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fluxscope.errors import FluxscopeError
from fluxscope.sae.base import LinearSae
from fluxscope.sae.codes import SparseCodes
from fluxscope.sae.config_values import positive_integer
from fluxscope.sae.kernels import Weights
from fluxscope.sae.largest import Entries, Scratch
from fluxscope.sae.topk_encoder import encode_topk, fastest_exact
from fluxscope.sae.topk_family import TopKFamily, check_k

PrecisionSetting = Literal["auto", "exact", "rescored", "bf16"]


@final
class TopKSparseAutoencoder(LinearSae):
    """An SAE whose codes have at most k active features.

    Args:
        input_dim: d, width of the activations.
        hidden_dim: f, number of features.
        k: active features a token, 1 to f.

    Raises:
        CheckpointError: k is not between 1 and f.
    """

    architecture: ClassVar[str] = "topk"

    def __init__(self, input_dim: int, hidden_dim: int, k: int) -> None:
        check_k(k, hidden_dim)
        super().__init__(input_dim, hidden_dim)
        self.k = k

    @classmethod
    def from_config(cls, input_dim: int, hidden_dim: int, config: dict[str, Any]) -> TopKSparseAutoencoder:
        return cls(input_dim, hidden_dim, positive_integer(config.get("topk_k"), "topk_k"))

    def config(self) -> dict[str, Any]:
        return super().config() | {"l1_coeff": 0.0, "use_topk": True, "topk_k": self.k}

    def encode_topk(
        self, x: Float[Tensor, "*tokens d"]
    ) -> tuple[Int64[Tensor, "*tokens k"], Float[Tensor, "*tokens k"]]:
        """(indices, values) of the k largest pre-activations, those below zero set to zero."""
        values, indices = torch.topk(torch.relu(self.pre_activations(x)), self.k, dim=-1, sorted=False)
        return indices, values

    def encode(self, x: Float[Tensor, "*tokens d"]) -> Float[Tensor, "*tokens f"]:
        indices, values = self.encode_topk(x)
        return values.new_zeros(*x.shape[:-1], self.hidden_dim).scatter(-1, indices, values)

    def encode_sparse(self, x: Float[Tensor, "t d"]) -> SparseCodes:
        return SparseCodes.from_topk(*self.encode_topk(x), self.hidden_dim)


@final
@dataclass(frozen=True)
class TopK(TopKFamily):
    """Settings of TopK: those of its family, and one more.

    Args:
        precision: of the encoder's product: "exact"; "rescored" chooses the latents that "exact" does, sooner
            where matrices are large; "bf16" is sooner still and approximate; "auto" is the faster of the
            first two on this machine. The rest of the family is always exact.
    """

    precision: PrecisionSetting = "auto"
    sae: ClassVar[type[LinearSae]] = TopKSparseAutoencoder

    def __post_init__(self) -> None:
        super().__post_init__()
        known = get_args(PrecisionSetting)
        if self.precision not in known:
            raise FluxscopeError(f"unknown precision '{self.precision}'", f"Known are {', '.join(known)}.")

    def build(self, input_dim: int, hidden_dim: int) -> TopKSparseAutoencoder:
        return TopKSparseAutoencoder(input_dim, hidden_dim, self.k)

    def choose(self, centred: Float[Tensor, "b d"], weights: Weights, scratch: Scratch) -> Entries:
        asked = self.precision
        precision = fastest_exact(centred.device, centred.shape[1]) if asked == "auto" else asked
        chosen = encode_topk(centred, weights.encoder, weights.bias, self.k, precision, scratch)
        return Entries.from_rows(chosen.feature, chosen.value)
