"""SAELens: a folder of cfg.json and sae_weights.safetensors, read and written.

W_enc (d, f), b_enc, W_dec (f, d), b_dec; JumpReLU adds threshold (f). cfg.json says `architecture`, d_in,
d_sae, k, and whether b_dec is subtracted from the input (`apply_b_dec_to_input`). A BatchTopK SAE trained
there is saved for inference as JumpReLU, and so do we write ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fluxscope import files
from fluxscope.errors import CheckpointError
from fluxscope.sae.base import LinearSae
from fluxscope.sae.batch_topk import ThresholdedSae
from fluxscope.sae.config_values import positive_integer
from fluxscope.sae.formats.format import Format, Imported, Parts, keep_above, keep_topk, unsupported
from fluxscope.sae.formats.layout import PLAIN, require, require_shape
from fluxscope.sae.formats.weight_files import Candidate, write_safetensors
from fluxscope.sae.jumprelu import JumpReLUSparseAutoencoder
from fluxscope.sae.relu import SparseAutoencoder
from fluxscope.sae.topk import TopKSparseAutoencoder

WEIGHTS = "sae_weights.safetensors"


def recognise(candidate: Candidate) -> bool:
    return candidate.path.suffix == ".safetensors" and set(candidate.state) >= set(PLAIN.names)


def read(candidate: Candidate) -> Imported:
    """Read an inference checkpoint.

    Raises:
        CheckpointError: cfg.json is missing, asks for a normalisation that is not folded into the weights, or
            names an architecture we don't have.
    """
    config, path = candidate.config, candidate.path
    if "architecture" not in config:
        raise CheckpointError(f"{path} has no cfg.json beside it", "Keep both files in one folder.")
    _check_normalisation(config.get("normalize_activations"), path)
    centred = bool(config.get("apply_b_dec_to_input", True))
    parts = PLAIN.parts(candidate.state, path, centred)
    f, d = parts.encoder.shape
    source = {"source_config": config}
    architecture = config["architecture"]
    if architecture == "standard":
        return parts.imported(SparseAutoencoder(d, f), source, torch.relu)
    if architecture == "topk":
        if config.get("rescale_acts_by_decoder_norm"):
            parts = _fold_norms(parts)
        k = positive_integer(config.get("k"), "k", path)
        return parts.imported(TopKSparseAutoencoder(d, f, k), source, keep_topk(k))
    if architecture == "jumprelu":
        threshold = require(candidate.state, ("threshold",), path)["threshold"]
        require_shape(threshold, (f,), "threshold", path)
        sae = JumpReLUSparseAutoencoder(d, f)
        sae.threshold.data.copy_(threshold)
        return parts.imported(sae, source, keep_above(threshold))
    raise CheckpointError(
        f"{path} holds SAELens's architecture '{architecture}'", "Known are standard, topk and jumprelu."
    )


def _check_normalisation(asked: Any, path: Path) -> None:
    if asked in (None, False, "none", "None"):
        return
    raise CheckpointError(
        f"{path} normalises activations at run time ({asked})",
        "Fold it into the weights first: in SAELens, save with save_inference_model.",
    )


def _fold_norms(parts: Parts) -> Parts:
    """Codes in units of the decoder's norms: the selection was trained on those."""
    norms = parts.decoder.norm(dim=1)
    return Parts(
        parts.encoder * norms[:, None],
        parts.bias * norms,
        parts.decoder / norms[:, None],
        parts.decoder_bias,
        parts.centred,
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
