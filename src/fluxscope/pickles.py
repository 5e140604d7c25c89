"""What a torch checkpoint is made of, looked at before torch reads it.

`weights_only` runs no foreign code, yet it calls what torch itself allows: a checkpoint of 800 bytes may ask
for `bytearray(10**11)`, and an archive of a megabyte may unfold to a terabyte. So the archive's table of
contents and the names in its pickle are read first; nothing is allocated for them.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from fluxscope.errors import CheckpointError, damaged_checkpoint, machine_fault

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
