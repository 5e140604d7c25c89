"""Token-level sparse codes, and where asked raw activations, on disk: looked at once, looked up for ever.

One group `codes.zarr/<site>/step_<index>/` holds the codes of every image token of every image, as a CSR
matrix whose rows are (image, token) pairs:

    indptr   int64  (n_images * n_tokens + 1)   row r is feature[indptr[r]:indptr[r+1]]
    feature  int32  (nnz)                       feature ids, ascending within a row
    value    float32 (nnz)                      their codes, all above 0

Rows are appended image by image. A chunk is written beside its place and renamed, and `indptr` is written
last, so that a killed writer leaves at most rows that `truncate` takes away.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import zarr
import zarr.codecs
from jaxtyping import Float16

from fluxscope.errors import MissingInputError, RunDirError
from fluxscope.files import explain_os_error
from fluxscope.sae.codes import SparseCodes

ROWS_PER_CHUNK = 1 << 16
ENTRIES_PER_CHUNK = 1 << 18


class CodeStore:
    """The codes of one site at one denoising step.

    Raises:
        MissingInputError: nothing is stored there.
    """

    def __init__(self, root: Path | str, site: str, step_index: int, writable: bool = False) -> None:
        self.path = Path(root) / site / f"step_{step_index}"
        if not (self.path / "zarr.json").is_file():
            raise MissingInputError(
                f"no codes of {site} at step {step_index} in {root}",
                "Run step 1 (collect) with this site, step and SAE.",
            )
        self._group = zarr.open_group(self.path, mode="r+" if writable else "r")
        self.n_tokens: int = int(self._group.attrs["n_tokens"])  # type: ignore[arg-type]
        self.n_features: int = int(self._group.attrs["n_features"])  # type: ignore[arg-type]

    @classmethod
    def create(
        cls, root: Path | str, site: str, step_index: int, n_tokens: int, n_features: int
    ) -> CodeStore:
        """Make an empty store, or open the one that is there and holds codes of the same widths."""
        path = Path(root) / site / f"step_{step_index}"
        if not (path / "zarr.json").is_file():
            _make_group(path, n_tokens, n_features)
        store = cls(root, site, step_index, writable=True)
        if (store.n_tokens, store.n_features) != (n_tokens, n_features):
            raise RunDirError(
                f"{path} holds codes of {store.n_tokens} tokens x {store.n_features} features, "
                f"not {n_tokens} x {n_features}",
                "Choose a new out_dir, or give --force to collect anew.",
            )
        return store

    @property
    def n_images(self) -> int:
        return (self._array("indptr").shape[0] - 1) // self.n_tokens

    @property
    def nnz(self) -> int:
        return int(np.asarray(self._array("indptr")[-1]))

    def _array(self, name: str) -> zarr.Array:
        array = self._group[name]
        assert isinstance(array, zarr.Array)
        return array

    def append(self, codes: SparseCodes) -> None:
        """Add the codes of whole images."""
        assert codes.n_tokens % self.n_tokens == 0 and codes.n_features == self.n_features
        start = self.nnz
        indptr, feature, value = codes.numpy()
        try:
            for name, values in (("feature", feature), ("value", value)):
                array = self._array(name)
                array.resize((start + len(values),))
                array[start:] = values
            self._array("indptr").append(indptr[1:] + start)
        except OSError as error:
            raise explain_os_error(error, self.path) from error

    def truncate(self, n_images: int) -> None:
        """Keep the first `n_images` only, and remove what a killed writer left."""
        if n_images > self.n_images:
            raise RunDirError(
                f"{self.path} holds the codes of {self.n_images} images, but the manifest lists {n_images}",
                "The folder's files do not fit together: give --force to collect anew.",
            )
        self._array("indptr").resize((n_images * self.n_tokens + 1,))
        for name in ("feature", "value"):
            self._array(name).resize((self.nnz,))
        _remove_leftovers(self.path)

    def images(self, first: int, last: int) -> SparseCodes:
        """The codes of images first, ..., last - 1."""
        pointers = np.asarray(self._array("indptr")[first * self.n_tokens : last * self.n_tokens + 1])
        begin, end = int(pointers[0]), int(pointers[-1])
        feature = np.asarray(self._array("feature")[begin:end])
        value = np.asarray(self._array("value")[begin:end])
        return SparseCodes.from_numpy(pointers - begin, feature, value, self.n_features)

    def image(self, index: int) -> SparseCodes:
        """The codes of one image, by its place in the manifest."""
        if not 0 <= index < self.n_images:
            raise MissingInputError(
                f"image {index} is not among the {self.n_images} whose codes are stored in {self.path}",
                "Run step 1 (collect) to its end.",
            )
        return self.images(index, index + 1)

    def blocks(self, images_per_block: int = 64) -> Iterator[tuple[int, SparseCodes]]:
        """All codes, a block of images at a time: (index of the block's first image, codes)."""
        for first in range(0, self.n_images, images_per_block):
            yield first, self.images(first, min(first + images_per_block, self.n_images))


class RawStore:
    """The raw activations of one site at one step: float16 (n_images, n_tokens, d), compressed.

    Half precision holds what FLUX passes (maxima near 1,500) with three digits.
    """

    def __init__(self, root: Path | str, site: str, step_index: int, writable: bool = False) -> None:
        self.path = Path(root) / site / f"step_{step_index}"
        if not (self.path / "zarr.json").is_file():
            raise MissingInputError(
                f"no activations of {site} at step {step_index} in {root}",
                f"Run step 1 (collect) with --sites {site}.",
            )
        array = zarr.open_array(self.path, mode="r+" if writable else "r")
        self._array = array

    @classmethod
    def create(cls, root: Path | str, site: str, step_index: int, n_tokens: int, width: int) -> RawStore:
        """Make an empty store, or open the one that is there."""
        path = Path(root) / site / f"step_{step_index}"
        if not (path / "zarr.json").is_file():
            images = max(1, ENTRIES_PER_CHUNK // (n_tokens * width))
            squeeze = zarr.codecs.BloscCodec(cname="zstd", clevel=3, shuffle="shuffle")
            try:
                zarr.create_array(
                    path,
                    shape=(0, n_tokens, width),
                    dtype="float16",
                    chunks=(images, n_tokens, width),
                    compressors=squeeze,
                )
            except OSError as error:
                raise explain_os_error(error, path) from error
        store = cls(root, site, step_index, writable=True)
        if store._array.shape[1:] != (n_tokens, width):
            raise RunDirError(
                f"{path} holds activations of shape {store._array.shape[1:]}, not {(n_tokens, width)}",
                "Choose a new out_dir, or give --force to collect anew.",
            )
        return store

    @property
    def n_images(self) -> int:
        return int(self._array.shape[0])

    def append(self, activations: Float16[np.ndarray, "b t d"]) -> None:
        """Add the activations of whole images."""
        try:
            self._array.append(activations)
        except OSError as error:
            raise explain_os_error(error, self.path) from error

    def truncate(self, n_images: int) -> None:
        """Keep the first `n_images` at most, and remove what a killed writer left."""
        self._array.resize((min(n_images, self.n_images), *self._array.shape[1:]))
        _remove_leftovers(self.path)

    def images(self, first: int, last: int) -> Float16[np.ndarray, "n t d"]:
        """The activations of images first, ..., last - 1."""
        return np.asarray(self._array[first:last])


def _remove_leftovers(path: Path) -> None:
    """Chunks that a killed writer had not renamed yet."""
    for leftover in path.rglob("*.partial"):
        leftover.unlink()


def _make_group(path: Path, n_tokens: int, n_features: int) -> None:
    """Make the empty arrays beside their place, and rename: a killed maker leaves no half of a store."""
    beside = path.with_name(f".{path.name}.tmp")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        group = zarr.open_group(beside, mode="w", attributes={"n_tokens": n_tokens, "n_features": n_features})
        squeeze = zarr.codecs.BloscCodec(cname="zstd", clevel=5, shuffle="shuffle")
        for name, dtype, chunk in (
            ("feature", "int32", ENTRIES_PER_CHUNK),
            ("value", "float32", ENTRIES_PER_CHUNK),
            ("indptr", "int64", ROWS_PER_CHUNK),
        ):
            group.create_array(name, shape=(0,), dtype=dtype, chunks=(chunk,), compressors=squeeze)
        indptr = group["indptr"]
        assert isinstance(indptr, zarr.Array)
        indptr.append(np.zeros(1, np.int64))
        beside.rename(path)
    except OSError as error:
        raise explain_os_error(error, path) from error
