"""Reading and writing the files that hold an SAE's tensors, whatever their names mean."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxscope import files
from fluxscope.errors import (
    CheckpointError,
    FluxscopeError,
    MachineError,
    damaged_checkpoint,
    machine_fault,
    no_checkpoint,
)
from fluxscope.sae.formats.stated import Stated

WEIGHT_FILES = ("sae_best.pt", "ae.pt", "sae_weights.safetensors", "sae.safetensors", "sae.pt")
"""Names under which SAEs lie in their folders, in the order in which they are looked for."""
LARGEST_HEADER = 16 * 2**20
"""Bytes of a config, or of a header of safetensors, that are read."""
NOTHING_STATED = Stated()


class Candidate:
    """A file that may hold an SAE, read at most once.

    Args:
        path: the file, or the folder that holds it.
        stated: what the user says of it.

    Raises:
        CheckpointError: there is no such file, or the folder holds no weights of a known name.
    """

    def __init__(self, path: Path, stated: Stated = NOTHING_STATED) -> None:
        try:
            self.path = _weights_at(path)
        except (OSError, ValueError) as error:  # a name that is too long, a folder without rights, NUL
            why = error.strerror if isinstance(error, OSError) else "no file has such a name"
            raise CheckpointError(f"{path} cannot be read ({why})", "See to its name and rights.") from error
        self.stated = stated

    @cached_property
    def header(self) -> dict[str, Any]:
        """The JSON object in the file's first line; empty where there is none."""
        with self.path.open("rb") as file:
            if file.read(1) != b"{":
                return {}
            line = b"{" + file.readline(2**20)
        try:
            return dict(json.loads(line))
        except (ValueError, RecursionError):
            return {}

    @cached_property
    def state(self) -> dict[str, Any]:
        """The file's content: a dictionary of tensors and plain values."""
        if self.path.suffix == ".safetensors":
            return _read_safetensors(self.path)
        return files.read_torch_checkpoint(self.path, skip_line=bool(self.header))

    @cached_property
    def config(self) -> dict[str, Any]:
        """cfg.json or config.json beside the file, or NAME_cfg.json beside NAME.pt; empty without one.

        Raises:
            CheckpointError: it is no JSON object.
        """
        for name in ("cfg.json", "config.json", f"{self.path.stem}_cfg.json"):
            if (self.path.parent / name).is_file():
                return read_config(self.path.parent / name)
        return {}


def _weights_at(path: Path) -> Path:
    if path.is_dir():
        found = [path / name for name in WEIGHT_FILES if (path / name).is_file()]
        if not found:
            raise CheckpointError(
                f"{path} holds no SAE", f"Looked for {', '.join(WEIGHT_FILES)}: name the file itself."
            )
        return found[0]
    if not path.is_file():
        raise no_checkpoint(path)
    return path


def read_config(path: Path) -> dict[str, Any]:
    """A JSON file beside a checkpoint.

    Raises:
        CheckpointError: it is no JSON object, or larger than a config.
    """
    if path.stat().st_size > LARGEST_HEADER:
        raise CheckpointError(f"{path} is no config ({path.stat().st_size} bytes)", "Take it away.")
    try:
        content = files.read_json(path)
    except MachineError:
        raise
    except FluxscopeError as error:
        raise CheckpointError(error.message, "Copy it again, from where the checkpoint came.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object", "It is not the config of an SAE.")
    return content


def _read_safetensors(path: Path) -> dict[str, Any]:
    """Tensors by name. The library checks the sizes in the header against the file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > min(LARGEST_HEADER, path.stat().st_size):
            raise damaged_checkpoint(path)
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, AttributeError) as error:
        raise machine_fault(error, path, "read") or damaged_checkpoint(path) from error


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    files.write_bytes(path, save(contiguous))


def write_torch(path: Path, content: Mapping[str, Any]) -> None:
    with files.atomic_write(path) as file:
        torch.save(dict(content), file)
