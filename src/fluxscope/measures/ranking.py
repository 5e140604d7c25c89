"""Walking a large S once: its nonzero entries in blocks, and the running top list of every feature.

S is mostly zeros (an image activates a few per cent of the features), so everything is computed from its
nonzero entries; the dense matrix is touched by comparisons only, and one block of it at a time.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, UInt64

from fluxscope.errors import FluxscopeError, MissingInputError

SMatrix = Float32[np.ndarray, "n f"]
"""S[i, f]: the largest code of feature f over the image tokens of image i."""

BLOCK_ELEMENTS = 1 << 20
"""Elements of S looked at together: 4 MiB of float32, so that a block stays in the processor's cache."""

RELEASE_BYTES = 1 << 26
"""How much of a memory map may stay mapped behind the walk."""


@dataclass(frozen=True)
class Entries:
    """Some entries of S: S[image[i], feature[i]] == value[i]."""

    image: Int64[np.ndarray, " e"]
    feature: Int64[np.ndarray, " e"]
    value: Float32[np.ndarray, " e"]

    def where(self, mask: np.ndarray) -> Entries:
        return Entries(self.image[mask], self.feature[mask], self.value[mask])

    @property
    def key(self) -> UInt64[np.ndarray, " e"]:
        """Ascending by feature, then descending by value: the bits of floats above zero order as they do."""
        descending = np.uint64(0xFFFFFFFF) - self.value.view(np.uint32)
        return self.feature.astype(np.uint64) << np.uint64(32) | descending


def check_S(S: np.ndarray) -> None:
    """Refuse an S that is no matrix or holds nothing.

    Raises:
        MissingInputError: S has no rows or no columns.
        FluxscopeError: S has another number of dimensions than two, or is not float32.
    """
    if S.ndim != 2 or S.dtype != np.float32:
        raise FluxscopeError(
            f"S is {S.dtype} with {S.ndim} dimensions", "It must be float32 (n_images, n_features)."
        )
    if 0 in S.shape:
        raise MissingInputError(
            f"S is empty: {S.shape[0]} images, {S.shape[1]} features", "Run step 1 first.", redo="collect"
        )


def walk_rows(
    S: SMatrix, bounds: Int64[np.ndarray, " b"], order: Int64[np.ndarray, " m"] | None = None
) -> Iterator[tuple[int, SMatrix]]:
    """Give S in blocks of rows, each with its first row; a block ends at each of the bounds.

    With `order`, row i of the walk is row order[i] of S, of all rows or some. Otherwise nothing is copied.

    Rows, because S is written in C order: a block of rows is one stretch of the file, while a column would
    touch a page of the disk for every image.
    """
    behind = 0
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        block = np.asarray(S[start:stop] if order is None else S[order[start:stop]])  # no memmap: it is slow
        yield start, block
        behind += block.nbytes
        if behind > RELEASE_BYTES:
            release_pages(S)
            behind = 0
    release_pages(S)


def even_bounds(n: int, f: int, block: int | None = None) -> Int64[np.ndarray, " b"]:
    """Bounds of blocks of `block` rows, by default of BLOCK_ELEMENTS elements."""
    rows = block or max(1, BLOCK_ELEMENTS // f)
    return np.append(np.arange(0, n, rows), n)


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


def count_rows(mask: Bool[np.ndarray, "r f"]) -> Int64[np.ndarray, " f"]:
    """How many rows are true in each column; summed as bytes, which is several times faster than NumPy's own
    count along an axis."""
    total = np.zeros(mask.shape[1], np.int64)
    for start in range(0, len(mask), 255):
        total += np.add.reduce(mask[start : start + 255].view(np.uint8), axis=0, dtype=np.uint8)
    return total


def check_values(value: np.ndarray, f: int, first_row: int, place: np.ndarray | None = None) -> None:
    """Refuse NaN, Infinity and negative values.

    Args:
        value: a block of S, or some values of it.
        first_row: the block's first row in S.
        place: where the values lie in the flattened block; by default value is all of it.

    Raises:
        FluxscopeError: naming the image and feature of the first such value.
    """
    if not value.size or (value.min() >= 0 and value.max() < np.inf):  # both are NaN where any value is
        return
    flat = value.reshape(-1)
    bad = int(np.flatnonzero(~(flat >= 0) | ~np.isfinite(flat))[0])
    image, feature = divmod(bad if place is None else int(place[bad]), f)
    raise FluxscopeError(
        f"S holds {flat[bad]} at image {first_row + image}, feature {feature}",
        "Codes are finite and never negative: the model or the SAE overflowed (never use fp16), "
        "or the SAE lacks its ReLU. Mend that and collect anew.",
        redo="collect --force",
    )


class TopLists:
    """The k largest entries of every feature among all that are pushed, ties to the lower image index.

    Entries collect in a pool. Each time it has grown by as much as the lists hold, the k-th largest value of
    every feature becomes its bar, and what lies below leaves the pool: amortised constant time an entry.
    Sorting bare keys for the bars is many times faster than sorting the entries, which happens once, at the
    end. The order of pushes doesn't matter.

    Attributes:
        bar: float32 (f), entries below it cannot enter any more: callers may leave them out.
    """

    def __init__(self, f: int, k: int, least: float = 0.0) -> None:
        self.f, self.k = f, k
        self.bar = np.full(f, least, np.float32)
        self._pool: list[Entries] = []
        self._size, self._limit = 0, k * f // 2

    def push(self, entries: Entries) -> None:
        self._pool.append(entries)
        self._size += len(entries.value)
        if self._size > self._limit:
            self._raise_bars()

    def lists(self) -> tuple[Float32[np.ndarray, "f k"], Int32[np.ndarray, "f k"]]:
        """Scores, descending, and images of every feature; -inf and -1 where a list is not full."""
        best = self._exact(self._merged())
        score = np.full((self.f, self.k), -np.inf, np.float32)
        image = np.full((self.f, self.k), -1, np.int32)
        rank = self._rank(best)
        score[best.feature, rank], image[best.feature, rank] = best.value, best.image
        return score, image

    def _raise_bars(self) -> None:
        entries = self._merged()
        key = np.sort(entries.key)
        first = np.searchsorted(key, np.arange(self.f + 1, dtype=np.uint64) << np.uint64(32))
        full = np.flatnonzero(np.diff(first) >= self.k)
        kth = key[first[full] + self.k - 1].astype(np.uint32)  # the key's lower half
        self.bar[full] = (np.uint32(0xFFFFFFFF) - kth).view(np.float32)
        entries = entries.where(entries.value >= self.bar[entries.feature])
        if len(entries.value) > 2 * self.k * self.f:  # very many ties
            entries = self._exact(entries)
        self._pool, self._size = [entries], len(entries.value)
        self._limit = self._size + self.k * self.f // 2

    def _merged(self) -> Entries:
        nothing = Entries(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
        pool = [nothing, *self._pool]
        return Entries(
            np.concatenate([e.image for e in pool]),
            np.concatenate([e.feature for e in pool]),
            np.concatenate([e.value for e in pool]),
        )

    def _exact(self, entries: Entries) -> Entries:
        ordered = entries.where(np.lexsort((entries.image, entries.key)))
        return ordered.where(self._rank(ordered) < self.k)

    def _rank(self, ordered: Entries) -> Int64[np.ndarray, " e"]:
        count = np.bincount(ordered.feature, minlength=self.f)
        return np.arange(len(ordered.value)) - np.repeat(np.cumsum(count) - count, count)
