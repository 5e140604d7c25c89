"""The four tensors of an SAE under the names and in the orientation of a format, checked when read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxscope.errors import CheckpointError
from fluxscope.sae.base import LinearSae
from fluxscope.sae.formats.format import Parts


@dataclass(frozen=True)
class Layout:
    """Where a format keeps the four tensors.

    Args:
        encoder, bias, decoder, decoder_bias: their names in the file.
        encoder_by_latent, decoder_by_latent: whether the file keeps the matrix as (f, d) or as (d, f).
    """

    encoder: str
    bias: str
    decoder: str
    decoder_bias: str
    encoder_by_latent: bool
    decoder_by_latent: bool

    @property
    def names(self) -> tuple[str, str, str, str]:
        return self.encoder, self.bias, self.decoder, self.decoder_bias

    def tensors(self, sae: LinearSae) -> dict[str, Tensor]:
        """An SAE's four tensors as the format keeps them."""
        encoder, decoder = sae.encoder.weight, sae.decoder.weight.T  # (f, d) each
        return {
            self.encoder: encoder if self.encoder_by_latent else encoder.T,
            self.bias: sae.encoder.bias,
            self.decoder: decoder if self.decoder_by_latent else decoder.T,
            self.decoder_bias: sae.pre_bias,
        }

    def parts(self, state: Mapping[str, Any], path: Path, centred: bool = True) -> Parts:
        """The four tensors of a file, with their shapes and orientation checked.

        Args:
            centred: whether the encoder subtracts the decoder bias from its input.

        Raises:
            CheckpointError: a tensor is missing, of another shape, transposed, or holds NaN.
        """
        tensors = require(state, self.names, path)
        encoder, bias, decoder, decoder_bias = (tensors[name] for name in self.names)
        for name, vector in ((self.bias, bias), (self.decoder_bias, decoder_bias)):
            if vector.ndim != 1 or len(vector) == 0:
                raise CheckpointError(
                    f"{name} in {path} has shape {tuple(vector.shape)}, expected a vector",
                    "It is not an SAE's checkpoint.",
                )
        f, d = len(bias), len(decoder_bias)
        encoder = _by_latent(encoder, (f, d), self.encoder_by_latent, self.encoder, path)
        decoder = _by_latent(decoder, (f, d), self.decoder_by_latent, self.decoder, path)
        _check_square_orientation(encoder, decoder, (self.encoder, self.decoder), path)
        return Parts(encoder, bias, decoder, decoder_bias, centred)


PLAIN = Layout("W_enc", "b_enc", "W_dec", "b_dec", encoder_by_latent=False, decoder_by_latent=True)
"""Bare matrices, multiplied from the right: SAELens, saev, and part of dictionary_learning."""


def linear(decoder_bias: str, bias: str = "encoder.bias") -> Layout:
    """The weights of two nn.Linear, with the decoder's bias under a name of its own."""
    return Layout("encoder.weight", bias, "decoder.weight", decoder_bias, True, False)


def _by_latent(matrix: Tensor, shape: tuple[int, int], stored: bool, name: str, path: Path) -> Tensor:
    """A matrix as (f, d), which is how it is stored or the other way round."""
    require_shape(matrix, shape if stored else shape[::-1], name, path)
    return matrix if stored else matrix.T


def require(state: Mapping[str, Any], names: tuple[str, ...], path: Path) -> dict[str, Tensor]:
    """The named tensors of a state dict, as fp32.

    Raises:
        CheckpointError: one is missing, is no tensor, or holds NaN or infinity.
    """
    missing = [name for name in names if not isinstance(state.get(name), Tensor)]
    if missing:
        raise CheckpointError(
            f"{path} lacks {', '.join(missing)}",
            f"It holds {', '.join(sorted(map(str, state)))[:200] or 'nothing'}: is it an SAE's checkpoint?",
        )
    for name in names:
        _check_stored(state[name], name, path)
    tensors = {name: state[name].detach().to(torch.float32) for name in names}
    for name, tensor in tensors.items():
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise CheckpointError(
                f"{name} in {path} holds {bad} NaN or infinite values", "Its training diverged: use another."
            )
    return tensors


def _check_stored(tensor: Tensor, name: str, path: Path) -> None:
    """Raises CheckpointError unless each of a tensor's numbers lies in the file.

    A tensor of strides zero shows one number a trillion times: the first sum of two would take the memory.
    """
    usual = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    if not usual or tensor.is_complex() or tensor.is_nested:
        kind = f"{tensor.dtype}, {tensor.layout}, {tensor.device}"
        raise CheckpointError(f"{name} in {path} is no plain tensor ({kind})", "Store it as float32.")
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise CheckpointError(
            f"{name} in {path} claims {tensor.numel()} numbers, the file holds fewer",
            "It is not an SAE's checkpoint.",
        )


def require_shape(tensor: Tensor, shape: tuple[int, ...], name: str, path: Path) -> None:
    """Raises CheckpointError when a tensor has another shape, saying so when it is merely transposed."""
    if tuple(tensor.shape) == shape:
        return
    wanted, found = (" x ".join(map(str, s)) or "one number" for s in (shape, tensor.shape))
    if tuple(tensor.shape) == shape[::-1]:
        raise CheckpointError(
            f"{name} in {path} is transposed: {found}, expected {wanted}", "Store it the other way round."
        )
    raise CheckpointError(
        f"{name} in {path} is {found}, expected {wanted}", "Its tensors come from different SAEs."
    )


def _check_square_orientation(encoder: Tensor, decoder: Tensor, names: tuple[str, str], path: Path) -> None:
    """Tell a transposed matrix when f = d and shapes can't.

    A trained encoder row looks along its own decoder row, and decoder rows (one a latent) have unit norm.

    Raises:
        CheckpointError: the other orientation of one or both fits the checkpoint clearly better.
    """
    if encoder.shape[0] != encoder.shape[1]:
        return
    decoder_turned = _unit_rows(decoder.T) and not _unit_rows(decoder)
    as_stored, one_turned = _alignment(encoder, decoder), _alignment(encoder.T, decoder)
    if one_turned > 0.1 and one_turned > 2 * abs(as_stored):
        raise CheckpointError(
            f"{names[1] if decoder_turned else names[0]} in {path} is transposed: "
            "encoder and decoder directions don't match",
            "Store it the other way round.",
        )
    if decoder_turned:
        raise CheckpointError(
            f"{names[1]} in {path} is transposed: latents' directions don't have unit norm, the others do",
            "Store encoder and decoder the other way round.",
        )


def _alignment(encoder: Tensor, decoder: Tensor) -> float:
    """Mean cosine of each latent's encoder and decoder direction."""
    return float(torch.cosine_similarity(encoder, decoder, dim=1).mean())


def _unit_rows(matrix: Tensor) -> bool:
    return bool(torch.allclose(matrix.norm(dim=1), torch.ones(len(matrix)), atol=1e-2))
