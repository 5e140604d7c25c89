"""What every checkpoint format offers: how it is recognised, read and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fluxscope.errors import CheckpointError, FluxscopeError
from fluxscope.sae.base import LinearSae
from fluxscope.sae.formats.weight_files import Candidate

TRANSCODER = "it is a transcoder: what it decodes is what the module gives, not what it was encoded from"


@dataclass(frozen=True)
class Imported:
    """An SAE read from a file, beside the file's own formula.

    Args:
        sae: ours.
        config: what the file said, as plain values.
        encode, decode: what the library that wrote the file computes, on the file's own tensors.
        cautions: what its user must know, a sentence each.
    """

    sae: LinearSae
    config: dict[str, Any]
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    cautions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Format:
    """One checkpoint format.

    Args:
        name: as users name it.
        recognise: whether a file has this form.
        read: reads it, on the CPU, in fp32.
        write: (path, SAE, further config entries) -> None; None where the format is only read.
        weights: name of the weights' file, where a checkpoint is a folder.
    """

    name: str
    recognise: Callable[[Candidate], bool]
    read: Callable[[Candidate], Imported]
    write: Callable[[Path, LinearSae, Mapping[str, Any]], None] | None = None
    weights: str | None = None


@dataclass(frozen=True)
class Parts:
    """Four tensors as files hold them, in our orientation.

    Args:
        encoder: (f, d).
        bias: (f).
        decoder: (f, d).
        decoder_bias: (d).
        centred: whether the encoder subtracts decoder_bias from its input.
    """

    encoder: Float[Tensor, "f d"]
    bias: Float[Tensor, " f"]
    decoder: Float[Tensor, "f d"]
    decoder_bias: Float[Tensor, " d"]
    centred: bool = True

    @torch.no_grad()
    def fill(self, sae: LinearSae) -> LinearSae:
        """Put the tensors into an SAE of ours, which always centres: W x + b = W (x - c) + (b + W c)."""
        bias = self.bias.double()
        if not self.centred:
            bias = bias + self.encoder.double() @ self.decoder_bias.double()
        sae.pre_bias.copy_(self.decoder_bias)
        sae.encoder.weight.copy_(self.encoder)
        sae.encoder.bias.copy_(bias)
        sae.decoder.weight.copy_(self.decoder.T)
        return sae

    def imported(
        self,
        sae: LinearSae,
        config: dict[str, Any],
        activation: Callable[[Tensor], Tensor],
        cautions: tuple[str, ...] = (),
    ) -> Imported:
        """The filled SAE beside the formula that these tensors stand for."""

        def encode(x: Tensor) -> Tensor:
            return activation((x - self.decoder_bias if self.centred else x) @ self.encoder.T + self.bias)

        def decode(code: Tensor) -> Tensor:
            return code @ self.decoder + self.decoder_bias

        return Imported(self.fill(sae), config, encode, decode, cautions)


def keep_topk(k: int) -> Callable[[Tensor], Tensor]:
    """The k largest pre-activations of a row, those below zero set to zero."""

    def activation(pre: Tensor) -> Tensor:
        value, place = torch.relu(pre).topk(k, dim=-1)
        return torch.zeros_like(pre).scatter(-1, place, value)

    return activation


def keep_above(threshold: Tensor) -> Callable[[Tensor], Tensor]:
    """Pre-activations above a threshold (not below zero)."""
    return lambda pre: torch.relu(pre) * (pre > threshold)


def unsupported(form: str, sae: LinearSae, known: str) -> FluxscopeError:
    return CheckpointError(
        f"format '{form}' has no place for a {sae.architecture} SAE",
        f"It holds {known}: choose another format.",
    )
