"""dictionary_learning: a folder of ae.pt (a state dict) and config.json, read and written.

    AutoEncoder             encoder.weight (f, d), encoder.bias, decoder.weight (d, f), bias
    AutoEncoderNew          encoder.weight, encoder.bias, decoder.weight, decoder.bias (not subtracted)
    AutoEncoderTopK         encoder.weight, encoder.bias, decoder.weight, b_dec, k, threshold
    BatchTopKSAE            the same: config.json alone tells which of the two it is
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
from fluxscope.errors import CheckpointError
from fluxscope.sae.base import LinearSae
from fluxscope.sae.batch_topk import BatchTopKSparseAutoencoder, ThresholdedSae
from fluxscope.sae.config_values import optional_count, positive_integer, section, word
from fluxscope.sae.formats.format import Format, Imported, Parts, keep_above, keep_topk, unsupported
from fluxscope.sae.formats.layout import PLAIN, linear, require, require_shape
from fluxscope.sae.formats.stated import left_open, not_read, settle
from fluxscope.sae.formats.weight_files import Candidate, write_torch
from fluxscope.sae.jumprelu import JumpReLUSparseAutoencoder
from fluxscope.sae.matryoshka import MatryoshkaSparseAutoencoder
from fluxscope.sae.relu import SparseAutoencoder
from fluxscope.sae.topk import TopKSparseAutoencoder

_STANDARD, _APRIL, _TOPK = linear("bias"), linear("decoder.bias"), linear("b_dec")
_CLASSES = {
    "AutoEncoder": "relu",
    "AutoEncoderNew": "relu",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "batch_topk",
    "MatryoshkaBatchTopKSAE": "matryoshka_batch_topk",
    "JumpReluAutoEncoder": "jumprelu",
}
_TRAINERS = {
    "StandardTrainer": "relu",
    "StandardTrainerAprilUpdate": "relu",
    "PAnnealTrainer": "relu",
    "TopKTrainer": "topk",
    "BatchTopKTrainer": "batch_topk",
    "MatryoshkaBatchTopKTrainer": "matryoshka_batch_topk",
    "JumpReluTrainer": "jumprelu",
}


def recognise(candidate: Candidate) -> bool:
    names = set(candidate.state)
    if candidate.path.suffix == ".safetensors" or candidate.header:
        return False
    if set(_APRIL.names) <= names:
        return "mod_linear.weight" not in names
    known = (_STANDARD.names, _TOPK.names, (*PLAIN.names, "threshold"))
    return any(names >= set(needed) for needed in known)


def read(candidate: Candidate) -> Imported:
    """Read one of the library's dictionaries.

    Raises:
        CheckpointError: its tensors and its config contradict each other, or neither tells a TopK from a
            BatchTopK.
    """
    state, path = candidate.state, candidate.path
    trainer = section(candidate.config, "trainer", f"the config beside {path}")
    source = {"layer": trainer.get("layer"), "source_config": candidate.config}
    kind = _kind(candidate, trainer)
    if kind == "relu":
        parts = (
            _APRIL.parts(state, path, centred=False)
            if "decoder.bias" in state
            else _STANDARD.parts(state, path)
        )
        return parts.imported(SparseAutoencoder(*_widths(parts)), source, torch.relu)
    if kind == "jumprelu":
        parts = PLAIN.parts(state, path, centred=False)
        threshold = require(state, ("threshold",), path)["threshold"]
        require_shape(threshold, parts.bias.shape, "threshold", path)
        jump = JumpReLUSparseAutoencoder(*_widths(parts))
        jump.threshold.data.copy_(threshold)
        return parts.imported(jump, source, keep_above(threshold))
    k = _k(candidate, trainer)
    if kind == "matryoshka_batch_topk":
        parts = PLAIN.parts(state, path)
        return _batch_topk(
            parts, MatryoshkaSparseAutoencoder(*_widths(parts), k, _levels(candidate)), state, path, source
        )
    parts = _TOPK.parts(state, path)
    if kind == "batch_topk":
        return _batch_topk(parts, BatchTopKSparseAutoencoder(*_widths(parts), k), state, path, source)
    return parts.imported(TopKSparseAutoencoder(*_widths(parts), k), source, keep_topk(k))


def _kind(candidate: Candidate, trainer: Mapping[str, Any]) -> str:
    """The architecture that tensors, config and user agree on."""
    path, beside = candidate.path, f"the config beside {candidate.path}"
    possible = _possible(candidate.state)
    claims: dict[str, str | None] = {}
    for name, known in (("dict_class", _CLASSES), ("trainer_class", _TRAINERS)):
        value = word(trainer, name, beside)
        if name == "dict_class" and value not in (None, *known):
            raise not_read(path, f"dictionary_learning's {value}")
        claims[name] = known.get(value) if value else None
    stated = candidate.stated.architecture
    if len(possible) == 1 and "decoder.bias" not in candidate.state:
        claims["its tensors"] = possible[0]
    found = settle("the architecture", "--architecture", claims, stated, path)
    if found is None:
        raise left_open(path, " or ".join(f"a {each} SAE" for each in possible), "its config.json")
    if found not in possible:
        raise CheckpointError(
            f"{path} is said to be a {found} SAE; its tensors are those of {' or '.join(possible)}",
            "Its config and weights come from different SAEs.",
        )
    return found


def _possible(state: Mapping[str, Any]) -> tuple[str, ...]:
    """The architectures that have tensors of these names."""
    if "W_enc" in state:
        return ("matryoshka_batch_topk",) if "k" in state else ("jumprelu",)
    return ("topk", "batch_topk") if "b_dec" in state else ("relu",)


def _k(candidate: Candidate, trainer: Mapping[str, Any]) -> int:
    path = candidate.path
    claims = {
        path.name: optional_count(candidate.state, "k", path),
        "its config": optional_count(trainer, "k", f"the config beside {path}"),
    }
    return positive_integer(settle("k", "--k", claims, candidate.stated.k, path), "k", path)


def _levels(candidate: Candidate) -> list[int]:
    """Sizes of the nested dictionaries, from the sizes of their parts."""
    sizes = require(candidate.state, ("group_sizes",), candidate.path)["group_sizes"]
    if sizes.ndim != 1 or not len(sizes):
        raise CheckpointError(f"group_sizes in {candidate.path} is no list", "It is not an SAE's checkpoint.")
    return [int(size) for size in sizes.long().cumsum(0)]


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
