"""openai/sparse_autoencoder: a state dict, read.

pre_bias (d), encoder.weight (f, d), latent_bias (f), decoder.weight (d, f); `activation` names TopK or ReLU
and `activation_state_dict` holds k. With tied weights there is no decoder.weight.

Its code may normalise activations, each token to mean zero and spread one, before it encodes them, and undo
that afterwards. The file does not say whether it does, and where it holds TopK the library takes it that it
does. Ours never does, so such a file is read when the user says that it was trained on raw activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fluxscope.errors import CheckpointError
from fluxscope.sae.config_values import optional_count, section, word
from fluxscope.sae.formats.format import Format, Imported, keep_topk
from fluxscope.sae.formats.layout import linear, require
from fluxscope.sae.formats.stated import left_open, not_read, settle
from fluxscope.sae.formats.weight_files import Candidate
from fluxscope.sae.relu import SparseAutoencoder
from fluxscope.sae.topk import TopKSparseAutoencoder

_LAYOUT = linear("pre_bias", bias="latent_bias")
_KINDS = {"ReLU": "relu", "TopK": "topk"}


def recognise(candidate: Candidate) -> bool:
    return "latent_bias" in candidate.state


def read(candidate: Candidate) -> Imported:
    """Read a TopK or ReLU autoencoder.

    Raises:
        CheckpointError: the activation is another one or left open, TopK's k is missing, or nobody says that
            a TopK reads raw activations.
    """
    path = candidate.path
    parts = _LAYOUT.parts(_untied(candidate), path)
    f, d = parts.encoder.shape
    k = _k(candidate)
    if _architecture(candidate, k) == "relu":
        return parts.imported(SparseAutoencoder(d, f), {}, torch.relu)
    if k is None:
        raise CheckpointError(f"{path} holds a TopK SAE without its k", "Say it with --k.")
    if not candidate.stated.raw:
        raise CheckpointError(
            f"{path} may expect tokens of mean 0 and spread 1: openai's code normalises what its TopK reads",
            "SAEs here read activations as they are. If it was trained on such: fluxscope convert FILE "
            "TARGET --raw.",
        )
    return parts.imported(TopKSparseAutoencoder(d, f, k), {}, keep_topk(k))


def _untied(candidate: Candidate) -> Mapping[str, Any]:
    state = candidate.state
    if "decoder.weight" in state or "decoder.linear.weight" not in state:
        return state
    encoder = require(state, ("encoder.weight",), candidate.path)["encoder.weight"]
    return state | {"decoder.weight": encoder.mT if encoder.ndim == 2 else encoder}


def _activation(candidate: Candidate) -> Mapping[str, Any]:
    return section(candidate.state, "activation_state_dict", candidate.path)


def _k(candidate: Candidate) -> int | None:
    path, beside = candidate.path, candidate.config
    claims = {
        path.name: optional_count(_activation(candidate), "k", path),
        "its config": optional_count(beside, "k", f"the config beside {path}"),
    }
    return settle("k", "--k", claims, candidate.stated.k, path)


def _architecture(candidate: Candidate, k: int | None) -> str:
    """ "relu" or "topk", as the file, the config beside it or the user says it."""
    path = candidate.path
    claims: dict[str, str | None] = {}
    for source, config in ((path.name, candidate.state), ("its config", candidate.config)):
        name = word(config, "activation", path)
        if name not in (None, *_KINDS):
            raise not_read(path, f"an SAE with the activation '{name}'")
        claims[source] = None if name is None else _KINDS[name]
    after = word(_activation(candidate), "postact_fn", path)
    if after not in (None, "ReLU"):
        raise not_read(path, f"a TopK SAE whose codes go through '{after}'")
    if k is not None and not any(claims.values()):
        claims["its k"] = "topk"
    found = settle("the architecture", "--architecture", claims, candidate.stated.architecture, path)
    if found is None:
        raise left_open(path, "a ReLU or a TopK SAE", "its config.json")
    if found not in _KINDS.values():
        raise CheckpointError(f"{path} holds no {found} SAE: openai's have ReLU or TopK", "Say one of these.")
    return found


FORMAT = Format("openai", recognise, read)
