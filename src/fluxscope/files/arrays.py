"""Arrays and tensors from files that are not trusted: what they say of themselves is seen to first.

Nothing is unpickled but tensors and plain values. Torch's `weights_only` runs no foreign code, yet it calls
what torch itself allows: a checkpoint of 800 bytes may ask for `bytearray(10**11)`, and an archive of a
megabyte may unfold to a terabyte. So the archive's table of contents and the names in its pickle are read
first; nothing is allocated for them. The header of a `.npy` file may speak of a terabyte too, or of objects.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from fluxscope.errors import CheckpointError, FluxscopeError, damaged_checkpoint, machine_fault
from fluxscope.files.writing import atomic_write

ZIP_START = b"PK\x03\x04"
LEGACY_START = b"\x80\x02\x8a\x0a"
"""Torch's number at the start of what it wrote before version 1.6: five pickles, then bare numbers."""
LARGEST_PICKLE = 64 * 2**20

_HARMLESS = re.compile(
    r"torch\._utils (_rebuild_tensor|_rebuild_tensor_v2|_rebuild_parameter)"
    r"|torch [A-Z][A-Za-z0-9]*Storage|torch (Size|device)|torch\.serialization _get_layout"
    r"|torch (b?float|u?int|bool|complex)[a-z0-9]*|torch (half|double|long|short)"
    r"|collections (OrderedDict|Counter)|_codecs encode|(builtins|__builtin__) set"
)
"""What state dicts and plain values are made of; none of it allocates more than the file holds."""
_CALLS = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}
"""Other ways to name a callable, which torch's own files do without."""


def save_npy(path: Path | str, array: np.ndarray) -> None:
    with atomic_write(path) as file:
        np.save(file, array, allow_pickle=False)


def save_npz(path: Path | str, **arrays: Any) -> None:
    with atomic_write(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


def load_npy(path: Path | str, mmap: bool = False) -> np.ndarray:
    """Read an array, optionally as a read-only memory map.

    Raises:
        FluxscopeError: the file is missing, of another length than it says, or holds pickled objects.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            check_npy(file, path.stat().st_size)
        array: np.ndarray = np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
        return array
    except FileNotFoundError:
        raise FluxscopeError(f"{path} is not there", "Run the step that makes it.") from None
    except Exception as error:  # whatever a header that is no header brings about
        told = FluxscopeError(f"{path} cannot be read ({error})", "Delete it and make it again.")
        raise machine_fault(error, path, "read") or told from None


def load_npz(path: Path | str) -> dict[str, np.ndarray]:
    """Read the arrays that `save_npz` wrote, by their names.

    Raises:
        FluxscopeError: the file is missing, damaged, compressed, or holds pickled objects.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(each.compress_type != zipfile.ZIP_STORED for each in members):
                raise ValueError("it is compressed")
            if sum(each.file_size for each in members) > path.stat().st_size:
                raise ValueError("its parts overlap")
            for member in members:
                with archive.open(member) as file:
                    check_npy(file, member.file_size)
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except FileNotFoundError:
        raise FluxscopeError(f"{path} is not there", "Run the step that makes it.") from None
    except Exception as error:  # whatever a damaged archive brings about
        told = FluxscopeError(f"{path} cannot be read ({error})", "Delete it and make it again.")
        raise machine_fault(error, path, "read") or told from None


def read_torch_checkpoint(path: Path | str, skip_line: bool = False) -> dict[str, Any]:
    """Read a torch checkpoint without ever running what it holds.

    Only tensors and plain containers are accepted (`weights_only=True`); a pickle that names any other
    callable is refused before anything of it runs, and one that would grow while it is read before it does.

    Args:
        skip_line: the checkpoint begins after the file's first line.

    Raises:
        CheckpointError: the file is missing, cut short, not a checkpoint, or would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint not found: {path}", "Check the path in the settings.")
    try:
        with path.open("rb") as file:
            source = io.BytesIO(file.read().partition(b"\n")[2]) if skip_line else file
            check_torch_file(source, path)
            checkpoint = _load_torch(source, path)
    except OSError as error:
        told = CheckpointError(f"{path} cannot be read ({error.strerror})", "See to its rights.")
        raise machine_fault(error, path, "read") or told from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path} holds no dictionary", "It is not a checkpoint of an SAE.")
    return checkpoint


def _load_torch(source: IO[bytes], path: Path) -> Any:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch has to say of a stranger's file
            return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if any(word in str(error) for word in ("Unsupported", "GLOBAL", "WeightsUnpickler")):
            raise more_than_tensors(path) from None
        raise damaged_checkpoint(path) from None
    except Exception as error:  # there is no list of what a malformed file may raise
        raise machine_fault(error, path, "read") or damaged_checkpoint(path) from error


def check_torch_file(file: IO[bytes], path: Path) -> None:
    """Look through a checkpoint without unpacking it; the file is left at its start.

    Raises:
        CheckpointError: it is no torch checkpoint, is damaged, would call more than a state dict needs, or
            would grow while it is read.
    """
    start = file.read(len(ZIP_START))
    if not start:
        raise damaged_checkpoint(path)
    if start == ZIP_START:
        _check_archive(file, path)
    elif start[:1] == b"\x80":
        file.seek(0)
        for _ in range(5 if start == LEGACY_START else 1):
            _check_names(file, path)
    else:
        raise CheckpointError(
            f"{path} is no checkpoint", "Name a file that torch.save wrote, or one of safetensors."
        )
    file.seek(0)


def _check_archive(file: IO[bytes], path: Path) -> None:
    size = file.seek(0, 2)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            _check_entries(entries, size, path)
            pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise CheckpointError(
                    f"{path} is a zip archive, but no checkpoint", "Name the checkpoint in it."
                )
            with archive.open(pickles[0]) as content:
                _check_names(content, path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
        raise machine_fault(error, path, "read") or damaged_checkpoint(path) from error


def _check_entries(entries: list[zipfile.ZipInfo], size: int, path: Path) -> None:
    """Torch stores bare numbers: what is compressed, or overlaps, was made by somebody else."""
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(f"{path} is compressed, which torch's files never are", "Unpack it first.")
    names = [entry.filename for entry in entries]
    if sum(entry.file_size for entry in entries) > size or len(set(names)) < len(names):
        raise damaged_checkpoint(path)
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(f"{path} is a TorchScript program", "Ask its author for a state dict.")
    if any(e.file_size > LARGEST_PICKLE for e in entries if e.filename.endswith("/data.pkl")):
        raise CheckpointError(f"{path} holds more plain values than an SAE has", "It is not opened.")


def _check_names(file: IO[bytes], path: Path) -> None:
    """Refuse a pickle that names what a state dict does not need; it is read, never run."""
    try:
        named = list(_names(file))
    except Exception as error:  # a malformed pickle may raise anything
        raise machine_fault(error, path, "read") or damaged_checkpoint(path) from error
    for name in named:
        if not _HARMLESS.fullmatch(name):
            raise more_than_tensors(path)


def _names(file: IO[bytes]) -> Iterator[str]:
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL":
            yield str(argument)
        elif opcode.name in _CALLS:
            yield opcode.name


def more_than_tensors(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} holds more than tensors and plain values, and was not opened",
        "It could run code. Ask its author for a state dict or a safetensors file.",
    )


def check_npy(file: IO[bytes], size: int) -> None:
    """Look whether an array's header fits the bytes behind it; the file is left at its start.

    Args:
        size: of the file or archive member, in bytes.

    Raises:
        ValueError: it is no `.npy` file, holds objects, or is longer or shorter than its header says.
    """
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read:
        raise ValueError(f"its version is {version}")
    shape, _, dtype = read[version](file)
    if dtype.hasobject or dtype.names is not None:
        raise ValueError(f"it holds {dtype}")
    if any(length < 0 for length in shape):
        raise ValueError(f"its shape is {shape}")
    if file.tell() + math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"it has {size} bytes, which is not what {dtype} of shape {shape} takes")
    file.seek(0)
