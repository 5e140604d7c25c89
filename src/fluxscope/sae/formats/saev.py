"""saev: one file of a JSON line (the config) and a state dict after it, read.

W_enc (d, f), b_enc, W_dec (f, d), b_dec; b_dec is not subtracted from the input. Its TopK keeps the k
largest pre-activations even where they are negative; ours drops those, and the probe shows the difference.
Its 'BatchTopK' selects k for each token, as TopK does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fluxscope.errors import CheckpointError
from fluxscope.sae.config_values import positive_integer
from fluxscope.sae.formats.format import Format, Imported
from fluxscope.sae.formats.layout import PLAIN
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
    name, k = _activation(config)
    source = {"source_config": config}
    if name == "Relu":
        return parts.imported(SparseAutoencoder(d, f), source, torch.relu)
    if name not in ("TopK", "BatchTopK"):
        raise CheckpointError(f"{path} uses the activation '{name}'", "Known are Relu, TopK and BatchTopK.")
    k = positive_integer(k, "top_k", path)

    def largest(pre: Tensor) -> Tensor:
        value, place = pre.topk(k, dim=-1)
        return torch.zeros_like(pre).scatter(-1, place, value)

    return parts.imported(TopKSparseAutoencoder(d, f, k), source, largest)


def _activation(header: dict[str, Any]) -> tuple[str, Any]:
    """(name, k) in each of the three layouts that saev's headers have had."""
    config = header.get("cfg", header)
    activation = config.get("activation")
    if isinstance(activation, dict):
        return activation.get("cls", "Relu"), activation.get("params", {}).get("top_k")
    name = header.get("cls", "Relu")
    return (name, config.get("top_k", 32)) if name in ("TopK", "BatchTopK") else ("Relu", None)


FORMAT = Format("saev", recognise, read)
