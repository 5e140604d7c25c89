"""Zarr arrays that are written by appending and read as if somebody had damaged them.

Zarr gives a chunk that is not there as zeros. Here every chunk is written, even one of zeros alone, and a
missing one is an error when the array is opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
import zarr.codecs

from fluxscope.errors import RunDirError, machine_fault
from fluxscope.files import explain_os_error
from fluxscope.run.inputs import command_to_collect_anew

INDEX = "by_feature"
"""The folder of an index in that of its store."""

MAX_CHUNK = 1 << 24
"""Entries; no chunk of ours is larger, and a larger one is not read."""


def make_group(path: Path, attributes: dict[str, Any]) -> None:
    """Make an empty group where there is none; what lies there already stays."""
    if not (path / "zarr.json").is_file():
        try:
            zarr.open_group(path, mode="a", attributes=attributes)
        except OSError as error:
            raise explain_os_error(error, path) from error


def open_group(path: Path, writable: bool = False) -> zarr.Group:
    """Open a group that is there.

    Raises:
        RunDirError: its zarr.json is emptied, cut short or about something else.
    """
    try:
        return zarr.open_group(path, mode="r+" if writable else "r")
    except Exception as error:  # whatever a damaged file brings about inside Zarr
        told = damaged(path / "zarr.json", "cannot be read", error)
        raise machine_fault(error, path, "read") or told from error


def whole_number(group: zarr.Group, path: Path, name: str) -> int:
    """An attribute of a group that must be a number of 0 or more.

    Raises:
        RunDirError: it is missing or something else.
    """
    value = group.attrs.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise damaged(path / "zarr.json", f"does not say {name}")
    return value


class Column:
    """A one-dimensional array of a group, appended to and read by ranges.

    Raises:
        RunDirError: it is missing, damaged, or of another type.
    """

    def __init__(self, group: zarr.Group, path: Path, name: str, dtypes: tuple[str, ...]) -> None:
        self.path = path / name
        try:
            array = group[name]
        except Exception as error:
            told = damaged(self.path / "zarr.json", "cannot be read", error)
            raise machine_fault(error, self.path, "read") or told from error
        if not isinstance(array, zarr.Array) or array.ndim != 1 or str(array.dtype) not in dtypes:
            raise damaged(self.path / "zarr.json", f"describes no list of {' or '.join(dtypes)}")
        if not 0 < array.chunks[0] <= MAX_CHUNK:
            raise damaged(self.path / "zarr.json", f"speaks of chunks of {array.chunks[0]} entries")
        self._array = array.with_config({"write_empty_chunks": True})

    @classmethod
    def create(cls, group: zarr.Group, path: Path, name: str, dtype: str, chunk: int) -> Column:
        """Make an empty one."""
        squeeze = zarr.codecs.BloscCodec(cname="zstd", clevel=5, shuffle="shuffle")
        group.create_array(name, shape=(0,), dtype=dtype, chunks=(chunk,), compressors=squeeze)
        return cls(group, path, name, (dtype,))

    def __len__(self) -> int:
        return int(self._array.shape[0])

    @property
    def chunk(self) -> int:
        """Entries of a chunk."""
        return int(self._array.chunks[0])

    def resize(self, length: int) -> None:
        self._array.resize((length,))

    def write(self, first: int, values: npt.NDArray[np.generic]) -> None:
        """Put values at the end, which is entry `first`."""
        self._array.resize((first + len(values),))
        if len(values):
            self._array[first:] = values

    def read(self, first: int, last: int) -> npt.NDArray[np.generic]:
        """Entries first, ..., last - 1.

        Raises:
            RunDirError: a chunk of them cannot be read.
        """
        if last <= first:
            return np.zeros(0, self._array.dtype)
        try:
            found = np.asarray(self._array[first:last])
        except Exception as error:
            chunks = range(first // self.chunk, (last - 1) // self.chunk + 1)
            named = self.chunk_path(chunks[0]) if len(chunks) == 1 else self.path / "c"
            raise machine_fault(error, named, "read") or damaged(named, "cannot be read", error) from error
        if len(found) != last - first:
            raise damaged(self.path / "zarr.json", f"lists {len(self)} entries, not {last} or more")
        return found

    def chunk_path(self, number: int) -> Path:
        return self.path / self._array.metadata.encode_chunk_key((number,))

    def missing(self, length: int) -> list[int]:
        """The numbers of the chunks that the first `length` entries need and that are not there."""
        numbers = range(-(-length // self.chunk))
        return [number for number in numbers if not self.chunk_path(number).is_file()]


def damaged(path: Path, what: str, error: Exception | None = None) -> RunDirError:
    """The error of a damaged file of a run's codes, with what to do: an index can be spared, codes cannot."""
    reason = f" ({' '.join(str(error).split())[:100]})" if error and str(error) else ""
    folders = {parent.name: parent for parent in reversed((path, *path.parents))}
    if INDEX in folders:
        hint = f"Delete the folder {folders[INDEX]}: single features are then found by reading all codes."
    else:
        root = folders["codes.zarr"].parent if "codes.zarr" in folders else path.parent
        hint = f"Make the codes anew: {command_to_collect_anew(root)}"
    return RunDirError(f"{path} {what}{reason}", hint)
