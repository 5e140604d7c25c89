"""sparsify (eai-sparsify): a folder of cfg.json and sae.safetensors, read and written.

encoder.weight (f, d), encoder.bias, W_dec (f, d), b_dec; TopK, the input centred by b_dec unless `transcode`.
In cfg.json, num_latents 0 means d_in x expansion_factor.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fluxscope import files
from fluxscope.errors import CheckpointError
from fluxscope.sae.base import LinearSae
from fluxscope.sae.config_values import flag, optional_count, positive_integer, shown, word
from fluxscope.sae.formats.format import TRANSCODER, Format, Imported, keep_topk, unsupported
from fluxscope.sae.formats.layout import Layout
from fluxscope.sae.formats.stated import not_read, settle
from fluxscope.sae.formats.weight_files import Candidate, write_safetensors
from fluxscope.sae.topk import TopKSparseAutoencoder

WEIGHTS = "sae.safetensors"
_LAYOUT = Layout("encoder.weight", "encoder.bias", "W_dec", "b_dec", True, True)


def recognise(candidate: Candidate) -> bool:
    return candidate.path.suffix == ".safetensors" and set(candidate.state) >= set(_LAYOUT.names)


def read(candidate: Candidate) -> Imported:
    """Read a TopK SAE or a transcoder without skip connection.

    Raises:
        CheckpointError: cfg.json is missing, its widths contradict the weights, or it asks for group-wise
            selection, signed codes or a skip connection.
    """
    config, path = candidate.config, candidate.path
    beside = f"cfg.json beside {path}"
    if "k" not in config:
        raise CheckpointError(f"{path} has no cfg.json beside it", "Keep both files in one folder.")
    activation = word(config, "activation", beside)
    if activation not in (None, "topk"):
        raise not_read(path, f"sparsify's activation '{activation}'")
    for name, kind in (
        ("skip_connection", "a transcoder with a skip connection"),
        ("signed", "signed codes"),
    ):
        if flag(config, name, False, beside):
            raise not_read(path, kind)
    transcoder = flag(config, "transcode", False, beside)
    parts = _LAYOUT.parts(candidate.state, path, centred=not transcoder)
    f, d = parts.encoder.shape
    _check_widths(config, d, f, path)
    k = settle("k", "--k", {beside: positive_integer(config["k"], "k", beside)}, candidate.stated.k, path)
    assert k is not None
    cautions = (TRANSCODER,) if transcoder else ()
    return parts.imported(TopKSparseAutoencoder(d, f, k), {"source_config": config}, keep_topk(k), cautions)


def _check_widths(config: Mapping[str, Any], d: int, f: int, path: Path) -> None:
    beside = f"cfg.json beside {path}"
    width = optional_count(config, "d_in", beside) or d
    declared = config.get("num_latents") or 0
    if declared == 0:
        declared = width * (optional_count(config, "expansion_factor", beside) or f // d)
    if declared != f or width != d:
        raise CheckpointError(
            f"{beside} says {shown(declared)} latents of {width}, its weights {f} of {d}",
            "Its config and weights come from different SAEs.",
        )


def write(path: Path, sae: LinearSae, config: Mapping[str, Any]) -> None:
    """Write cfg.json and sae.safetensors into the folder `path`."""
    if not isinstance(sae, TopKSparseAutoencoder):
        raise unsupported("sparsify", sae, "TopK alone")
    cfg = {
        "activation": "topk",
        "expansion_factor": max(1, sae.hidden_dim // sae.input_dim),
        "normalize_decoder": True,
        "num_latents": sae.hidden_dim,
        "k": sae.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": sae.input_dim,
    }
    write_safetensors(path / WEIGHTS, _LAYOUT.tensors(sae))
    files.write_json(path / "cfg.json", cfg)


FORMAT = Format("sparsify", recognise, read, write, weights=WEIGHTS)
