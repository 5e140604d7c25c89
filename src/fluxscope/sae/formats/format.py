"""What every checkpoint format offers, and the checks that every import passes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fluxscope import files
from fluxscope.errors import CheckpointError, FluxscopeError
from fluxscope.sae.base import LinearSae

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
            raise CheckpointError(f"checkpoint not found: {path}", "Check the path in the settings.")
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


@dataclass(frozen=True)
class Imported:
    """An SAE read from a file, beside the file's own formula.

    Args:
        sae: ours.
        config: what the file said, as plain values.
        encode, decode: what the library that wrote the file computes, on the file's own tensors.
    """

    sae: LinearSae
    config: dict[str, Any]
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Format:
    """One checkpoint format.

    Args:
        name: as users name it.
        recognise: whether a file has this form.
        read: reads it, on the CPU, in fp32.
        write: (path, SAE, further config entries) -> None; None where the format is only read.
        weights: name of the weights' file, where a checkpoint is a folder.
    """

    name: str
    recognise: Callable[[Candidate], bool]
    read: Callable[[Candidate], Imported]
    write: Callable[[Path, LinearSae, Mapping[str, Any]], None] | None = None
    weights: str | None = None


@dataclass(frozen=True)
class Parts:
    """Four tensors as files hold them, in our orientation.

    Args:
        encoder: (f, d).
        bias: (f).
        decoder: (f, d).
        decoder_bias: (d).
        centred: whether the encoder subtracts decoder_bias from its input.
    """

    encoder: Float[Tensor, "f d"]
    bias: Float[Tensor, " f"]
    decoder: Float[Tensor, "f d"]
    decoder_bias: Float[Tensor, " d"]
    centred: bool = True

    @torch.no_grad()
    def fill(self, sae: LinearSae) -> LinearSae:
        """Put the tensors into an SAE of ours, which always centres: W x + b = W (x - c) + (b + W c)."""
        bias = self.bias.double()
        if not self.centred:
            bias = bias + self.encoder.double() @ self.decoder_bias.double()
        sae.pre_bias.copy_(self.decoder_bias)
        sae.encoder.weight.copy_(self.encoder)
        sae.encoder.bias.copy_(bias)
        sae.decoder.weight.copy_(self.decoder.T)
        return sae

    def imported(
        self, sae: LinearSae, config: dict[str, Any], activation: Callable[[Tensor], Tensor]
    ) -> Imported:
        """The filled SAE beside the formula that these tensors stand for."""

        def encode(x: Tensor) -> Tensor:
            return activation((x - self.decoder_bias if self.centred else x) @ self.encoder.T + self.bias)

        def decode(code: Tensor) -> Tensor:
            return code @ self.decoder + self.decoder_bias

        return Imported(self.fill(sae), config, encode, decode)


def keep_topk(k: int) -> Callable[[Tensor], Tensor]:
    """The k largest pre-activations of a row, those below zero set to zero."""

    def activation(pre: Tensor) -> Tensor:
        value, place = torch.relu(pre).topk(k, dim=-1)
        return torch.zeros_like(pre).scatter(-1, place, value)

    return activation


def keep_above(threshold: Tensor) -> Callable[[Tensor], Tensor]:
    """Pre-activations above a threshold (not below zero)."""
    return lambda pre: torch.relu(pre) * (pre > threshold)


def require(state: Mapping[str, Any], names: tuple[str, ...], path: Path) -> dict[str, Tensor]:
    """The named tensors of a state dict, as fp32.

    Raises:
        CheckpointError: one is missing, is no tensor, or holds NaN or infinity.
    """
    missing = [name for name in names if not isinstance(state.get(name), Tensor)]
    if missing:
        raise CheckpointError(
            f"{path} lacks {', '.join(missing)}",
            f"It holds {', '.join(sorted(map(str, state)))[:200] or 'nothing'}: is it an SAE's checkpoint?",
        )
    tensors = {name: state[name].detach().to(torch.float32) for name in names}
    for name, tensor in tensors.items():
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise CheckpointError(
                f"{name} in {path} holds {bad} NaN or infinite values", "Its training diverged: use another."
            )
    return tensors


def require_shape(tensor: Tensor, shape: tuple[int, ...], name: str, path: Path) -> None:
    """Raises CheckpointError when a tensor has another shape, saying so when it is merely transposed."""
    if tuple(tensor.shape) == shape:
        return
    wanted, found = (" x ".join(map(str, s)) or "one number" for s in (shape, tensor.shape))
    if tuple(tensor.shape) == shape[::-1]:
        raise CheckpointError(
            f"{name} in {path} is transposed: {found}, expected {wanted}", "Store it the other way round."
        )
    raise CheckpointError(
        f"{name} in {path} is {found}, expected {wanted}", "Its tensors come from different SAEs."
    )


def checked_parts(
    state: Mapping[str, Any],
    names: tuple[str, str, str, str],
    path: Path,
    encoder_by_latent: bool,
    decoder_by_latent: bool,
    centred: bool = True,
) -> Parts:
    """The four tensors of a file, with their shapes and orientation checked.

    Args:
        names: of encoder, encoder bias, decoder and decoder bias in the file.
        encoder_by_latent, decoder_by_latent: whether the file keeps the matrix as (f, d) or as (d, f).
        centred: whether the encoder subtracts the decoder bias.

    Raises:
        CheckpointError: a tensor is missing, of another shape, transposed, or holds NaN.
    """
    tensors = require(state, names, path)
    encoder, bias, decoder, decoder_bias = (tensors[name] for name in names)
    for name, vector in ((names[1], bias), (names[3], decoder_bias)):
        if vector.ndim != 1 or len(vector) == 0:
            raise CheckpointError(
                f"{name} in {path} has shape {tuple(vector.shape)}, expected a vector",
                "It is not an SAE's checkpoint.",
            )
    f, d = len(bias), len(decoder_bias)
    for name, matrix, by_latent in (
        (names[0], encoder, encoder_by_latent),
        (names[2], decoder, decoder_by_latent),
    ):
        require_shape(matrix, (f, d) if by_latent else (d, f), name, path)
    encoder = encoder if encoder_by_latent else encoder.T
    decoder = decoder if decoder_by_latent else decoder.T
    _check_square_orientation(encoder, decoder, (names[0], names[2]), path)
    return Parts(encoder, bias, decoder, decoder_bias, centred)


def _check_square_orientation(encoder: Tensor, decoder: Tensor, names: tuple[str, str], path: Path) -> None:
    """Tell a transposed matrix when f = d and shapes can't.

    A trained encoder row looks along its own decoder row, and decoder rows (one a latent) have unit norm.

    Raises:
        CheckpointError: the other orientation of one or both fits the checkpoint clearly better.
    """
    if encoder.shape[0] != encoder.shape[1]:
        return
    decoder_turned = _unit_rows(decoder.T) and not _unit_rows(decoder)
    as_stored, one_turned = _alignment(encoder, decoder), _alignment(encoder.T, decoder)
    if one_turned > 0.1 and one_turned > 2 * abs(as_stored):
        raise CheckpointError(
            f"{names[1] if decoder_turned else names[0]} in {path} is transposed: "
            "encoder and decoder directions don't match",
            "Store it the other way round.",
        )
    if decoder_turned:
        raise CheckpointError(
            f"{names[1]} in {path} is transposed: latents' directions don't have unit norm, the others do",
            "Store encoder and decoder the other way round.",
        )


def _alignment(encoder: Tensor, decoder: Tensor) -> float:
    """Mean cosine of each latent's encoder and decoder direction."""
    return float(torch.cosine_similarity(encoder, decoder, dim=1).mean())


def _unit_rows(matrix: Tensor) -> bool:
    return bool(torch.allclose(matrix.norm(dim=1), torch.ones(len(matrix)), atol=1e-2))


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


def positive_integer(value: Any, name: str, path: Path) -> int:
    """Raises CheckpointError unless a config's value counts something."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CheckpointError(f"{path} says {name} = {value}", f"Set {name} to the one it was trained with.")
    return value


def unsupported(form: str, sae: LinearSae, known: str) -> FluxscopeError:
    return CheckpointError(
        f"format '{form}' has no place for a {sae.architecture} SAE",
        f"It holds {known}: choose another format.",
    )
