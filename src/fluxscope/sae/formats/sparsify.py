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
from fluxscope.sae.config_values import positive_integer
from fluxscope.sae.formats.format import Format, Imported, keep_topk, unsupported
from fluxscope.sae.formats.layout import Layout
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
            selection or a skip connection.
    """
    config, path = candidate.config, candidate.path
    if "k" not in config:
        raise CheckpointError(f"{path} has no cfg.json beside it", "Keep both files in one folder.")
    if config.get("activation", "topk") != "topk" or config.get("skip_connection"):
        raise CheckpointError(
            f"{path} uses {'a skip connection' if config.get('skip_connection') else config['activation']}",
            "Only sparsify's plain TopK coders can be read.",
        )
    parts = _LAYOUT.parts(candidate.state, path, centred=not config.get("transcode"))
    f, d = parts.encoder.shape
    declared = config.get("num_latents") or config.get("d_in", d) * config.get("expansion_factor", f // d)
    if declared != f or config.get("d_in", d) != d:
        raise CheckpointError(
            f"cfg.json beside {path} says {declared} latents of {config.get('d_in')}, its weights {f} of {d}",
            "Its config and weights come from different SAEs.",
        )
    k = positive_integer(config["k"], "k", path)
    return parts.imported(TopKSparseAutoencoder(d, f, k), {"source_config": config}, keep_topk(k))


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
