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
from fluxscope.errors import CheckpointError, no_checkpoint

WEIGHT_FILES = ("sae_best.pt", "ae.pt", "sae_weights.safetensors", "sae.safetensors", "sae.pt")
"""Names under which SAEs lie in their folders, in the order in which they are looked for."""


class Candidate:
    """A file that may hold an SAE, read at most once.

    Args:
        path: the file, or the folder that holds it.

    Raises:
        CheckpointError: there is no such file, or the folder holds no weights of a known name.
    """

    def __init__(self, path: Path) -> None:
        if path.is_dir():
            found = [path / name for name in WEIGHT_FILES if (path / name).is_file()]
            if not found:
                raise CheckpointError(
                    f"{path} holds no SAE", f"Looked for {', '.join(WEIGHT_FILES)}: name the file itself."
                )
            path = found[0]
        if not path.is_file():
            raise no_checkpoint(path)
        self.path = path

    @cached_property
    def header(self) -> dict[str, Any]:
        """The JSON object in the file's first line; empty where there is none."""
        with self.path.open("rb") as file:
            if file.read(1) != b"{":
                return {}
            line = b"{" + file.readline(2**20)
        try:
            return dict(json.loads(line))
        except ValueError:
            return {}

    @cached_property
    def state(self) -> dict[str, Any]:
        """The file's content: a dictionary of tensors and plain values."""
        if self.path.suffix == ".safetensors":
            return _read_safetensors(self.path)
        return files.read_torch_checkpoint(self.path, skip_line=bool(self.header))

    @cached_property
    def config(self) -> dict[str, Any]:
        """cfg.json or config.json beside the file; empty where there is none."""
        for name in ("cfg.json", "config.json"):
            if (self.path.parent / name).is_file():
                content = files.read_json(self.path.parent / name)
                return content if isinstance(content, dict) else {}
        return {}


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged or cut short ({path.stat().st_size} bytes)", "Copy or download it again."
        ) from error


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    files.write_bytes(path, save(contiguous))


def write_torch(path: Path, content: Mapping[str, Any]) -> None:
    with files.atomic_write(path) as file:
        torch.save(dict(content), file)
