"""The project's own checkpoint, `sae_best.pt`: a dict of `config` and `model_state_dict`.

config: layer, timestep, input_dim, hidden_dim, expansion_factor, l1_coeff, use_topk, topk_k, ... ;
model_state_dict: pre_bias (d), encoder.weight (f, d), encoder.bias (f), decoder.weight (d, f), and what an
architecture adds. A bare state dict is read too. Where the config is silent about layer, step and k, the
folder's name is asked: sae_training_layer15_t14_topk1200_x4_<stamp>/sae_best.pt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fluxscope.errors import CheckpointError
from fluxscope.sae.base import LinearSae
from fluxscope.sae.config_values import optional_count, plain_config, shown
from fluxscope.sae.formats.format import Format, Imported
from fluxscope.sae.formats.layout import linear, require, require_shape
from fluxscope.sae.formats.stated import settle
from fluxscope.sae.formats.weight_files import Candidate, write_torch
from fluxscope.sae.relu import SparseAutoencoder
from fluxscope.sae.table import ARCHITECTURES
from fluxscope.sae.topk import TopKSparseAutoencoder

_LAYOUT = linear("pre_bias")
_FOLDER = re.compile(r"layer(?P<layer>\d+)|_t(?P<timestep>\d+)(?=_|$)|topk(?P<topk_k>\d+)")


def recognise(candidate: Candidate) -> bool:
    state = candidate.state
    return "model_state_dict" in state or {"pre_bias", "encoder.bias"} <= set(_without_prefix(state))


def read(candidate: Candidate) -> Imported:
    """Read an SAE and its config, completed by what the weights and the folder's name tell.

    Raises:
        CheckpointError: the weights are incomplete or damaged, or the config contradicts them.
    """
    path = candidate.path
    state = candidate.state.get("model_state_dict", candidate.state)
    if not isinstance(state, Mapping):
        raise CheckpointError(
            f"model_state_dict in {path} is no dictionary", "It is not an SAE's checkpoint."
        )
    state = _without_prefix(state)
    parts = _LAYOUT.parts(state, path)
    f, d = parts.encoder.shape
    config, cautions = _complete(plain_config(candidate.state.get("config"), path), d, f, path)
    config = _with_stated(config, candidate)
    sae = parts.fill(_build(_architecture(config, path), d, f, config, path))
    own = sae.state_dict()
    extra = tuple(name for name in own if name not in _LAYOUT.names)
    for name, tensor in require(state, extra, path).items():
        require_shape(tensor, tuple(own[name].shape), name, path)
        own[name].copy_(tensor)
    return Imported(sae, config, sae.encode, sae.decode, cautions)


def write(path: Path, sae: LinearSae, config: Mapping[str, Any]) -> None:
    """Write `sae` to `path`, whole or not at all.

    Args:
        config: further plain entries for the config (layer, timestep, ...); those that build the SAE win.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in sae.state_dict().items()}
    write_torch(path, {"config": dict(config) | sae.config(), "model_state_dict": state})


def _without_prefix(state: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the prefixes that torch.compile and DistributedDataParallel put before every name."""
    return {re.sub(r"^(_orig_mod\.|module\.)+", "", str(name)): value for name, value in state.items()}


def _complete(
    config: dict[str, Any], input_dim: int, hidden_dim: int, path: Path
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(the config, checked against the weights, its gaps filled from weights and folder name; cautions)."""
    for name, found in (("input_dim", input_dim), ("hidden_dim", hidden_dim)):
        if config.get(name) not in (None, found):
            raise CheckpointError(
                f"config of {path} says {name} = {shown(config[name])}, its weights say {found}",
                "Its config and weights come from different SAEs.",
            )
    matches = _FOLDER.finditer(path.parent.name)
    from_folder = {name: int(value) for m in matches for name, value in m.groupdict().items() if value}
    said = {name: value for name, value in config.items() if value is not None}
    cautions = tuple(
        f"its config says {name} = {shown(said[name])}, its folder's name {value}: the config is believed"
        for name, value in from_folder.items()
        if said.get(name, value) != value
    )
    return config | from_folder | said | {"input_dim": input_dim, "hidden_dim": hidden_dim}, cautions


def _with_stated(config: dict[str, Any], candidate: Candidate) -> dict[str, Any]:
    """The config with what the user says, where it is silent."""
    path, stated = candidate.path, candidate.stated
    k = settle("k", "--k", {"its config": optional_count(config, "topk_k", path)}, stated.k, path)
    if stated.architecture is None:
        return config | ({"topk_k": k} if k else {})
    said = None if _silent(config) else _architecture(config, path).architecture
    name = settle("the architecture", "--architecture", {"its config": said}, stated.architecture, path)
    return config | {"architecture": name, "topk_k": k}


def _silent(config: Mapping[str, Any]) -> bool:
    """Whether a config tells no architecture."""
    return all(config.get(name) is None for name in ("architecture", "use_topk", "topk_k", "l1_coeff"))


def _architecture(config: Mapping[str, Any], path: Path) -> type[LinearSae]:
    """The class that a config names, or that `use_topk` and `topk_k` imply in files that name none.

    Raises:
        CheckpointError: the config names an unknown architecture or doesn't say which it is.
    """
    k, use_topk, name = config.get("topk_k"), config.get("use_topk"), config.get("architecture")
    if name is None and (use_topk or (use_topk is None and k)):
        return TopKSparseAutoencoder
    if name is None and (use_topk is False or config.get("l1_coeff") is not None):
        return SparseAutoencoder
    if name is None:
        raise CheckpointError(
            f"{path} doesn't tell whether it is a TopK or an L1 SAE",
            "Add a config with use_topk and topk_k, put 'topk<k>' into its folder's name, or say it: "
            "fluxscope convert FILE TARGET --architecture NAME --k K.",
        )
    for entry in ARCHITECTURES:
        if entry.name == name:
            return entry.load().sae
    known = ", ".join(entry.name for entry in ARCHITECTURES)
    raise CheckpointError(f"{path} holds a {shown(name)} SAE", f"Known are {known}.")


def _build(
    kind: type[LinearSae], input_dim: int, hidden_dim: int, config: dict[str, Any], path: Path
) -> LinearSae:
    """Raises CheckpointError, with the file's name, when the architecture can't be built from the config."""
    try:
        return kind.from_config(input_dim, hidden_dim, config)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.message}", error.hint) from error


FORMAT = Format("fluxscope", recognise, read, write)
