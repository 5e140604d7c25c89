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

import torch
from torch import Tensor

from fluxscope import files
from fluxscope.errors import CheckpointError
from fluxscope.sae import ARCHITECTURES
from fluxscope.sae.base import LinearSae
from fluxscope.sae.formats.format import Format, check_square_orientation, require, require_shape

WEIGHTS = ("pre_bias", "encoder.weight", "encoder.bias", "decoder.weight")
_FOLDER = re.compile(r"layer(?P<layer>\d+)|_t(?P<timestep>\d+)(?=_|$)|topk(?P<topk_k>\d+)")


def recognise(path: Path) -> bool:
    if path.suffix not in (".pt", ".pth", ".bin", ".ckpt"):
        return False
    try:
        checkpoint = files.read_torch_checkpoint(path)
    except CheckpointError:
        return False
    return "model_state_dict" in checkpoint or "pre_bias" in _without_prefix(checkpoint)


def read(path: Path) -> tuple[LinearSae, dict[str, Any]]:
    """Read an SAE and its config, completed by what the weights and the folder's name tell.

    Raises:
        CheckpointError: the file is missing, damaged, hostile, of another form, or contradicts itself.
    """
    checkpoint = files.read_torch_checkpoint(path)
    state = checkpoint.get("model_state_dict", checkpoint)
    if not isinstance(state, Mapping):
        raise CheckpointError(
            f"model_state_dict in {path} is no dictionary", "It is not an SAE's checkpoint."
        )
    state = _without_prefix(state)
    weights = require(state, WEIGHTS, path)
    input_dim, hidden_dim = _check_shapes(weights, path)
    config = _complete(checkpoint.get("config"), input_dim, hidden_dim, path)
    sae = _architecture(config, path).from_config(input_dim, hidden_dim, config)
    extra = tuple(name for name in sae.state_dict() if name not in WEIGHTS)
    weights |= require(state, extra, path)
    for name in extra:
        require_shape(weights[name], tuple(sae.state_dict()[name].shape), name, path)
    sae.load_state_dict(weights)
    return sae.eval(), config


def write(path: Path, sae: LinearSae, config: Mapping[str, Any] | None = None) -> None:
    """Write `sae` to `path`, whole or not at all.

    Args:
        config: further plain entries for the config (layer, timestep, ...); those that build the SAE win.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in sae.state_dict().items()}
    with files.atomic_write(path) as file:
        torch.save({"config": dict(config or {}) | sae.config(), "model_state_dict": state}, file)


def _without_prefix(state: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the prefixes that torch.compile and DistributedDataParallel put before every name."""
    return {re.sub(r"^(_orig_mod\.|module\.)+", "", str(name)): value for name, value in state.items()}


def _check_shapes(weights: Mapping[str, Tensor], path: Path) -> tuple[int, int]:
    """(d, f), told by the two bias vectors."""
    for name in ("pre_bias", "encoder.bias"):
        if weights[name].ndim != 1 or len(weights[name]) == 0:
            raise CheckpointError(
                f"{name} in {path} has shape {tuple(weights[name].shape)}, expected a vector",
                "It is not an SAE's checkpoint.",
            )
    input_dim, hidden_dim = len(weights["pre_bias"]), len(weights["encoder.bias"])
    require_shape(weights["encoder.weight"], (hidden_dim, input_dim), "encoder.weight", path)
    require_shape(weights["decoder.weight"], (input_dim, hidden_dim), "decoder.weight", path)
    check_square_orientation(weights["encoder.weight"], weights["decoder.weight"], path)
    return input_dim, hidden_dim


def _complete(stored: Any, input_dim: int, hidden_dim: int, path: Path) -> dict[str, Any]:
    """The stored config, checked against the weights, its gaps filled from weights and folder name."""
    config = dict(stored) if isinstance(stored, Mapping) else {}
    for name, found in (("input_dim", input_dim), ("hidden_dim", hidden_dim)):
        if config.get(name) not in (None, found):
            raise CheckpointError(
                f"config of {path} says {name} = {config[name]}, its weights say {found}",
                "Its config and weights come from different SAEs.",
            )
    told = {
        name: int(value)
        for m in _FOLDER.finditer(path.parent.name)
        for name, value in m.groupdict().items()
        if value
    }
    filled = told | {name: value for name, value in config.items() if value is not None}
    return config | filled | {"input_dim": input_dim, "hidden_dim": hidden_dim}


def _architecture(config: Mapping[str, Any], path: Path) -> type[LinearSae]:
    """The class that a config names, or that `use_topk` and `topk_k` imply in files that name none.

    Raises:
        CheckpointError: the config names an unknown architecture, contradicts itself or doesn't tell.
    """
    by_name = {cls.architecture: cls for cls in ARCHITECTURES}
    k, use_topk = config.get("topk_k"), config.get("use_topk")
    name = config.get("architecture")
    if name is None and (use_topk or (use_topk is None and k)):
        name = "topk"
    if name is None and (use_topk is False or config.get("l1_coeff") is not None):
        name = "relu"
    if name is None:
        raise CheckpointError(
            f"{path} doesn't tell whether it is a TopK or an L1 SAE",
            "Add a config with use_topk and topk_k, or put 'topk<k>' into its folder's name.",
        )
    if name not in by_name:
        raise CheckpointError(f"{path} holds a {name} SAE", f"Known are {', '.join(by_name)}.")
    if name == "topk" and (isinstance(k, bool) or not isinstance(k, int) or k < 1):
        raise CheckpointError(
            f"{path} is a TopK SAE whose config says topk_k = {k}", "Set topk_k to the k it was trained with."
        )
    return by_name[name]


FORMAT = Format("fluxscope", recognise, read, write)
