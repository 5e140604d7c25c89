"""What every checkpoint format offers, and the checks that every import passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxscope.errors import CheckpointError
from fluxscope.sae.base import LinearSae


@dataclass(frozen=True)
class Format:
    """One checkpoint format.

    Args:
        name: as users name it.
        recognise: whether the file at a path has this form; never raises for a foreign or damaged file.
        read: path -> (SAE on the CPU in fp32, the file's config as plain values).
        write: (path, SAE, further config entries) -> None; None where the format is only read.
    """

    name: str
    recognise: Callable[[Path], bool]
    read: Callable[[Path], tuple[LinearSae, dict[str, Any]]]
    write: Callable[[Path, LinearSae, Mapping[str, Any]], None] | None = None


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
    tensors = {name: state[name].detach().to(torch.float32) for name in names}
    for name, tensor in tensors.items():
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise CheckpointError(
                f"{name} in {path} holds {bad} NaN or infinite values", "Its training diverged: use another."
            )
    return tensors


def require_shape(tensor: Tensor, shape: tuple[int, ...], name: str, path: Path) -> None:
    """Raises CheckpointError when a tensor has another shape, saying so when it is merely transposed."""
    if tuple(tensor.shape) == shape:
        return
    wanted, found = (" x ".join(map(str, s)) for s in (shape, tensor.shape))
    if tuple(tensor.shape) == shape[::-1]:
        raise CheckpointError(
            f"{name} in {path} is transposed: {found}, expected {wanted}", "Store it the other way round."
        )
    raise CheckpointError(
        f"{name} in {path} is {found}, expected {wanted}", "Its tensors come from different SAEs."
    )


def check_square_orientation(encoder: Tensor, decoder: Tensor, path: Path) -> None:
    """Tell a transposed matrix when f = d and shapes can't.

    A trained encoder row looks along its own decoder column, and decoder columns have unit norm.

    Args:
        encoder: (f, d) as it should be.
        decoder: (d, f) as it should be.

    Raises:
        CheckpointError: the other orientation of one or both fits the checkpoint clearly better.
    """
    if encoder.shape[0] != encoder.shape[1]:
        return
    as_stored, one_turned = _alignment(encoder, decoder), _alignment(encoder.T, decoder)
    if one_turned > 0.1 and one_turned > 2 * abs(as_stored):
        which = "decoder" if _unit_columns(decoder.T) and not _unit_columns(decoder) else "encoder"
        raise CheckpointError(
            f"{which}.weight in {path} is transposed: encoder rows match decoder rows, not columns",
            "Store it the other way round.",
        )
    if _unit_columns(decoder.T) and not _unit_columns(decoder):
        raise CheckpointError(
            f"decoder.weight in {path} is transposed: its rows have unit norm, not its columns",
            "Store encoder and decoder the other way round.",
        )


def _alignment(encoder: Tensor, decoder: Tensor) -> float:
    """Mean cosine of each feature's encoder row and decoder column."""
    return float(torch.cosine_similarity(encoder, decoder.T, dim=1).mean())


def _unit_columns(matrix: Tensor) -> bool:
    return bool(torch.allclose(matrix.norm(dim=0), torch.ones(matrix.shape[1]), atol=1e-2))
