"""Checkpoint formats: one file each, and one way in.

`load(path)` reads any of them; `describe(path)` says what a file holds. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fluxscope.errors import CheckpointError, clear_memory_errors
from fluxscope.sae.base import LinearSae
from fluxscope.sae.config_values import shown
from fluxscope.sae.formats import (
    dictionary_learning,
    diffract,
    native,
    openai,
    sae_lens,
    saev,
    sparsify,
)
from fluxscope.sae.formats.format import Format, Imported
from fluxscope.sae.formats.hub import resolve
from fluxscope.sae.formats.sparsity import odd_sparsity
from fluxscope.sae.formats.stated import Stated
from fluxscope.sae.formats.unread import refuse_unread
from fluxscope.sae.formats.weight_files import NOTHING_STATED, Candidate

FORMATS: tuple[Format, ...] = (
    native.FORMAT,
    dictionary_learning.FORMAT,
    sae_lens.FORMAT,
    sparsify.FORMAT,
    openai.FORMAT,
    saev.FORMAT,
    diffract.FORMAT,
)
"""Every format, in the order in which they are tried. A new one is a file of its own and a line here."""


@dataclass(frozen=True)
class Probe:
    """What happened when 64 random activations went through an SAE that another library wrote.

    Args:
        l0: active features a token.
        code_error, reconstruction_error: largest difference between ours and the library's own formula on
            the file's own tensors, relative to the largest value.
    """

    l0: float
    code_error: float
    reconstruction_error: float


@dataclass(frozen=True)
class SaeInfo:
    """What a checkpoint said about itself.

    Args:
        path: the file that was read.
        format: its format's name.
        architecture: "topk", "relu", ...
        input_dim, hidden_dim: d and f.
        config: the checkpoint's config, completed with what its weights and folder name tell.
        probe: of foreign formats.
        cautions: what its user must know, a sentence each.
    """

    path: Path
    format: str
    architecture: str
    input_dim: int
    hidden_dim: int
    config: dict[str, Any]
    probe: Probe | None = None
    cautions: tuple[str, ...] = ()

    @property
    def k(self) -> int | None:
        return self._count("topk_k")

    @property
    def layer(self) -> int | None:
        return self._count("layer")

    @property
    def timestep(self) -> int | None:
        return self._count("timestep")

    def _count(self, name: str) -> int | None:
        value = self.config.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    @property
    def doubts(self) -> tuple[str, ...]:
        """The cautions, and what the probe found odd."""
        odd = odd_sparsity(self.probe.l0, self.config, "random activations") if self.probe else ()
        return self.cautions + odd

    def sha256(self) -> str:
        """Hash of the file's bytes, in hexadecimal."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


@clear_memory_errors("loading an SAE")
def load(
    path: Path | str,
    device: torch.device | str = "cpu",
    timestep: float | None = None,
    stated: Stated = NOTHING_STATED,
) -> tuple[LinearSae, SaeInfo]:
    """Read an SAE of any known format, in evaluation mode and without gradients.

    Args:
        path: a file, the folder that holds it, or hf://owner/name/file.
        timestep: for SAEs that are conditioned on it, the one to read them at.
        stated: what the file leaves open.

    Raises:
        CheckpointError: the file is missing, damaged, hostile, unknown, of a kind that is not read, leaves
            open what it is, or contradicts itself.
    """
    candidate = Candidate(resolve(path), stated)
    form = recognise(candidate)
    if timestep is None:
        imported = form.read(candidate)
    elif form is diffract.FORMAT:
        imported = diffract.read_at(candidate, timestep)
    else:
        raise CheckpointError(
            f"{path} is not conditioned on the timestep (format {form.name})", "Leave the timestep out."
        )
    sae, foreign = imported.sae.eval().requires_grad_(False), form is not native.FORMAT
    config = sae.config() | imported.config if foreign else imported.config
    info = SaeInfo(
        candidate.path,
        form.name,
        sae.architecture,
        sae.input_dim,
        sae.hidden_dim,
        config,
        probe(imported) if foreign else None,
        imported.cautions,
    )
    return sae.to(device), info


def recognise(candidate: Candidate) -> Format:
    """The format of a file.

    Raises:
        CheckpointError: it has none that we know, or its kind is known and not read.
    """
    refuse_unread(candidate)
    for form in FORMATS:
        if form.recognise(candidate):
            return form
    raise CheckpointError(
        f"{candidate.path} is no SAE checkpoint of a known format",
        f"It holds {', '.join(sorted(map(str, candidate.state)))[:200] or 'nothing'}; "
        f"known formats are {', '.join(form.name for form in FORMATS)}.",
    )


@torch.no_grad()
def probe(imported: Imported, n_tokens: int = 64) -> Probe | None:
    """Encode and decode random activations with ours and with the file's own formula.

    None for an SAE that cannot encode before it is calibrated.
    """
    sae = imported.sae
    if not sae.calibrated:
        return None
    generator = torch.Generator().manual_seed(0)
    x = sae.pre_bias + torch.randn(n_tokens, sae.input_dim, generator=generator)
    ours, theirs = sae.encode(x), imported.encode(x)
    return Probe(
        float((ours > 0).sum()) / n_tokens,
        _relative(ours, theirs),
        _relative(sae.decode(ours), imported.decode(theirs)),
    )


def _relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30))


def save(
    path: Path | str, sae: LinearSae, config: dict[str, Any] | None = None, form: str = "fluxscope"
) -> Path:
    """Write an SAE in the named format.

    Args:
        path: a file; for formats of several files, their folder.
        config: plain entries to keep beside the weights (layer, timestep, ...).

    Returns:
        The file that holds the weights.

    Raises:
        CheckpointError: the format is unknown, only read, or has no place for this architecture.
    """
    writers = {f.name: f for f in FORMATS if f.write is not None}
    if form not in writers:
        raise CheckpointError(f"no SAE is written in format '{form}'", f"Known are {', '.join(writers)}.")
    chosen, path = writers[form], Path(path)
    assert chosen.write is not None
    chosen.write(path, sae, config or {})
    return path / chosen.weights if chosen.weights else path


def describe(
    path: Path | str, timestep: float | None = None, stated: Stated = NOTHING_STATED
) -> list[tuple[str, str]]:
    """(label, value) lines about a checkpoint, for people to read."""
    sae, info = load(path, timestep=timestep, stated=stated)
    lines = [
        ("file", str(info.path)),
        ("format", info.format),
        ("architecture", info.architecture),
        ("input width d", str(info.input_dim)),
        ("features f", f"{info.hidden_dim} (x{info.hidden_dim / info.input_dim:g})"),
        ("active features k", str(info.k) if info.k else "not fixed"),
        ("layer", _or_unknown(info.layer)),
        ("step (1-based)", _or_unknown(info.timestep)),
        ("decoder norms", _span(sae.decoder.weight.norm(dim=0))),
        ("encoder norms", _span(sae.encoder.weight.norm(dim=1))),
        ("pre_bias norm", f"{float(sae.pre_bias.norm()):.4g}"),
        ("size", f"{info.path.stat().st_size / 2**20:.2f} MiB"),
        ("sha256", info.sha256()),
    ]
    if info.probe:
        lines.append(("probe", _probe_line(info.probe)))
    lines += [("caution", caution) for caution in info.doubts]
    return lines + [(f"config.{name}", shown(value)) for name, value in sorted(info.config.items())]


def _probe_line(found: Probe) -> str:
    return (
        f"L0 {found.l0:.1f} on random activations; against the file's own formula codes differ by "
        f"{found.code_error:.1e}, reconstructions by {found.reconstruction_error:.1e} of the largest value"
    )


def _or_unknown(value: Any) -> str:
    return "not stated" if value is None else str(value)


def _span(norms: torch.Tensor) -> str:
    return f"{float(norms.min()):.4g} to {float(norms.max()):.4g}, mean {float(norms.mean()):.4g}"


__all__ = [
    "FORMATS",
    "Format",
    "Probe",
    "SaeInfo",
    "Stated",
    "describe",
    "load",
    "odd_sparsity",
    "probe",
    "save",
]
