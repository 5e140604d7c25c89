"""SAEs and transcoders that look at the timestep: FiLM on the input, then ReLU.

    (scale, shift) = W_mod SiLU(W_2 SiLU(W_1 embedding(t) + b_1) + b_2) + b_mod
    z = ReLU(W_enc (x (1 + scale) + shift) + b_enc)
    y = W_dec z + b_dec

DifFRACT's architecture (arXiv 2606.15796). At any one timestep it is an ordinary ReLU SAE, exactly: `at(t)`
folds scale and shift into the encoder, and everything else here can then work with it.

The timestep is the number that FLUX's transformer itself is given: from 1, all noise, down to 0.
"""

from __future__ import annotations

import math
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fluxscope.sae.relu import SparseAutoencoder

_MAX_PERIOD = 10_000.0


@final
class TimestepSparseAutoencoder(nn.Module):
    """A ReLU SAE whose input is scaled and shifted by the timestep. Read, encoded and decoded, not trained.

    Args:
        input_dim: d, width of the activations.
        hidden_dim: f, number of features.
        embedding_dim: width of the timestep's embedding, even, and of the two layers that read it.
    """

    def __init__(self, input_dim: int, hidden_dim: int, embedding_dim: int) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        layers = [nn.Linear(embedding_dim, embedding_dim), nn.SiLU()]
        layers += [nn.Linear(embedding_dim, embedding_dim), nn.SiLU()]
        self.time_mlp = nn.Sequential(*layers)
        self.mod_linear = nn.Linear(embedding_dim, 2 * input_dim)
        self.encoder = nn.Linear(input_dim, hidden_dim)
        self.decoder = nn.Linear(hidden_dim, input_dim)

    def scale_and_shift(self, timestep: float) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
        embedding = sinusoidal_embedding(timestep, self.embedding_dim).to(self.encoder.weight)
        scale, shift = self.mod_linear(self.time_mlp(embedding)).chunk(2)
        return scale, shift

    def encode(self, x: Float[Tensor, "*tokens d"], timestep: float) -> Float[Tensor, "*tokens f"]:
        scale, shift = self.scale_and_shift(timestep)
        return torch.relu(self.encoder(x * (1 + scale) + shift))

    def decode(self, code: Float[Tensor, "*tokens f"]) -> Float[Tensor, "*tokens d"]:
        reconstruction: Tensor = self.decoder(code)
        return reconstruction

    @torch.no_grad()
    def at(self, timestep: float) -> SparseAutoencoder:
        """The ordinary SAE that this one is at a timestep."""
        f, d = self.encoder.weight.shape
        sae = SparseAutoencoder(d, f).to(self.encoder.weight)
        scale, shift = (part.double() for part in self.scale_and_shift(timestep))
        weight = self.encoder.weight.double() * (1 + scale)
        bias = self.encoder.bias.double() + self.encoder.weight.double() @ shift
        sae.encoder.weight.copy_(weight)
        sae.encoder.bias.copy_(bias + weight @ self.decoder.bias.double())  # ours centres
        sae.decoder.weight.copy_(self.decoder.weight)
        sae.pre_bias.copy_(self.decoder.bias)
        return sae


def sinusoidal_embedding(timestep: float, width: int) -> Float[Tensor, " width"]:
    """Sines, then cosines, of the timestep at width / 2 frequencies from 1 down to 1 / 10,000 inclusive."""
    half = width // 2
    frequency = torch.exp(-math.log(_MAX_PERIOD) * torch.linspace(0, 1, half, dtype=torch.float64))
    angle = timestep * frequency
    return torch.cat([angle.sin(), angle.cos()])
