"""What all SAEs here share: a linear encoder, a linear decoder, a bias that is taken off and put back.

    code           z = activation_function(W_enc (x - b_pre) + b_enc)
    reconstruction x' = W_dec z + b_pre

Each architecture is a subclass that says how the pre-activations become a code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fluxscope.sae.codes import SparseCodes


class LinearSae(nn.Module, ABC):
    """Parent of the SAE architectures. Its state dict is the checkpoint's.

    `pre_bias` (d), `encoder.weight` (f, d), `encoder.bias` (f), `decoder.weight` (d, f); the decoder's
    columns are the features' directions and have unit norm.

    Args:
        input_dim: d, width of the activations.
        hidden_dim: f, number of features.
    """

    architecture: ClassVar[str]
    features_stand_alone: ClassVar[bool] = False
    """Whether a feature is active regardless of the others, so that its code may have any unit of its own."""

    def __init__(self, input_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.input_dim = input_dim
        self.hidden_dim = hidden_dim
        self.pre_bias = nn.Parameter(torch.zeros(input_dim))
        self.encoder = nn.Linear(input_dim, hidden_dim)
        self.decoder = nn.Linear(hidden_dim, input_dim, bias=False)
        # Kept as (f, d) in memory: a feature's direction is one run of numbers, which gathers read at once.
        self.decoder.weight = nn.Parameter(torch.empty(hidden_dim, input_dim).T)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Random unit decoder directions, the encoder their transpose, biases zero.

        The tied start leaves far fewer dead latents than independent ones (Gao et al. 2024,
        arXiv 2406.04093, appendix A.1).
        """
        directions = torch.randn(self.hidden_dim, self.input_dim, generator=generator)
        self.decoder.weight.copy_(directions.T)
        self.normalize_decoder()
        self.encoder.weight.copy_(self.decoder.weight.T)
        self.encoder.bias.zero_()
        self.pre_bias.zero_()

    @classmethod
    @abstractmethod
    def from_config(cls, input_dim: int, hidden_dim: int, config: dict[str, Any]) -> LinearSae:
        """Build an SAE from a checkpoint's config."""

    def config(self) -> dict[str, Any]:
        """What a checkpoint's config must say to build this SAE again."""
        return {
            "architecture": self.architecture,
            "input_dim": self.input_dim,
            "hidden_dim": self.hidden_dim,
            "expansion_factor": self.hidden_dim / self.input_dim,
        }

    def pre_activations(self, x: Float[Tensor, "*tokens d"]) -> Float[Tensor, "*tokens f"]:
        """W_enc (x - b_pre) + b_enc."""
        pre: Tensor = self.encoder(x - self.pre_bias)
        return pre

    def scale_codes(self, factor: float | Float[Tensor, " f"]) -> None:
        """Change the units of codes: what an architecture keeps beside the four tensors.

        Args:
            factor: for all features, or where `features_stand_alone` one for each.
        """

    @abstractmethod
    def encode(self, x: Float[Tensor, "*tokens d"]) -> Float[Tensor, "*tokens f"]:
        """The dense code of activations; never negative."""

    def encode_sparse(self, x: Float[Tensor, "t d"]) -> SparseCodes:
        """The same code without its zeros. The function `encode_sparse` bounds the memory of many tokens."""
        return SparseCodes.from_dense(self.encode(x))

    def decode(self, code: Float[Tensor, "*tokens f"]) -> Float[Tensor, "*tokens d"]:
        """The activation that a code stands for."""
        reconstruction: Tensor = self.decoder(code) + self.pre_bias
        return reconstruction

    def forward(
        self, x: Float[Tensor, "*tokens d"]
    ) -> tuple[Float[Tensor, "*tokens d"], Float[Tensor, "*tokens f"]]:
        """(reconstruction, code)."""
        code = self.encode(x)
        return self.decode(code), code

    @torch.no_grad()
    def normalize_decoder(self) -> None:
        """Give every decoder direction unit norm."""
        norms = self.decoder.weight.norm(dim=0, keepdim=True)
        self.decoder.weight.div_(norms.clamp_min(torch.finfo(norms.dtype).tiny))

    def constrain(self) -> None:
        """Put the parameters back where they must lie, after a step of the optimiser."""
        self.normalize_decoder()

    @property
    def calibrated(self) -> bool:
        """Whether it can encode: false while an architecture lacks what only `calibrate` can set."""
        return True

    def calibrate(self, batches: Sequence[Tensor]) -> None:
        """Set what held-out activations, (t, d) a batch, decide; most architectures have nothing to set."""


@torch.no_grad()
def encode_sparse(sae: LinearSae, x: Float[Tensor, "*tokens d"], chunk: int = 256) -> SparseCodes:
    """The codes of activations, without ever holding more than about `chunk` dense rows.

    The chunks are of nearly equal size: a lone last row would take another path through the matrix
    product and differ in its last bits. So the numbers are those of `sae.encode` on the whole.

    Args:
        x: activations (..., d) in any floating dtype; they are encoded in the SAE's.
        chunk: tokens encoded at a time.
    """
    rows = x.reshape(-1, x.shape[-1]).to(sae.pre_bias)  # (t, d)
    n_chunks = max(1, -(-len(rows) // chunk))
    return SparseCodes.concatenate([sae.encode_sparse(part) for part in rows.tensor_split(n_chunks)])
