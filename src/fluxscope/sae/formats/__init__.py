"""Checkpoint formats: one file each, and one way in.

`load(path)` reads any of them; `describe(path)` says what a file holds. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fluxscope.errors import CheckpointError
from fluxscope.sae.base import LinearSae
from fluxscope.sae.formats import native
from fluxscope.sae.formats.format import Format

FORMATS: tuple[Format, ...] = (native.FORMAT,)
"""Every format, in the order in which they are tried. A new one is a file of its own and a line here."""


@dataclass(frozen=True)
class SaeInfo:
    """What a checkpoint said about itself.

    Args:
        path: the file that was read.
        format: its format's name.
        architecture: "topk", "relu", ...
        input_dim, hidden_dim: d and f.
        config: the checkpoint's config, completed with what its weights and folder name tell.
    """

    path: Path
    format: str
    architecture: str
    input_dim: int
    hidden_dim: int
    config: dict[str, Any]

    @property
    def k(self) -> int | None:
        return self.config.get("topk_k")

    @property
    def layer(self) -> int | None:
        return self.config.get("layer")

    @property
    def timestep(self) -> int | None:
        return self.config.get("timestep")

    def sha256(self) -> str:
        """Hash of the file's bytes, in hexadecimal."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def load(path: Path | str, device: torch.device | str = "cpu") -> tuple[LinearSae, SaeInfo]:
    """Read an SAE of any known format, in evaluation mode and without gradients.

    Raises:
        CheckpointError: the file is missing, damaged, hostile, unknown or contradicts itself.
    """
    path = Path(path)
    if path.is_dir() and (path / "sae_best.pt").is_file():
        path = path / "sae_best.pt"
    form = next((form for form in FORMATS if form.recognise(path)), native.FORMAT)  # native explains refusals
    sae, config = form.read(path)
    info = SaeInfo(path, form.name, sae.architecture, sae.input_dim, sae.hidden_dim, config)
    return sae.to(device).requires_grad_(False), info


def save(
    path: Path | str, sae: LinearSae, config: dict[str, Any] | None = None, form: str = "fluxscope"
) -> None:
    """Write an SAE in the named format.

    Args:
        config: plain entries to keep beside the weights (layer, timestep, ...).

    Raises:
        CheckpointError: the format is unknown or only read.
    """
    writers = {f.name: f.write for f in FORMATS if f.write is not None}
    if form not in writers:
        raise CheckpointError(f"no SAE is written in format '{form}'", f"Known are {', '.join(writers)}.")
    writers[form](Path(path), sae, config or {})


def describe(path: Path | str) -> list[tuple[str, str]]:
    """(label, value) lines about a checkpoint, for people to read."""
    sae, info = load(path)
    encoder, decoder = sae.encoder.weight.norm(dim=1), sae.decoder.weight.norm(dim=0)
    lines = [
        ("file", str(info.path)),
        ("format", info.format),
        ("architecture", info.architecture),
        ("input width d", str(info.input_dim)),
        ("features f", f"{info.hidden_dim} (x{info.hidden_dim / info.input_dim:g})"),
        ("active features k", str(info.k) if info.k else "not fixed"),
        ("layer", _or_unknown(info.layer)),
        ("step (1-based)", _or_unknown(info.timestep)),
        ("decoder norms", _span(decoder)),
        ("encoder norms", _span(encoder)),
        ("pre_bias norm", f"{float(sae.pre_bias.norm()):.4g}"),
        ("size", f"{info.path.stat().st_size / 2**20:.2f} MiB"),
        ("sha256", info.sha256()),
    ]
    return lines + [(f"config.{name}", str(value)) for name, value in sorted(info.config.items())]


def _or_unknown(value: Any) -> str:
    return "not told" if value is None else str(value)


def _span(norms: torch.Tensor) -> str:
    return f"{float(norms.min()):.4g} to {float(norms.max()):.4g}, mean {float(norms.mean()):.4g}"


__all__ = ["FORMATS", "Format", "SaeInfo", "describe", "load", "save"]
