"""The pictures of step 9: how two layers differ, and their best-matched features side by side."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array, vstack

from fluxscope.draw.heatmap import outline_heatmap, overlay_heatmap, token_map_to_heatmap
from fluxscope.draw.layer_plots import partner_histogram
from fluxscope.draw.pairs import FeaturePair, pair_sheet
from fluxscope.draw.plots import frequency_comparison, l0_comparison
from fluxscope.files import save_image
from fluxscope.measures.clip import open_picture
from fluxscope.measures.compare import Partners, image_l0
from fluxscope.measures.stats import FeatureStats
from fluxscope.rundir import RunDir
from fluxscope.sae.base import LinearSae
from fluxscope.steps.step import Context
from fluxscope.store import CodeStore

SHEET_PAIRS, SHEET_IMAGES = 10, 4
SHEET_LEAST_IMAGES = 6
"""Images on which a feature must be active to stand on the sheet: rarer ones match by accident."""


@dataclass(frozen=True)
class Layer:
    """One layer's results, read once."""

    number: int
    files: RunDir
    s: np.ndarray
    stats: FeatureStats
    store: CodeStore
    sae: LinearSae

    @property
    def name(self) -> str:
        return f"layer {self.number}"

    def token_rows(self) -> csr_array:
        """The codes of all tokens of all images, (images x tokens, features)."""
        parts = []
        for _, codes in self.store.blocks():
            indptr, feature, value = codes.numpy()
            parts.append(csr_array((value, feature, indptr), shape=(codes.n_tokens, codes.n_features)))
        return vstack(parts, format="csr")


def draw(
    context: Context, early: Layer, late: Layer, matches: dict[str, Partners], records: list[dict]
) -> None:
    """Write every picture of the comparison, and S under the names that the contract gives it."""
    folder, layers = context.files.layer_comparison, (early, late)
    for layer in layers:
        copy_s(layer.files.s_matrix, folder / f"S_layer{layer.number}.npy")
    l0 = {layer.name: image_l0(layer.s, layer.stats.eps).astype(float) for layer in layers}
    frequency = {layer.name: layer.stats.frequency for layer in layers}
    similarity = {
        name.replace("_", " "): found.similarity[early.stats.alive] for name, found in matches.items()
    }
    save_image(folder / "l0_comparison.png", l0_comparison(l0))
    save_image(folder / "frequency_comparison.png", frequency_comparison(frequency, len(early.s)))
    save_image(folder / "partner_similarity.png", partner_histogram(similarity))
    pairs = matched_pairs(context, early, late, matches, records)
    if pairs:
        title = f"Features of {early.name} and their partners in {late.name}"
        subtitle = "the pairs whose token maps correlate best, on the top images of the first"
        names = (early.name, late.name)
        save_image(folder / "matched_features.png", pair_sheet(pairs, names, title, subtitle))


def copy_s(source: Path, target: Path) -> None:
    """S under the second name that the contract gives it, without its bytes twice where links work."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def matched_pairs(
    context: Context, early: Layer, late: Layer, matches: dict[str, Partners], records: list[dict]
) -> list[FeaturePair]:
    """The best-matched pairs of features that are active on enough images, with both heatmaps."""
    found = matches["token_maps"]
    often = early.stats.frequency * len(early.s) >= SHEET_LEAST_IMAGES
    strength = np.where(often, np.nan_to_num(found.similarity, nan=-1.0), -1.0)
    best = np.argsort(-strength, kind="stable")[:SHEET_PAIRS]
    pairs = []
    for feature in best[strength[best] > 0]:
        partner, images = int(found.best[feature]), early.stats.top_idx[:, feature]
        numbers = [
            (name.replace("_", " "), f"{by.similarity[feature]:.2f}")
            for name, by in matches.items()
            if by.best[feature] == partner
        ]
        pairs.append(
            FeaturePair(
                int(feature),
                partner,
                numbers,
                [over(context, records[i], early.store, int(i), int(feature)) for i in images],
                [over(context, records[i], late.store, int(i), partner) for i in images],
            )
        )
    return pairs


def over(context: Context, record: dict, store: CodeStore, image: int, feature: int) -> np.ndarray:
    """One feature's heatmap over a picture."""
    config = context.config
    picture = np.asarray(open_picture(record["image_path"]))
    height, width = picture.shape[:2]
    tokens = store.image(image).column(feature).numpy()
    heatmap = token_map_to_heatmap(
        tokens, width, height, config.image_token_grid, clip_percentile=config.clip_percentile
    )
    return outline_heatmap(overlay_heatmap(picture, heatmap, config.alpha_scale), heatmap)
