"""Kinds of dictionaries that are known by their tensors, and that no format here has a place for.

They are refused by name before any format is tried: several hold every tensor of an SAE that is read, and
something more that decides what its codes are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fluxscope.sae.formats.stated import not_read
from fluxscope.sae.formats.weight_files import Candidate

_BY_NAMES: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"gate_bias", "mag_bias"}), "a gated SAE (dictionary_learning)"),
    (frozenset({"b_gate", "b_mag"}), "a gated SAE (SAELens)"),
    (frozenset({"W_skip"}), "a transcoder with a skip connection"),
    (frozenset({"b_dec_out"}), "a transcoder"),
)
_ENCODERS = ("encoder.weight", "W_enc")


def refuse_unread(candidate: Candidate) -> None:
    """Raises CheckpointError, with its name, for a kind that is known and not read."""
    state = candidate.state
    inner = state.get("model_state_dict")
    for tensors in (state, inner if isinstance(inner, Mapping) else {}):
        kind = _kind(tensors)
        if kind:
            raise not_read(candidate.path, kind)


def _kind(state: Mapping[str, Any]) -> str | None:
    for names, kind in _BY_NAMES:
        if names <= set(state):
            return kind
    layered = (state.get(name) for name in _ENCODERS)
    if any(isinstance(tensor, Tensor) and tensor.ndim == 3 for tensor in layered):
        return "a crosscoder (its encoder has a matrix for each layer)"
    return None
