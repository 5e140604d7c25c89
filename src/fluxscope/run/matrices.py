"""The matrices of a run, read as if somebody had damaged them: numbers, finite, a row for each picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float

from fluxscope.errors import RunDirError
from fluxscope.files import load_npy
from fluxscope.run.rundir import RunDir

AT_ONCE = 1 << 24
"""Entries that are looked at together."""


def load_s(files: RunDir, pictures: int | None = None) -> Float[np.ndarray, "n f"]:
    """S, mapped from the disk: S[i, f] is the largest code of feature f in picture i.

    Args:
        pictures: how many rows it must have; None: any number.

    Raises:
        RunDirError: it is no matrix of finite numbers, or of another number of pictures.
        FluxscopeError: it is missing or cannot be read.
    """
    return _checked(files.s_matrix, 2, pictures, "Run step 1 again.", "collect")


def load_embeddings(files: RunDir, pictures: int) -> Float[np.ndarray, "n e"]:
    """CLIP's embeddings of the pictures; errors as in `load_s`."""
    return _checked(files.clip_embeddings, 2, pictures, "Run step 3 again.", "clip-embed")


def load_tiles(files: RunDir, pictures: int) -> Float[np.ndarray, "n tiles e"]:
    """CLIP's embeddings of every picture's tiles; errors as in `load_s`."""
    return _checked(files.clip_tiles, 3, pictures, "Run step 3 again.", "clip-embed")


def _checked(path: Path, dimensions: int, pictures: int | None, remedy: str, redo: str) -> np.ndarray:
    matrix = load_npy(path, mmap=True)
    wrong = ""
    if matrix.dtype.kind != "f" or matrix.ndim != dimensions or 0 in matrix.shape:
        wrong = f"holds {matrix.dtype} of shape {matrix.shape}, no matrix of numbers"
    elif pictures is not None and len(matrix) != pictures:
        wrong = f"has {len(matrix)} rows, not one for each of the {pictures} pictures of the manifest"
    elif not _finite(matrix):
        wrong = "holds NaN or infinity"
    if wrong:
        raise RunDirError(f"{path} {wrong}", remedy, redo=redo)
    return matrix


def _finite(matrix: np.ndarray) -> bool:
    rows = max(1, AT_ONCE // max(1, matrix[0].size))
    return all(bool(np.isfinite(matrix[at : at + rows]).all()) for at in range(0, len(matrix), rows))
