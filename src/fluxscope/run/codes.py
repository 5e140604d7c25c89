"""Token-level sparse codes on disk: looked at once, looked up for ever.

`codes.zarr` is a Zarr hierarchy of groups: the root, a group a site, and in it a group a denoising step,
`codes.zarr/<site>/step_<index>/`. That one holds the codes of every token of every image, as a CSR matrix
whose rows are (image, token) pairs, and once the collection is whole the same by feature (by_feature.py):

    indptr   int64  (n_images * n_tokens + 1)   row r is feature[indptr[r]:indptr[r+1]]
    feature  int32  (nnz)                       feature ids, ascending within a row
    value    float32 (nnz)                      their codes, all above 0

Rows are appended image by image. A chunk is written beside its place and renamed, and `indptr` is written
last, so that a killed writer leaves at most rows that `truncate` takes away.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from fluxscope.errors import MissingInputError, RunDirError
from fluxscope.files import explain_os_error
from fluxscope.run.arrays import INDEX, Column, damaged, make_group, open_group, whole_number
from fluxscope.run.by_feature import (
    QUANTILES,
    Block,
    FeatureIndex,
    Rows,
    Values,
    is_index_of,
    percentiles,
    write_index,
)
from fluxscope.sae.codes import SparseCodes

FORMAT_VERSION = 2
"""Of every group's attributes. Stores of the first version had no groups above them, and said less."""

ROWS_PER_CHUNK = 1 << 16
ENTRIES_PER_CHUNK = 1 << 18
ENTRIES_PER_BLOCK = 1 << 21


class CodeStore:
    """The codes of one site at one denoising step.

    Opening it looks whether all is there; reading checks what is read.

    Raises:
        MissingInputError: nothing is stored there.
        RunDirError: a file of it is missing or damaged; the error names it.
    """

    def __init__(self, root: Path | str, site: str, step_index: int) -> None:
        self._open(Path(root), site, step_index, writable=False)
        self.check()

    def _open(self, root: Path, site: str, step_index: int, writable: bool) -> None:
        self.path = root / site / f"step_{step_index}"
        if not (self.path / "zarr.json").is_file():
            raise MissingInputError(
                f"no codes of {site} at step {step_index} in {root}",
                "Run step 1 (collect) with this site, step and SAE.",
                redo="collect",
            )
        group = open_group(self.path, writable)
        self.n_tokens = whole_number(group, self.path, "n_tokens")
        self.n_features = whole_number(group, self.path, "n_features")
        self._indptr = Column(group, self.path, "indptr", ("int64",))
        self._feature = Column(group, self.path, "feature", ("int32",))
        self._value = Column(group, self.path, "value", ("float32",))
        if not self.n_tokens or not len(self._indptr):
            raise damaged(self.path, "is a store without rows")

    @classmethod
    def create(
        cls, root: Path | str, site: str, step_index: int, n_tokens: int, n_features: int
    ) -> CodeStore:
        """Make an empty store, or open the one that is there and holds codes of the same widths.

        It is not checked before `truncate` has taken away what a killed writer left.
        """
        path = Path(root) / site / f"step_{step_index}"
        make_group(Path(root), {"format": "fluxscope codes", "format_version": FORMAT_VERSION})
        make_group(path.parent, {"site": site, "format_version": FORMAT_VERSION})
        if not (path / "zarr.json").is_file():
            _make_store(path, site, step_index, n_tokens, n_features)
        store = cls.__new__(cls)
        store._open(Path(root), site, step_index, writable=True)
        if (store.n_tokens, store.n_features) != (n_tokens, n_features):
            raise RunDirError(
                f"{path} holds codes of {store.n_tokens} tokens x {store.n_features} features, "
                f"not {n_tokens} x {n_features}",
                "Choose a new out_dir, or collect anew.",
                redo="collect --force",
            )
        return store

    @property
    def n_images(self) -> int:
        return (len(self._indptr) - 1) // self.n_tokens

    @property
    def nnz(self) -> int:
        return int(self._indptr.read(len(self._indptr) - 1, len(self._indptr))[0])

    def check(self) -> None:
        """See whether all chunks are there, and whether the arrays fit together.

        Raises:
            RunDirError: a chunk is missing, or the lengths contradict each other.
        """
        rows, nnz = len(self._indptr) - 1, self.nnz
        for number in self._indptr.missing(rows + 1):
            # The first version left chunks of zeros out: so they are where no token has a code yet.
            after = (number + 1) * self._indptr.chunk
            if self._indptr.read(after, after + 1)[0] if after <= rows else len(self._value):
                raise damaged(self._indptr.chunk_path(number), "is missing")
        if rows % self.n_tokens:
            raise damaged(self._indptr.path, f"has {rows} rows, no multiple of {self.n_tokens} tokens")
        if not 0 <= nnz <= min(len(self._feature), len(self._value)):
            raise damaged(self._indptr.path, f"ends at entry {nnz} of {len(self._feature)}")
        for column in (self._feature, self._value):
            for number in column.missing(nnz):
                raise damaged(column.chunk_path(number), "is missing")

    def append(self, codes: SparseCodes) -> None:
        """Add the codes of whole images."""
        assert codes.n_tokens % self.n_tokens == 0 and codes.n_features == self.n_features
        self._forget_index()
        start = self.nnz
        indptr, feature, value = codes.numpy()
        try:
            self._feature.write(start, feature)
            self._value.write(start, value)
            self._indptr.write(len(self._indptr), indptr[1:] + start)
        except OSError as error:
            raise explain_os_error(error, self.path) from error

    def truncate(self, n_images: int) -> None:
        """Keep the first `n_images` only, remove what a killed writer left, and check what stays.

        Raises:
            RunDirError: fewer images are stored, or a file is damaged.
        """
        if n_images > self.n_images:
            raise RunDirError(
                f"{self.path} holds the codes of {self.n_images} images, but the manifest lists {n_images}",
                "The folder's files do not fit together. Collect anew.",
                redo="collect --force",
            )
        if n_images < self.n_images:
            self._forget_index()
        self._indptr.resize(n_images * self.n_tokens + 1)
        self.check()
        nnz = self.nnz
        for column in (self._feature, self._value):
            column.resize(nnz)
        for leftover in self.path.rglob("*.partial"):
            leftover.unlink()

    def images(self, first: int, last: int) -> SparseCodes:
        """The codes of images first, ..., last - 1.

        Raises:
            RunDirError: what is stored of them cannot be codes.
        """
        pointers = self._indptr.read(first * self.n_tokens, last * self.n_tokens + 1).astype(np.int64)
        begin, end = int(pointers[0]), int(pointers[-1])
        if begin < 0 or (np.diff(pointers) < 0).any() or end > min(len(self._feature), len(self._value)):
            raise damaged(self._indptr.path, f"does not ascend over images {first} to {last - 1}")
        feature = self._feature.read(begin, end).astype(np.int32)
        value = self._value.read(begin, end).astype(np.float32)
        ascending = np.ones(len(feature), bool)
        ascending[1:] = feature[1:] > feature[:-1]
        starts = pointers[:-1] - begin
        ascending[starts[starts < len(feature)]] = True  # a row begins anew
        if not (ascending & (feature >= 0) & (feature < self.n_features)).all():
            raise damaged(self._feature.path, f"lists no features in images {first} to {last - 1}")
        if not (np.isfinite(value) & (value > 0)).all():
            raise damaged(self._value.path, f"holds codes that are none in images {first} to {last - 1}")
        return SparseCodes.from_numpy(pointers - begin, feature, value, self.n_features)

    def image(self, index: int) -> SparseCodes:
        """The codes of one image, by its place in the manifest."""
        if not 0 <= index < self.n_images:
            raise MissingInputError(
                f"image {index} is not among the {self.n_images} whose codes are stored in {self.path}",
                "Run step 1 to its end.",
                redo="collect",
            )
        return self.images(index, index + 1)

    def blocks(self, images_per_block: int = 64) -> Iterator[tuple[int, SparseCodes]]:
        """All codes, a block of images at a time: (index of the block's first image, codes)."""
        for first in range(0, self.n_images, images_per_block):
            yield first, self.images(first, min(first + images_per_block, self.n_images))

    # --- one feature of the whole run ---
    @property
    def _index_path(self) -> Path:
        return self.path / INDEX

    @property
    def is_indexed(self) -> bool:
        """Whether single features are read without the rest."""
        return is_index_of(self._index_path, self.nnz, self.n_images)

    def write_index(self) -> None:
        """Write the codes once more by feature, unless that is done; memory stays bounded."""
        if not self.is_indexed:
            self._forget_index()
            n_rows = self.n_images * self.n_tokens
            write_index(self._index_path, self._entries, self.n_features, n_rows, self.n_images)

    def columns(self, features: Sequence[int]) -> dict[int, tuple[Rows, Values]]:
        """Where features are active in the whole run, and how strongly.

        Args:
            features: each from 0 to n_features - 1.

        Returns:
            for each feature the rows (image x n_tokens + token, ascending) and the codes there.
        """
        if self.is_indexed:
            index = FeatureIndex(self._index_path, self.n_features, self.nnz)
            return {f: index.column(f, self.n_images * self.n_tokens) for f in features}
        found: dict[int, list[tuple[Rows, Values]]] = {f: [] for f in features}
        for row, feature, value in self._entries():
            for f, parts in found.items():
                here = feature == f
                parts.append((row[here], value[here]))
        return {f: _joined(parts) for f, parts in found.items()}

    def column(self, feature: int) -> tuple[Rows, Values]:
        """Where one feature is active in the whole run, and how strongly."""
        return self.columns([feature])[feature]

    def feature_quantiles(self, features: Sequence[int]) -> Values:
        """QUANTILES of features' codes over the tokens where they are active, (n, 7); NaN where never."""
        if self.is_indexed:
            return FeatureIndex(self._index_path, self.n_features, self.nnz).quantiles(features)
        found = np.full((len(features), len(QUANTILES)), np.nan, np.float32)
        columns = self.columns(features)
        for place, feature in enumerate(features):
            values = np.sort(columns[feature][1])
            if len(values):
                found[place] = percentiles(values, np.array([0]), np.array([len(values)]))[0]
        return found

    def _entries(self) -> Iterator[Block]:
        """All entries, a few million at a time."""
        an_image = max(1, self.nnz // max(1, self.n_images))
        for first, codes in self.blocks(max(1, ENTRIES_PER_BLOCK // an_image)):
            indptr, feature, value = codes.numpy()
            rows = np.repeat(np.arange(codes.n_tokens, dtype=np.int64), np.diff(indptr))
            yield rows + first * self.n_tokens, feature, value

    def _forget_index(self) -> None:
        """Take the index away, at one stroke, before the codes change: it must never be of other codes."""
        if self._index_path.is_dir():
            aside = self._index_path.with_name(f".{INDEX}.{os.getpid()}.tmp")
            shutil.rmtree(aside, ignore_errors=True)
            self._index_path.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)


def _joined(parts: list[tuple[Rows, Values]]) -> tuple[Rows, Values]:
    rows = [row for row, _ in parts] or [np.zeros(0, np.int64)]
    values = [value for _, value in parts] or [np.zeros(0, np.float32)]
    return np.concatenate(rows), np.concatenate(values)


def _make_store(path: Path, site: str, step_index: int, n_tokens: int, n_features: int) -> None:
    """Make the empty arrays beside their place, and rename: a killed maker leaves no half of a store."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    attributes: dict[str, Any] = {"site": site, "step": step_index, "format_version": FORMAT_VERSION}
    attributes |= {"n_tokens": n_tokens, "n_features": n_features}
    try:
        shutil.rmtree(beside, ignore_errors=True)
        group = zarr.open_group(beside, mode="w", attributes=attributes)
        Column.create(group, beside, "feature", "int32", ENTRIES_PER_CHUNK)
        Column.create(group, beside, "value", "float32", ENTRIES_PER_CHUNK)
        Column.create(group, beside, "indptr", "int64", ROWS_PER_CHUNK).write(0, np.zeros(1, np.int64))
        beside.rename(path)
    except OSError as error:
        raise explain_os_error(error, path) from error
