"""The codes of a store once more, by feature: one feature of a whole run is read without the rest.

A group `by_feature/` beside the codes, written once when a collection is whole:

    indptr    int64 (n_features + 1)      feature f owns the entries indptr[f], ..., indptr[f+1] - 1
    row       int32 (nnz), or int64       image x n_tokens + token, ascending within a feature
    value     float32 (nnz)               the codes there
    quantile  float32 (n_features x 7)    of a feature's codes over the tokens where it is active; NaN: none

It is sorted outside memory: entries are dealt into files by ranges of features, then each file is sorted.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from fluxscope.files import explain_os_error
from fluxscope.run.arrays import Column, damaged, open_group, whole_number

QUANTILES = (0.0, 50.0, 90.0, 95.0, 99.0, 99.9, 100.0)
"""Percentiles kept of every feature, by np.percentile's linear rule."""

FORMAT_VERSION = 1
ENTRIES_PER_CHUNK = 1 << 17
ENTRIES_IN_MEMORY = 1 << 22
"""How many entries are sorted at a time; more only where one feature has more."""

Rows = npt.NDArray[np.int64]
Values = npt.NDArray[np.float32]
Block = tuple[Rows, npt.NDArray[np.int32], Values]
"""Rows, features and values of a part of the entries, rows ascending from block to block."""


class FeatureIndex:
    """The index of a store.

    Args:
        path: its folder.
        n_features, nnz: the store's.

    Raises:
        RunDirError: it is damaged.
    """

    def __init__(self, path: Path, n_features: int, nnz: int) -> None:
        self.path, self.nnz = path, nnz
        group = open_group(path)
        pointers = Column(group, path, "indptr", ("int64",))
        self._row = Column(group, path, "row", ("int32", "int64"))
        self._value = Column(group, path, "value", ("float32",))
        self._quantile = Column(group, path, "quantile", ("float32",))
        lengths = {pointers: n_features + 1, self._row: nnz, self._value: nnz}
        lengths[self._quantile] = n_features * len(QUANTILES)
        for column, length in lengths.items():
            if len(column) != length:
                raise damaged(column.path, f"holds {len(column)} entries, not {length}")
            if missing := column.missing(length):
                raise damaged(column.chunk_path(missing[0]), "is missing")
        self._indptr = pointers.read(0, n_features + 1).astype(np.int64)
        if self._indptr[0] != 0 or self._indptr[-1] != nnz or (np.diff(self._indptr) < 0).any():
            raise damaged(pointers.path, "does not ascend from 0 to the number of entries")

    def column(self, feature: int, n_rows: int) -> tuple[Rows, Values]:
        """Where a feature is active, and how strongly."""
        first, last = int(self._indptr[feature]), int(self._indptr[feature + 1])
        rows = self._row.read(first, last).astype(np.int64)
        values = self._value.read(first, last).astype(np.float32)
        if len(rows) and not (rows[0] >= 0 and rows[-1] < n_rows and (np.diff(rows) > 0).all()):
            raise damaged(self._row.path, f"gives feature {feature} rows out of order")
        if not (np.isfinite(values) & (values > 0)).all():
            raise damaged(self._value.path, f"gives feature {feature} codes that are none")
        return rows, values

    def quantiles(self, features: Sequence[int]) -> Values:
        """The quantiles of features, (n, 7)."""
        width = len(QUANTILES)
        read = [self._quantile.read(f * width, (f + 1) * width).astype(np.float32) for f in features]
        return np.stack(read) if read else np.zeros((0, width), np.float32)


def in_image(rows: Rows, values: Values, image: int, n_tokens: int) -> tuple[Rows, Values]:
    """What of a feature's column is one image's: the tokens, ascending, and the codes there."""
    begin, end = np.searchsorted(rows, [image * n_tokens, (image + 1) * n_tokens])
    return rows[begin:end] - image * n_tokens, values[begin:end]


def is_index_of(path: Path, nnz: int, n_images: int) -> bool:
    """Whether an index lies there, and is about a store of so many entries and images."""
    if not (path / "zarr.json").is_file():
        return False
    group = open_group(path)
    said = tuple(whole_number(group, path, name) for name in ("nnz", "n_images"))
    return said == (nnz, n_images)


def write_index(
    path: Path, blocks: Callable[[], Iterable[Block]], n_features: int, n_rows: int, n_images: int
) -> None:
    """Sort the entries by feature and write the index; a killed writer leaves none.

    Args:
        path: the index's folder, which must not be there.
        blocks: gives all entries, part by part, each time it is called.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    row_type = "int32" if n_rows <= np.iinfo(np.int32).max else "int64"
    counts = np.zeros(n_features, np.int64)
    for _, feature, _ in blocks():
        counts += np.bincount(feature, minlength=n_features)
    indptr = np.concatenate([[0], np.cumsum(counts)])
    attributes: dict[str, Any] = {"format_version": FORMAT_VERSION, "nnz": int(indptr[-1])}
    attributes |= {"n_images": n_images, "n_features": n_features, "percentiles": list(QUANTILES)}
    try:
        shutil.rmtree(beside, ignore_errors=True)
        group = zarr.open_group(beside, mode="w", attributes=attributes)
        Column.create(group, beside, "indptr", "int64", ENTRIES_PER_CHUNK).write(0, indptr)
        spilled = _deal(beside / "spill", blocks, indptr, row_type)
        _write_sorted(group, beside, spilled, indptr, row_type)
        shutil.rmtree(beside / "spill")
        beside.rename(path)
    except OSError as error:
        raise explain_os_error(error, path) from error


def _deal(
    folder: Path, blocks: Callable[[], Iterable[Block]], indptr: npt.NDArray[np.int64], row_type: str
) -> list[Path]:
    """Deal the entries into files by ranges of features, keeping their order; returns the files."""
    folder.mkdir()
    entry = _entry(row_type)
    bucket_of = _buckets(indptr)
    paths = [folder / f"{number:06d}" for number in range(int(bucket_of[-1]) + 1 if len(bucket_of) else 0)]
    for path in paths:
        path.touch()
    for row, feature, value in blocks():
        bucket = bucket_of[feature]
        order = np.argsort(bucket, kind="stable")
        entries = np.empty(len(row), entry)
        entries["row"], entries["feature"], entries["value"] = row[order], feature[order], value[order]
        ends = np.cumsum(np.bincount(bucket, minlength=len(paths)))
        for path, part in zip(paths, np.split(entries, ends[:-1]), strict=True):
            if len(part):
                with path.open("ab") as file:
                    file.write(part.tobytes())
    return paths


def _buckets(indptr: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The bucket of every feature: neighbours share one while its entries can be sorted in memory."""
    bucket_of = np.zeros(len(indptr) - 1, np.int64)
    bucket = began = 0
    for feature in range(len(bucket_of)):
        if indptr[feature + 1] - began > ENTRIES_IN_MEMORY and indptr[feature] > began:
            bucket, began = bucket + 1, int(indptr[feature])
        bucket_of[feature] = bucket
    return bucket_of


def _write_sorted(
    group: zarr.Group, path: Path, spilled: Sequence[Path], indptr: npt.NDArray[np.int64], row_type: str
) -> None:
    """Sort each file's entries by feature and append them; and the quantiles."""
    rows = Column.create(group, path, "row", row_type, ENTRIES_PER_CHUNK)
    values = Column.create(group, path, "value", "float32", ENTRIES_PER_CHUNK)
    done = 0
    quantiles = np.full((len(indptr) - 1, len(QUANTILES)), np.nan, np.float32)
    for spill in spilled:
        entries = np.fromfile(spill, _entry(row_type))
        spill.unlink()
        order = np.argsort(entries["feature"], kind="stable")  # rows stay in order
        feature, value = entries["feature"][order], entries["value"][order]
        rows.write(done, entries["row"][order])
        values.write(done, value)
        done += len(entries)
        active, starts, counts = np.unique(feature, return_index=True, return_counts=True)
        ascending = value[np.lexsort((value, feature))]
        quantiles[active] = percentiles(ascending, starts, counts)
    Column.create(group, path, "quantile", "float32", ENTRIES_PER_CHUNK).write(0, quantiles.reshape(-1))


def percentiles(
    ascending: Values, starts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """QUANTILES of many lists at once, to the bit as np.percentile(list, q) gives them.

    Args:
        ascending: the lists one after the other, each sorted; none is empty.
        starts, counts: where each begins, and how long it is.
    """
    found = np.empty((len(starts), len(QUANTILES)), np.float32)
    for number, percent in enumerate(QUANTILES):
        place = (counts - 1) * (percent / 100)
        below = np.floor(place).astype(np.int64)
        share = place - below
        low = ascending[starts + below]
        high = ascending[starts + np.minimum(below + 1, counts - 1)]
        gap = high - low
        from_low = low + gap * share.astype(np.float32)
        from_high = high - gap * (1 - share).astype(np.float32)
        found[:, number] = np.where(share >= 0.5, from_high, from_low)
    return found


def _entry(row_type: str) -> np.dtype[np.void]:
    return np.dtype([("row", row_type), ("feature", "int32"), ("value", "float32")])
