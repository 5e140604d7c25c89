"""dictionary_learning: a folder of ae.pt (a state dict) and config.json, read and written.

    AutoEncoder             encoder.weight (f, d), encoder.bias, decoder.weight (d, f), bias
    AutoEncoderTopK         encoder.weight, encoder.bias, decoder.weight, b_dec, k, threshold
    BatchTopKSAE            the same
    MatryoshkaBatchTopKSAE  W_enc (d, f), b_enc, W_dec (f, d), b_dec, k, threshold, group_sizes
    JumpReluAutoEncoder     W_enc, b_enc, W_dec, b_dec, threshold (f); b_dec is not subtracted

A threshold of -1 was never set. The library divides activations by one norm while training and multiplies it
back into the biases when saving, so its files read raw activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxscope import files
from fluxscope.sae.base import LinearSae
from fluxscope.sae.batch_topk import BatchTopKSparseAutoencoder
from fluxscope.sae.formats.format import (
    Candidate,
    Format,
    Imported,
    Parts,
    checked_parts,
    keep_above,
    keep_topk,
    positive_integer,
    require,
    unsupported,
    write_torch,
)
from fluxscope.sae.jumprelu import JumpReLUSparseAutoencoder
from fluxscope.sae.matryoshka import MatryoshkaSparseAutoencoder
from fluxscope.sae.relu import SparseAutoencoder
from fluxscope.sae.topk import TopKSparseAutoencoder

_LINEAR = ("encoder.weight", "encoder.bias", "decoder.weight")
_PLAIN = ("W_enc", "b_enc", "W_dec", "b_dec")


def recognise(candidate: Candidate) -> bool:
    names = set(candidate.state)
    if candidate.path.suffix == ".safetensors" or candidate.header:
        return False
    return names >= {*_LINEAR, "b_dec"} or names >= {*_LINEAR, "bias"} or names >= {*_PLAIN, "threshold"}


def read(candidate: Candidate) -> Imported:
    state, path = candidate.state, candidate.path
    trainer = candidate.config.get("trainer", {})
    source = {"layer": trainer.get("layer"), "source_config": candidate.config}
    if "bias" in state:
        parts = checked_parts(state, (*_LINEAR, "bias"), path, True, False)
        return parts.imported(SparseAutoencoder(*_widths(parts)), source, torch.relu)
    if "k" not in state and "W_enc" in state:
        parts = checked_parts(state, _PLAIN, path, False, True, centred=False)
        threshold = require(state, ("threshold",), path)["threshold"]
        jump = JumpReLUSparseAutoencoder(*_widths(parts))
        jump.threshold.data.copy_(threshold)
        return parts.imported(jump, source, keep_above(threshold))
    k = positive_integer(state.get("k", trainer.get("k")), "k", path)
    if "W_enc" in state:
        parts = checked_parts(state, _PLAIN, path, False, True)
        levels = require(state, ("group_sizes",), path)["group_sizes"].long().cumsum(0).tolist()
        return _batch_topk(
            parts, MatryoshkaSparseAutoencoder(*_widths(parts), k, levels), state, path, source
        )
    parts = checked_parts(state, (*_LINEAR, "b_dec"), path, True, False)
    if trainer.get("dict_class") == "BatchTopKSAE":
        return _batch_topk(parts, BatchTopKSparseAutoencoder(*_widths(parts), k), state, path, source)
    return parts.imported(TopKSparseAutoencoder(*_widths(parts), k), source, keep_topk(k))


def _batch_topk(
    parts: Parts,
    sae: BatchTopKSparseAutoencoder,
    state: Mapping[str, Any],
    path: Path,
    source: dict[str, Any],
) -> Imported:
    threshold = require(state, ("threshold",), path)["threshold"]
    sae.threshold.copy_(threshold)
    return parts.imported(sae, source, keep_above(threshold))


def _widths(parts: Parts) -> tuple[int, int]:
    f, d = parts.encoder.shape
    return d, f


def write(path: Path, sae: LinearSae, config: Mapping[str, Any]) -> None:
    """Write ae.pt and config.json into the folder `path`."""
    dict_class, state = _export(sae)
    trainer = {
        "trainer_class": "fluxscope",
        "dict_class": dict_class,
        "activation_dim": sae.input_dim,
        "dict_size": sae.hidden_dim,
        "k": getattr(sae, "k", None),
        "layer": config.get("layer"),
        "lm_name": config.get("model_id"),
        "submodule_name": config.get("site"),
    }
    write_torch(path / "ae.pt", {name: t.detach().cpu().contiguous() for name, t in state.items()})
    files.write_json(path / "config.json", {"trainer": trainer, "buffer": {}})


def _export(sae: LinearSae) -> tuple[str, dict[str, Tensor]]:
    linear = {
        "encoder.weight": sae.encoder.weight,
        "encoder.bias": sae.encoder.bias,
        "decoder.weight": sae.decoder.weight,
    }
    if isinstance(sae, SparseAutoencoder):
        return "AutoEncoder", linear | {"bias": sae.pre_bias}
    if isinstance(sae, TopKSparseAutoencoder):
        return "AutoEncoderTopK", linear | {"b_dec": sae.pre_bias} | _scalars(sae.k, torch.tensor(-1.0))
    plain = {
        "W_enc": sae.encoder.weight.T,
        "b_enc": sae.encoder.bias,
        "W_dec": sae.decoder.weight.T,
        "b_dec": sae.pre_bias,
    }
    if isinstance(sae, MatryoshkaSparseAutoencoder):
        sizes = torch.tensor(sae.levels).diff(prepend=torch.tensor([0]))
        return "MatryoshkaBatchTopKSAE", plain | _scalars(sae.k, sae.threshold) | {"group_sizes": sizes}
    if isinstance(sae, BatchTopKSparseAutoencoder):
        return "BatchTopKSAE", linear | {"b_dec": sae.pre_bias} | _scalars(sae.k, sae.threshold)
    if isinstance(sae, JumpReLUSparseAutoencoder):
        uncentred = sae.encoder.bias.double() - sae.encoder.weight.double() @ sae.pre_bias.double()
        return "JumpReluAutoEncoder", plain | {"b_enc": uncentred.float(), "threshold": sae.threshold}
    raise unsupported("dictionary_learning", sae, "its five kinds of dictionaries")


def _scalars(k: int, threshold: Tensor) -> dict[str, Tensor]:
    return {"k": torch.tensor(k, dtype=torch.int32), "threshold": threshold}


FORMAT = Format("dictionary_learning", recognise, read, write, weights="ae.pt")
