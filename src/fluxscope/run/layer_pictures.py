"""The pictures of step 9: how two layers differ, and their best-matched features side by side."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np

from fluxscope.draw.heatmap import outline_heatmap, overlay_heatmap, token_map_to_heatmap
from fluxscope.draw.layer_plots import partner_histogram
from fluxscope.draw.pairs import FeaturePair, pair_sheet
from fluxscope.draw.plots import frequency_comparison, l0_comparison
from fluxscope.files import explain_os_error, note_written, save_image
from fluxscope.measures.clip import open_picture
from fluxscope.measures.compare import Partners, image_l0
from fluxscope.run.context import Context
from fluxscope.run.layers import Layer

TOP_IMAGES = 20
"""Top images of a feature among which those of distinct prompts are looked for."""

SHEET_PAIRS, SHEET_IMAGES = 10, 4
SHEET_LEAST_IMAGES = 6
"""Images on which a feature must be active to stand on the sheet: rarer ones match by accident."""

Matches = dict[str, Partners]
"""By the name of the measure: image_level, token_maps, decoder_cosine."""


def draw(
    context: Context, early: Layer, late: Layer, matches: Matches, chance: Matches, records: list[dict]
) -> None:
    """Write every picture of the comparison, and S under the names that the contract gives it."""
    folder, layers = context.files.layer_comparison, (early, late)
    for layer in layers:
        copy_s(layer.files.s_matrix, folder / f"S_layer{layer.number}.npy")
    l0 = {
        f"{layer.name} ({layer.tokens_l0().mean():.3g} a token)": image_l0(layer.s, layer.stats.eps)
        for layer in layers
    }
    frequency = {layer.name: layer.stats.frequency for layer in layers}
    save_image(folder / "l0_comparison.png", l0_comparison(l0))
    save_image(folder / "frequency_comparison.png", frequency_comparison(frequency, len(early.s)))
    alive = early.stats.alive
    similarity, by_chance = (
        {name.replace("_", " "): found.similarity[alive] for name, found in measured.items()}
        for measured in (matches, chance)
    )
    title = f"How similar is each {early.name} feature's best partner in {late.name}?"
    save_image(folder / "partner_similarity.png", partner_histogram(similarity, by_chance, title))
    draw_pairs(context, early, late, matches["token_maps"], records)


def draw_pairs(context: Context, early: Layer, late: Layer, found: Partners, records: list[dict]) -> None:
    """The sheet of matched features; no sheet where no pair is good enough."""
    config, path = context.config, context.files.layer_comparison / "matched_features.png"
    pairs = [
        pair_of(context, early, late, found, int(feature), records) for feature in best_pairs(early, found)
    ]
    if not pairs:
        path.unlink(missing_ok=True)
        return
    footer = (
        f"{config.model_id} · {early.site} above, {late.site} below · step {config.target_step_number} of "
        f"{config.num_inference_steps} · {len(records)} pictures. Each row of heatmaps has one scale."
    )
    sheet = pair_sheet(
        pairs,
        (early.name, late.name),
        f"Features of {early.name} and their partners in {late.name}",
        "each other's best partner by token maps, on the first one's strongest pictures of distinct prompts",
        footer,
    )
    save_image(path, sheet)


def copy_s(source: Path, target: Path) -> None:
    """S under the second name that the contract gives it, without its bytes twice where links work."""
    beside = target.with_name(f".{target.name}.tmp")
    if target.exists() and target.samefile(source):
        note_written(target)
        return  # renaming one name of a file over another does nothing, and would leave `beside`
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside.unlink(missing_ok=True)
        try:
            os.link(source, beside)
        except OSError:
            shutil.copyfile(source, beside)
        beside.replace(target)
        note_written(target)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise explain_os_error(error, target) from error


def best_pairs(early: Layer, found: Partners) -> np.ndarray:
    """The early features that are shown: each its partner's best one too, the most similar first."""
    shared = found.best >= 0
    mutual = shared & (found.back_best[found.best] == np.arange(len(found.best)))
    often = np.rint(early.stats.frequency * len(early.s)) >= SHEET_LEAST_IMAGES
    strength = np.where(mutual & often, found.similarity, -np.inf)
    best = np.argsort(-strength, kind="stable")[:SHEET_PAIRS]
    return best[strength[best] > 0]


def pair_of(
    context: Context, early: Layer, late: Layer, found: Partners, feature: int, records: list[dict]
) -> FeaturePair:
    """A feature and its best partner, with heatmaps over the feature's top images of distinct prompts."""
    partner = int(found.best[feature])
    images = distinct(early.stats.top_idx[:, feature], records)
    measured = {
        "S over images": np.corrcoef(early.s[:, feature], late.s[:, partner])[0, 1],
        "token maps": found.similarity[feature],
    }
    if early.sae.input_dim == late.sae.input_dim:
        measured["decoder cosine"] = cosine(early.directions()[feature], late.directions()[partner])
    return FeaturePair(
        feature,
        partner,
        [(name, f"{value:.2f}") for name, value in measured.items()],
        heatmaps(context, records, early, feature, images),
        heatmaps(context, records, late, partner, images),
        [records[image]["prompt"] for image in images],
    )


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def distinct(ranked: np.ndarray, records: list[dict]) -> list[int]:
    """The first images of so many distinct prompts, by their places in the manifest."""
    first: dict[str, int] = {}
    for image in ranked:
        first.setdefault(records[image]["prompt"], int(image))
    return list(first.values())[:SHEET_IMAGES]


def heatmaps(
    context: Context, records: list[dict], layer: Layer, feature: int, images: list[int]
) -> list[np.ndarray]:
    """One feature's heatmaps over some pictures, on one scale, so that faint stays faint."""
    config = context.config
    maps = [layer.store.image(image).column(feature).numpy() for image in images]
    full = max(float(np.percentile(tokens, config.clip_percentile)) for tokens in maps)
    drawn = []
    for image, tokens in zip(images, maps, strict=True):
        picture = np.asarray(open_picture(records[image]["image_path"]))
        height, width = picture.shape[:2]
        grid = config.image_token_grid
        heat = token_map_to_heatmap(tokens, width, height, grid, config.clip_percentile, max(full, 1e-6))
        drawn.append(outline_heatmap(overlay_heatmap(picture, heat, config.alpha_scale), heat))
    return drawn
