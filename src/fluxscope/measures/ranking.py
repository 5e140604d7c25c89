"""Walking a large S once: its nonzero entries in blocks, and the running top list of every feature.

S is mostly zeros (an image activates a few per cent of the features), so everything is computed from its
nonzero entries; the dense matrix is touched by one comparison only, and one block of it at a time.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from fluxscope.dims import SMatrix
from fluxscope.errors import FluxscopeError, MissingInputError

BLOCK_ELEMENTS = 1 << 19
"""Elements of S looked at together: 2 MiB of float32, so that a block stays in the processor's cache."""


@dataclass(frozen=True)
class Entries:
    """Nonzero entries of a block of S, by ascending row: S[image[i], feature[i]] == value[i]."""

    image: Int64[np.ndarray, " e"]
    feature: Int64[np.ndarray, " e"]
    value: Float32[np.ndarray, " e"]

    def where(self, mask: np.ndarray) -> Entries:
        return Entries(self.image[mask], self.feature[mask], self.value[mask])


def check_S(S: np.ndarray) -> None:
    """Refuse an S that is no matrix or holds nothing.

    Raises:
        MissingInputError: S has no rows or no columns.
        FluxscopeError: S has another number of dimensions than two.
    """
    if S.ndim != 2:
        raise FluxscopeError(f"S has {S.ndim} dimensions, not 2", "It must be (n_images, n_features).")
    if 0 in S.shape:
        raise MissingInputError(
            f"S is empty: {S.shape[0]} images, {S.shape[1]} features", "Run step 1 (collect) first."
        )


def row_blocks(n: int, f: int, block: int | None = None) -> Iterator[slice]:
    """Cut n rows of f features into slices of `block` rows, by default of BLOCK_ELEMENTS elements."""
    rows = block or max(1, BLOCK_ELEMENTS // f)
    for start in range(0, n, rows):
        yield slice(start, min(start + rows, n))


def walk_entries(S: SMatrix, block: int | None = None) -> Iterator[Entries]:
    """Give the nonzero entries of S, block after block of rows.

    Rows, because S is written in C order: a block of rows is one stretch of the file, while a column
    would touch a page of the disk for every image.

    Raises:
        FluxscopeError: S holds NaN, Infinity or a negative value (named with its image and feature).
    """
    n, f = S.shape
    for rows in row_blocks(n, f, block):
        yield nonzero_entries(S[rows], rows.start)
        release_pages(S)


def nonzero_entries(block: SMatrix, first_image: int = 0) -> Entries:
    """The entries of a block that are not zero; NaN is not zero, so it is met here and refused."""
    flat = np.flatnonzero(block != 0)  # on one dimension NumPy skips runs of zeros
    image, feature = np.divmod(flat, block.shape[1])
    value = np.asarray(block[image, feature], dtype=np.float32)
    if not (np.isfinite(value) & (value > 0)).all():
        bad = int(np.flatnonzero(~np.isfinite(value) | (value < 0))[0])
        raise FluxscopeError(
            f"S holds {value[bad]} at image {first_image + image[bad]}, feature {feature[bad]}",
            "Codes are finite and never negative: the model or the SAE overflowed (never use fp16), "
            "or the SAE lacks its ReLU. Mend that and collect again.",
        )
    return Entries(image + first_image, feature, value)


def release_pages(S: SMatrix) -> None:
    """Tell the system that the pages of a memory map read so far may go.

    Without it a pass over a 10 GB map counts as 10 GB of this process's memory.
    """
    if not isinstance(S, np.memmap) or S.mode not in ("r", "r+") or not hasattr(mmap, "MADV_DONTNEED"):
        return  # a copy-on-write map would lose its changes
    owner = S.base
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, mmap.mmap):
        owner.madvise(mmap.MADV_DONTNEED)


class TopLists:
    """The k largest entries of every feature among those pushed so far, ties to the lower image index.

    With `group` (an id per image, such as its prompt) a list holds at most one image of each group: the
    group's largest entry. The order of pushes doesn't matter.

    Attributes:
        score: float32 (f, k), descending, -inf where the list is not full.
        image: int32 (f, k), -1 where the list is not full.
    """

    def __init__(self, f: int, k: int, group: Int64[np.ndarray, " n"] | None = None) -> None:
        self.k, self.group = k, group
        self.score = np.full((f, k), -np.inf, np.float32)
        self.image = np.full((f, k), -1, np.int32)
        self._waiting: list[Entries] = []
        self._count = 0

    def push(self, entries: Entries) -> None:
        """Offer entries. They wait until they are as many as the lists themselves: merging then costs
        amortised constant time an entry, and the bar (the k-th score) still rises early."""
        entries = entries.where(entries.value >= self.score[entries.feature, -1])
        self._waiting.append(entries)
        self._count += len(entries.value)
        if self._count >= self.score.size:
            self.settle()

    def settle(self) -> None:
        """Merge what waits into the lists."""
        waiting, self._waiting, self._count = self._waiting, [], 0
        touched = np.unique(np.concatenate([e.feature for e in waiting])) if waiting else np.empty(0, int)
        if not len(touched):
            return
        merged = self._best(self._held(touched), *waiting)
        first = np.searchsorted(merged.feature, merged.feature)
        rank = np.arange(len(first)) - first
        kept, rank = merged.where(rank < self.k), rank[rank < self.k]
        self.score[touched], self.image[touched] = -np.inf, -1
        self.score[kept.feature, rank] = kept.value
        self.image[kept.feature, rank] = kept.image

    def _held(self, features: Int64[np.ndarray, " m"]) -> Entries:
        image = self.image[features]
        row, column = np.nonzero(image >= 0)
        return Entries(image[row, column].astype(np.int64), features[row], self.score[features[row], column])

    def _best(self, *parts: Entries) -> Entries:
        """All entries by feature, then descending value, then image; only the first of each group.

        Values are never negative, so their bits order as they do, and one 64-bit key holds feature and
        value: a third of the time of sorting by three keys.
        """
        image = np.concatenate([p.image for p in parts])
        feature = np.concatenate([p.feature for p in parts])
        value = np.concatenate([p.value for p in parts])
        descending = np.uint64(0xFFFFFFFF) - value.view(np.uint32)
        order = np.lexsort((image, feature.astype(np.uint64) << np.uint64(32) | descending))
        entries = Entries(image, feature, value).where(order)
        if self.group is None:
            return entries
        pair = entries.feature * (int(self.group.max()) + 1) + self.group[entries.image]
        first = np.unique(pair, return_index=True)[1]  # a group's first entry is its best
        return entries.where(np.sort(first))
