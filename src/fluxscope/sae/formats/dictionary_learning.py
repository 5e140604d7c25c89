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
from fluxscope.sae.batch_topk import BatchTopKSparseAutoencoder, ThresholdedSae
from fluxscope.sae.config_values import positive_integer
from fluxscope.sae.formats.format import Format, Imported, Parts, keep_above, keep_topk, unsupported
from fluxscope.sae.formats.layout import PLAIN, linear, require, require_shape
from fluxscope.sae.formats.weight_files import Candidate, write_torch
from fluxscope.sae.jumprelu import JumpReLUSparseAutoencoder
from fluxscope.sae.matryoshka import MatryoshkaSparseAutoencoder
from fluxscope.sae.relu import SparseAutoencoder
from fluxscope.sae.topk import TopKSparseAutoencoder

_STANDARD, _TOPK = linear("bias"), linear("b_dec")


def recognise(candidate: Candidate) -> bool:
    names = set(candidate.state)
    if candidate.path.suffix == ".safetensors" or candidate.header:
        return False
    known = (_STANDARD.names, _TOPK.names, (*PLAIN.names, "threshold"))
    return any(names >= set(needed) for needed in known)


def read(candidate: Candidate) -> Imported:
    state, path = candidate.state, candidate.path
    trainer = candidate.config.get("trainer", {})
    source = {"layer": trainer.get("layer"), "source_config": candidate.config}
    if "bias" in state:
        parts = _STANDARD.parts(state, path)
        return parts.imported(SparseAutoencoder(*_widths(parts)), source, torch.relu)
    if "k" not in state and "W_enc" in state:
        parts = PLAIN.parts(state, path, centred=False)
        threshold = require(state, ("threshold",), path)["threshold"]
        require_shape(threshold, parts.bias.shape, "threshold", path)
        jump = JumpReLUSparseAutoencoder(*_widths(parts))
        jump.threshold.data.copy_(threshold)
        return parts.imported(jump, source, keep_above(threshold))
    k = positive_integer(state.get("k", trainer.get("k")), "k", path)
    if "W_enc" in state:
        parts = PLAIN.parts(state, path)
        levels = require(state, ("group_sizes",), path)["group_sizes"].long().cumsum(0).tolist()
        return _batch_topk(
            parts, MatryoshkaSparseAutoencoder(*_widths(parts), k, levels), state, path, source
        )
    parts = _TOPK.parts(state, path)
    if trainer.get("dict_class") == "BatchTopKSAE":
        return _batch_topk(parts, BatchTopKSparseAutoencoder(*_widths(parts), k), state, path, source)
    return parts.imported(TopKSparseAutoencoder(*_widths(parts), k), source, keep_topk(k))


def _batch_topk(
    parts: Parts,
    sae: ThresholdedSae,
    state: Mapping[str, Any],
    path: Path,
    source: dict[str, Any],
) -> Imported:
    threshold = require(state, ("threshold",), path)["threshold"]
    require_shape(threshold, (), "threshold", path)
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
    if isinstance(sae, SparseAutoencoder):
        return "AutoEncoder", _STANDARD.tensors(sae)
    if isinstance(sae, TopKSparseAutoencoder):
        return "AutoEncoderTopK", _TOPK.tensors(sae) | _scalars(sae.k, torch.tensor(-1.0))
    if isinstance(sae, MatryoshkaSparseAutoencoder):
        sizes = torch.tensor(sae.levels).diff(prepend=torch.tensor([0]))
        scalars = _scalars(sae.k, sae.threshold)
        return "MatryoshkaBatchTopKSAE", PLAIN.tensors(sae) | scalars | {"group_sizes": sizes}
    if isinstance(sae, BatchTopKSparseAutoencoder):
        return "BatchTopKSAE", _TOPK.tensors(sae) | _scalars(sae.k, sae.threshold)
    if isinstance(sae, JumpReLUSparseAutoencoder):
        uncentred = sae.encoder.bias.double() - sae.encoder.weight.double() @ sae.pre_bias.double()
        changed = {"b_enc": uncentred.float(), "threshold": sae.threshold}
        return "JumpReluAutoEncoder", PLAIN.tensors(sae) | changed
    raise unsupported("dictionary_learning", sae, "its five kinds of dictionaries")


def _scalars(k: int, threshold: Tensor) -> dict[str, Tensor]:
    return {"k": torch.tensor(k, dtype=torch.int32), "threshold": threshold}


FORMAT = Format("dictionary_learning", recognise, read, write, weights="ae.pt")
