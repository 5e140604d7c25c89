"""saev: one file of a JSON line (the config) and a state dict after it, read.

W_enc (d, f), b_enc, W_dec (f, d), b_dec; b_dec is not subtracted from the input. Its TopK keeps the k
largest pre-activations even where they are negative; ours drops those, and the probe shows the difference.
Its 'BatchTopK' selects k for each token, as TopK does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fluxscope.sae.config_values import positive_integer, section, word
from fluxscope.sae.formats.format import Format, Imported
from fluxscope.sae.formats.layout import PLAIN
from fluxscope.sae.formats.stated import left_open, not_read
from fluxscope.sae.formats.weight_files import Candidate
from fluxscope.sae.relu import SparseAutoencoder
from fluxscope.sae.topk import TopKSparseAutoencoder


def recognise(candidate: Candidate) -> bool:
    return bool(candidate.header) and set(candidate.state) >= set(PLAIN.names)


def read(candidate: Candidate) -> Imported:
    path = candidate.path
    parts = PLAIN.parts(candidate.state, path, centred=False)
    f, d = parts.encoder.shape
    config = candidate.header
    name, k = _activation(candidate)
    source = {"source_config": config}
    if name == "Relu":
        return parts.imported(SparseAutoencoder(d, f), source, torch.relu)
    if name not in ("TopK", "BatchTopK"):
        raise not_read(path, f"an SAE with saev's activation '{name}'")
    k = positive_integer(k, "top_k", path)

    def largest(pre: Tensor) -> Tensor:
        value, place = pre.topk(k, dim=-1)
        return torch.zeros_like(pre).scatter(-1, place, value)

    return parts.imported(TopKSparseAutoencoder(d, f, k), source, largest)


def _activation(candidate: Candidate) -> tuple[str, Any]:
    """(name, k) in each of the three layouts that saev's headers have had; the oldest knew ReLU alone."""
    header, path = candidate.header, candidate.path
    config = section(header, "cfg", path) or header
    activation = config.get("activation")
    if isinstance(activation, Mapping):
        params = section(activation, "params", path)
        return word(activation, "cls", path) or "Relu", params.get("top_k")
    name = word(header, "cls", path)
    if name is None and "l1_coeff" not in config:
        stated = {"relu": "Relu", "topk": "TopK"}.get(candidate.stated.architecture or "")
        if stated is None:
            raise left_open(path, "a ReLU or a TopK SAE", "nothing: its own header should tell")
        return stated, config.get("top_k", candidate.stated.k)
    return name or "Relu", config.get("top_k")


FORMAT = Format("saev", recognise, read)
