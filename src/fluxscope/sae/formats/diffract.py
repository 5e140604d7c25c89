"""DifFRACT's SAEs and transcoders for FLUX.1-schnell: the state dict of `fluxscope.sae.timestep_sae`, read.

Names, shapes and the timestep's embedding are those of the authors' code (Artalmaz31/DifFRACT,
transcoder_training/transcoder.py): time_mlp.0, time_mlp.2, mod_linear, encoder, decoder, all with biases. The
files lie as sae_{stream}_{layer}.pt and transcoder_{stream}_{layer}.pt, stream img or txt. An SAE reads what
the block's feed-forward writes; a transcoder reads what goes into it and gives what comes out.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from fluxscope.errors import CheckpointError
from fluxscope.sae.formats.format import TRANSCODER, Format, Imported
from fluxscope.sae.formats.layout import linear, require, require_shape
from fluxscope.sae.formats.weight_files import Candidate
from fluxscope.sae.timestep_sae import TimestepSparseAutoencoder

_LAYOUT = linear("decoder.bias")
_TIME = tuple(
    f"{layer}.{kind}" for layer in ("time_mlp.0", "time_mlp.2", "mod_linear") for kind in ("weight", "bias")
)
_SITES = {"img": "ff", "txt": "ff_context"}


def recognise(candidate: Candidate) -> bool:
    return not candidate.header and {*_LAYOUT.names, *_TIME} <= set(candidate.state)


def read(candidate: Candidate) -> Imported:
    """Raises CheckpointError: such a file needs a timestep."""
    raise CheckpointError(
        f"{candidate.path} holds an SAE that is conditioned on the timestep",
        "Make an ordinary one of it: fluxscope convert FILE TARGET --timestep 0.35 (1 is all noise, 0 none).",
    )


def read_at(candidate: Candidate, timestep: float) -> Imported:
    """The ordinary SAE that the file's is at a timestep, from 1 (all noise) to 0."""
    conditioned = read_conditioned(candidate)
    config = {"film_timestep": timestep, **from_file_name(candidate.path)}
    return Imported(
        conditioned.at(timestep),
        config,
        lambda x: conditioned.encode(x, timestep),
        conditioned.decode,
        (TRANSCODER,) if "transcoder_of" in config else (),
    )


def from_file_name(path: Path) -> dict[str, Any]:
    """Layer and site of an SAE, layer and kind of a transcoder, where the file keeps its name."""
    found = re.fullmatch(r"(sae|transcoder)_(img|txt)_(\d+)", path.stem)
    if not found:
        return {}
    kind, stream, layer = found.groups()
    site = f"double.{layer}.{_SITES[stream]}"
    return {"layer": int(layer)} | ({"site": site} if kind == "sae" else {"transcoder_of": site})


@torch.no_grad()
def read_conditioned(candidate: Candidate) -> TimestepSparseAutoencoder:
    """The SAE with its timestep layers.

    Raises:
        CheckpointError: a tensor is missing, of another shape, transposed, or holds NaN.
    """
    state, path = candidate.state, candidate.path
    parts = _LAYOUT.parts(state, path, centred=False)
    time = require(state, _TIME, path)
    f, d = parts.encoder.shape
    conditioned = TimestepSparseAutoencoder(d, f, time["time_mlp.0.bias"].numel())
    wanted = conditioned.state_dict()
    for name, tensor in time.items():
        require_shape(tensor, tuple(wanted[name].shape), name, path)
        wanted[name].copy_(tensor)
    tensors = (parts.encoder, parts.bias, parts.decoder.T, parts.decoder_bias)
    for name, tensor in zip(_LAYOUT.names, tensors, strict=True):
        wanted[name].copy_(tensor)
    return conditioned.requires_grad_(False)


FORMAT = Format("diffract", recognise, read)
