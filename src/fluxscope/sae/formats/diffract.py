"""DifFRACT's SAEs and transcoders for FLUX.1-schnell: a state dict, read.

The published description gives the architecture (`fluxscope.sae.film`), not the names in the file, nor the
order of sine and cosine in the embedding. So the timestep's two layers are told by their shapes, the rest by
the usual names; compare codes with the authors' own before relying on them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fluxscope.errors import CheckpointError
from fluxscope.sae.film import TimestepSparseAutoencoder
from fluxscope.sae.formats.format import Candidate, Format, Imported, checked_parts

_LAYOUTS = (
    (("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"), True, False),
    (("encoder.weight", "b_enc", "decoder.weight", "b_dec"), True, False),
    (("W_enc", "b_enc", "W_dec", "b_dec"), False, True),
)


def recognise(candidate: Candidate) -> bool:
    return not candidate.header and _layout(candidate.state) is not None and len(_film(candidate.state)) == 4


def read(candidate: Candidate) -> Imported:
    """Raises CheckpointError: such a file needs a timestep."""
    raise CheckpointError(
        f"{candidate.path} holds an SAE that is conditioned on the timestep",
        "Say at which timestep to read it.",
    )


def read_at(candidate: Candidate, timestep: float) -> Imported:
    """The ordinary SAE that the file's is at a timestep."""
    film = read_film(candidate)
    return Imported(
        film.at(timestep), {"film_timestep": timestep}, lambda x: film.encode(x, timestep), film.decode
    )


@torch.no_grad()
def read_film(candidate: Candidate) -> TimestepSparseAutoencoder:
    """The SAE with its timestep layers."""
    state, path = candidate.state, candidate.path
    layout = _layout(state)
    if layout is None:
        raise CheckpointError(
            f"{path} is no DifFRACT checkpoint", f"It holds {', '.join(sorted(state))[:200]}."
        )
    names, encoder_by_latent, decoder_by_latent = layout
    parts = checked_parts(state, names, path, encoder_by_latent, decoder_by_latent, centred=False)
    (first, first_bias), (second, second_bias) = _film_layers(state)
    f, d = parts.encoder.shape
    film = TimestepSparseAutoencoder(d, f, first.shape[1], first.shape[0])
    for ours, theirs in (
        (film.encoder.weight, parts.encoder),
        (film.encoder.bias, parts.bias),
        (film.decoder.weight, parts.decoder.T),
        (film.decoder.bias, parts.decoder_bias),
        (film.first.weight, first),
        (film.first.bias, first_bias),
        (film.second.weight, second),
        (film.second.bias, second_bias),
    ):
        ours.copy_(theirs)
    return film.requires_grad_(False)


def _layout(state: dict[str, Any]) -> tuple[tuple[str, str, str, str], bool, bool] | None:
    return next((layout for layout in _LAYOUTS if set(layout[0]) <= set(state)), None)


def _film(state: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors that are neither encoder nor decoder."""
    layout = _layout(state)
    taken = set(layout[0]) if layout else set()
    return {name: t for name, t in state.items() if isinstance(t, Tensor) and t.ndim and name not in taken}


def _film_layers(state: dict[str, Any]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(weight, bias) of the two layers: the second reads what the first writes."""
    rest = list(_film(state).values())
    matrices = [t for t in rest if t.ndim == 2]
    vectors = [t for t in rest if t.ndim == 1]
    for first, second in (matrices, matrices[::-1]):
        biases = [next((v for v in vectors if len(v) == len(m)), None) for m in (first, second)]
        if first.shape[0] == second.shape[1] and biases[0] is not None and biases[1] is not None:
            return (first, biases[0]), (second, biases[1])
    raise CheckpointError("the timestep's two layers don't fit together", "The file is of another layout.")


FORMAT = Format("diffract", recognise, read)
