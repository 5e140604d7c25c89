"""Step 9: the features of blocks 5 and 15 on the same images, from what step 1 stored.

Every feature of the early layer is matched with one of the late layer in three ways: by the correlation of
S over images, by the correlation of token maps, and by the cosine of decoder directions. From the token
maps' matches follow the words: which features persist, vanish, appear.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fluxscope.errors import MissingInputError, RunDirError
from fluxscope.files import load_npy, write_json
from fluxscope.measures.compare import (
    Partners,
    correlation_blocks,
    cosine_blocks,
    fates,
    image_l0,
    linear_cka,
    one_to_one,
    partners,
    sparse_S,
    top_features,
    top_overlap,
)
from fluxscope.measures.stats import feature_stats
from fluxscope.records import load_manifest
from fluxscope.rundir import RunDir
from fluxscope.sae.formats import load
from fluxscope.steps.layer_pictures import SHEET_IMAGES, Layer, draw
from fluxscope.steps.step import Context
from fluxscope.store import CodeStore

EARLY, LATE = 5, 15
SAME = 0.5
"""Correlation of token maps from which on two features count as the same one."""

TOP_FEATURES = 20


def run(context: Context) -> str:
    files = context.files
    early, late = open_layer(context, EARLY), open_layer(context, LATE)
    records = same_images(early, late)
    matches = match(early, late)
    overlap = top_overlap(
        top_features(early.s, TOP_FEATURES, early.stats.eps),
        top_features(late.s, TOP_FEATURES, late.stats.eps),
        matches["token_maps"].best,
    )
    fate = fates(matches["token_maps"], early.stats.alive, late.stats.alive, SAME)
    words = (
        f"Of {len(early.stats.alive)} features alive in layer {EARLY}, {len(fate.persist)} persist to layer "
        f"{LATE} (token maps correlate at {SAME} or more) and {len(fate.vanish)} vanish; "
        f"{len(fate.appear)} of {len(late.stats.alive)} appear there."
    )
    write_json(files.comparison_summary, summary_of(early, late))
    write_json(
        files.comparison,
        {
            "words": words,
            "cka": linear_cka(reconstructions(early, late)),
            "l0": {layer.name: l0_of(layer) for layer in (early, late)},
            "top_feature_overlap": mean_or_none(overlap),
            "persist": fate.persist,
            "vanish": fate.vanish,
            "appear": fate.appear,
            "matches": {name: matches_of(found, early) for name, found in matches.items()},
        },
    )
    draw(context, early, late, matches, records)
    return words


def open_layer(context: Context, number: int) -> Layer:
    """Read a layer's results.

    Raises:
        ConfigError: no SAE is set for it.
        MissingInputError: it was not collected.
    """
    config = context.config
    files = RunDir.of(config, number)
    if number not in config.sae_paths:
        raise MissingInputError(
            f"no SAE checkpoint is set for layer {number}",
            f"Set layer{number}_sae_path and run step 1 again.",
        )
    if not files.s_matrix.is_file():
        raise MissingInputError(
            f"layer {number} was not collected: {files.s_matrix} is not there",
            "Run step 1 with --compare-layers: fluxscope collect",
        )
    s = load_npy(files.s_matrix, mmap=True)
    return Layer(
        number,
        files,
        s,
        feature_stats(s, config.eps_alive, SHEET_IMAGES),
        CodeStore(files.codes, config.site_of(number), config.target_step_index),
        load(config.sae_paths[number])[0],
    )


def same_images(early: Layer, late: Layer) -> list[dict[str, Any]]:
    """The manifest, after a look whether both layers list the same images."""
    records, _ = load_manifest(early.files.manifest, early.files.root)
    others, _ = load_manifest(late.files.manifest, late.files.root)
    if [(r["image_id"], r["seed"], r["prompt"]) for r in records] != [
        (r["image_id"], r["seed"], r["prompt"]) for r in others
    ]:
        raise RunDirError(
            f"layers {early.number} and {late.number} list different images",
            "Collect both in one run: fluxscope collect --force",
        )
    return records


def match(early: Layer, late: Layer) -> dict[str, Partners]:
    """Each early feature's partners by image-level S, by token maps, and by decoder cosine."""
    sizes = early.store.n_features, late.store.n_features
    found = {
        "image_level": partners(correlation_blocks(sparse_S(early.s), sparse_S(late.s)), *sizes),
        "token_maps": partners(correlation_blocks(early.token_rows(), late.token_rows()), *sizes),
    }
    if early.sae.input_dim == late.sae.input_dim:
        of_early, of_late = (layer.sae.decoder.weight.T.numpy() for layer in (early, late))
        found["decoder_cosine"] = partners(cosine_blocks(of_early, of_late), *sizes)
    return found


def matches_of(found: Partners, early: Layer) -> list[dict[str, Any]]:
    """A record for each alive early feature: its best partner, and its partner when none is shared."""
    alone = one_to_one(found)
    return [
        {
            "feature": int(f),
            "partner": int(found.best[f]) if found.best[f] >= 0 else None,
            "similarity": float(found.similarity[f]) if np.isfinite(found.similarity[f]) else None,
            "one_to_one": int(alone[f]) if alone[f] >= 0 else None,
        }
        for f in early.stats.alive
    ]


def reconstructions(early: Layer, late: Layer) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What the two SAEs make of the same tokens, a block of images at a time."""
    for (_, a), (_, b) in zip(early.store.blocks(), late.store.blocks(), strict=True):
        yield early.sae.decode(a.to_dense()).numpy(), late.sae.decode(b.to_dense()).numpy()


def l0_of(layer: Layer) -> dict[str, float]:
    per_image = image_l0(layer.s, layer.stats.eps)
    return {
        "per_token": layer.store.nnz / max(layer.store.n_images * layer.store.n_tokens, 1),
        "per_image_mean": float(per_image.mean()),
        "per_image_std": float(per_image.std()),
    }


def summary_of(early: Layer, late: Layer) -> dict[str, Any]:
    """comparison_summary.json. Features are counted by their ids, which two SAEs share by chance only."""
    alive = set(early.stats.alive.tolist()), set(late.stats.alive.tolist())
    summary: dict[str, Any] = {"num_images": len(early.s), "hidden_dim": early.store.n_features}
    for layer in (early, late):
        l0 = l0_of(layer)
        summary[f"layer{layer.number}"] = {
            "mean_l0": l0["per_image_mean"],
            "std_l0": l0["per_image_std"],
            "num_alive_features": len(layer.stats.alive),
        }
    summary["comparison"] = {
        "alive_in_both": len(alive[0] & alive[1]),
        f"alive_only_in_{early.number}": len(alive[0] - alive[1]),
        f"alive_only_in_{late.number}": len(alive[1] - alive[0]),
    }
    return summary


def mean_or_none(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None
