"""SAELens: a folder of cfg.json and sae_weights.safetensors, read and written.

W_enc (d, f), b_enc, W_dec (f, d), b_dec; JumpReLU adds threshold (f). cfg.json says `architecture`, d_in,
d_sae, k, and whether b_dec is subtracted from the input (`apply_b_dec_to_input`). A BatchTopK SAE trained
there is saved for inference as JumpReLU, and so do we write ours; its checkpoints of training are read so.

All versions are read: before 6, cfg.json names `activation_fn_str` and its k in `activation_fn_kwargs`;
before 3, `activation_fn` and no architecture. `scaling_factor` (finetuning) multiplies codes before decoding.
A checkpoint of training keeps the factor of its activations in activation_scaler.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxscope import files
from fluxscope.errors import CheckpointError
from fluxscope.sae.base import LinearSae
from fluxscope.sae.batch_topk import ThresholdedSae
from fluxscope.sae.config_values import (
    coefficient,
    flag,
    optional_count,
    positive_integer,
    section,
    shown,
    word,
)
from fluxscope.sae.formats.format import Format, Imported, Parts, keep_above, keep_topk, unsupported
from fluxscope.sae.formats.layout import PLAIN, require, require_shape
from fluxscope.sae.formats.stated import left_open, not_read, settle
from fluxscope.sae.formats.weight_files import Candidate, read_config, write_safetensors
from fluxscope.sae.jumprelu import JumpReLUSparseAutoencoder
from fluxscope.sae.relu import SparseAutoencoder
from fluxscope.sae.topk import TopKSparseAutoencoder

WEIGHTS = "sae_weights.safetensors"
_TRAINED_IN_BATCHES = ("batchtopk", "matryoshka_batchtopk")
_SCALER = "activation_scaler.json"


def recognise(candidate: Candidate) -> bool:
    names = set(candidate.state)
    return (
        candidate.path.suffix == ".safetensors"
        and names >= {"W_dec", "b_dec"}
        and "encoder.weight" not in names
    )


def read(candidate: Candidate) -> Imported:
    """Read an inference checkpoint, or one of training where nothing is lost by it.

    Raises:
        CheckpointError: cfg.json is missing, contradicts the weights or itself, asks for a normalisation that
            is not folded into them, or names an architecture or an activation that is not read.
    """
    config, path = candidate.config, candidate.path
    if not config:
        raise CheckpointError(f"{path} has no cfg.json beside it", "Keep both files in one folder.")
    architecture = _architecture(candidate)
    centred = flag(config, "apply_b_dec_to_input", True, f"cfg.json beside {path}")
    parts = PLAIN.parts(candidate.state, path, centred)
    f, d = parts.encoder.shape
    _check_widths(config, d, f, path)
    parts, scale = _normalised(_finetuned(parts, candidate), candidate)
    chosen = architecture in ("topk", *_TRAINED_IN_BATCHES)
    rescaled = chosen and flag(config, "rescale_acts_by_decoder_norm", False, f"cfg.json beside {path}")
    if rescaled:
        parts = _fold_norms(parts)
    source = {"source_config": config}
    if architecture == "standard":
        return parts.imported(SparseAutoencoder(d, f), source, torch.relu)
    if architecture == "topk":
        k = positive_integer(_k(candidate), "k", path)
        return parts.imported(TopKSparseAutoencoder(d, f, k), source, keep_topk(k))
    threshold = _threshold(candidate, architecture, f) / (scale if rescaled else 1.0)
    sae = JumpReLUSparseAutoencoder(d, f)
    sae.threshold.data.copy_(threshold)
    return parts.imported(sae, source, keep_above(threshold))


def _architecture(candidate: Candidate) -> str:
    """ "standard", "topk", "jumprelu" or one of those that become jumprelu.

    Files from before version 3 name the activation alone, and until 6 "standard" with the activation topk was
    how a TopK SAE was written.
    """
    config, path = candidate.config, candidate.path
    beside = f"cfg.json beside {path}"
    named = word(config, "architecture", beside)
    activation = word(config, "activation_fn_str", beside) or word(config, "activation_fn", beside)
    if named not in (None, "standard", "topk", "jumprelu", *_TRAINED_IN_BATCHES):
        raise not_read(path, f"SAELens's architecture '{named}'")
    if activation not in (None, "relu", "topk"):
        raise not_read(path, f"an SAE with the activation '{activation}'")
    if named is None and activation is None:
        stated = {"relu": "standard", "topk": "topk", "jumprelu": "jumprelu"}.get(
            candidate.stated.architecture or ""
        )
        if stated is None:
            raise left_open(path, "a standard, a TopK or a JumpReLU SAE", "its own cfg.json")
        return stated
    if (named == "topk" and activation == "relu") or (named == "jumprelu" and activation == "topk"):
        raise CheckpointError(
            f"{beside} says architecture {named} and activation {activation}",
            "It contradicts itself: copy it again, from where the checkpoint came.",
        )
    if activation == "topk":
        return "topk"
    if named in (None, "standard") and "threshold" in candidate.state:
        raise CheckpointError(
            f"{path} has thresholds, {beside} says architecture {named or 'standard'}",
            "Its config and weights come from different SAEs.",
        )
    return named or "standard"


def _k(candidate: Candidate) -> int | None:
    """How many features are active, where both places that may say so agree."""
    config, path = candidate.config, candidate.path
    beside = f"cfg.json beside {path}"
    inner = section(config, "activation_fn_kwargs", beside)
    claims = {
        "k": optional_count(config, "k", beside),
        "activation_fn_kwargs": optional_count(inner, "k", beside),
    }
    return settle("k", "--k", claims, candidate.stated.k, path)


def _check_widths(config: Mapping[str, Any], d: int, f: int, path: Path) -> None:
    for name, found in (("d_in", d), ("d_sae", f), ("d_out", d)):
        said = optional_count(config, name, f"cfg.json beside {path}")
        if said not in (None, found):
            raise CheckpointError(
                f"cfg.json beside {path} says {name} = {said}, its weights say {found}",
                "Its config and weights come from different SAEs.",
            )


def _threshold(candidate: Candidate, architecture: str, f: int) -> Tensor:
    """(f): a JumpReLU's own, or the one that a BatchTopK checkpoint of training has for all features."""
    path = candidate.path
    if architecture in _TRAINED_IN_BATCHES:
        one = require(candidate.state, ("topk_threshold",), path)["topk_threshold"]
        require_shape(one, (), "topk_threshold", path)
        return one.repeat(f)
    threshold = require(candidate.state, ("threshold",), path)["threshold"]
    require_shape(threshold, (f,), "threshold", path)
    return threshold


def _finetuned(parts: Parts, candidate: Candidate) -> Parts:
    """A factor of each feature that finetuning put between code and decoder; it goes into the decoder."""
    path = candidate.path
    names = [n for n in ("scaling_factor", "finetuning_scaling_factor") if n in candidate.state]
    if not names:
        return parts
    factor = require(candidate.state, (names[0],), path)[names[0]]
    require_shape(factor, parts.bias.shape, names[0], path)
    wanted = flag(candidate.config, "finetuning_scaling_factor", True, f"cfg.json beside {path}")
    if not wanted and not torch.allclose(factor, torch.ones_like(factor)):
        raise CheckpointError(
            f"{path} holds a {names[0]}, cfg.json beside it says that it has none",
            "It contradicts itself: copy both again, from where they came.",
        )
    return replace(parts, decoder=parts.decoder * factor[:, None])


def _normalised(parts: Parts, candidate: Candidate) -> tuple[Parts, float]:
    """The parts for activations as they are, and the factor that was folded into them.

    Raises:
        CheckpointError: activations are normalised in a way that no weights can express, or by a factor that
            nobody kept.
    """
    config, path = candidate.config, candidate.path
    asked = config.get("normalize_activations")
    if asked in (None, False, "none", "None"):
        return parts, 1.0
    average = asked is True or asked == "expected_average_only_in"
    scaler = path.parent / _SCALER
    if not average or not scaler.is_file():
        raise CheckpointError(
            f"{path} normalises activations at run time ({shown(asked)})",
            "Fold it into the weights first: in SAELens, save with save_inference_model."
            if average
            else "SAEs here read activations as they are, and weights cannot express it.",
        )
    found = read_config(scaler)
    scale = coefficient(found, "scaling_factor")
    if scale <= 0 or found.get("has_whitening"):
        raise CheckpointError(
            f"{scaler} names no factor alone", "In SAELens, save with save_inference_model."
        )
    scaled = replace(
        parts,
        encoder=parts.encoder * scale,
        decoder=parts.decoder / scale,
        decoder_bias=parts.decoder_bias / scale,
    )
    return scaled, scale


def _fold_norms(parts: Parts) -> Parts:
    """Codes in units of the decoder's norms: the selection was trained on those.

    A feature without a direction has no code then, and keeps none.
    """
    norms = parts.decoder.norm(dim=1)
    return replace(
        parts,
        encoder=parts.encoder * norms[:, None],
        bias=parts.bias * norms,
        decoder=parts.decoder / norms.clamp_min(torch.finfo(norms.dtype).tiny)[:, None],
    )


def write(path: Path, sae: LinearSae, config: Mapping[str, Any]) -> None:
    """Write cfg.json and sae_weights.safetensors into the folder `path`."""
    tensors = PLAIN.tensors(sae)
    cfg: dict[str, Any] = {
        "d_in": sae.input_dim,
        "d_sae": sae.hidden_dim,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"model_name": config.get("model_id"), "hook_name": config.get("site")},
    }
    if isinstance(sae, TopKSparseAutoencoder):
        cfg |= {"architecture": "topk", "k": sae.k, "rescale_acts_by_decoder_norm": False}
    elif isinstance(sae, SparseAutoencoder):
        cfg |= {"architecture": "standard"}
    elif isinstance(sae, ThresholdedSae | JumpReLUSparseAutoencoder):
        cfg |= {"architecture": "jumprelu"}
        tensors["threshold"] = sae.threshold.expand(sae.hidden_dim)
    else:
        raise unsupported("sae_lens", sae, "standard, topk and jumprelu")
    write_safetensors(path / WEIGHTS, tensors)
    files.write_json(path / "cfg.json", cfg)


FORMAT = Format("sae_lens", recognise, read, write, weights=WEIGHTS)
