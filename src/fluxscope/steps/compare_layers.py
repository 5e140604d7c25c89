"""Step 9: the features of two SAEs, such as those of blocks 5 and 15, on the images that step 1 stored.

Every feature of the first is matched with one of the second in three ways: by the correlation of S over
images, by the correlation of token maps, and by the cosine of decoder directions. From the token maps'
matches follow the words: which features persist, vanish, appear. Among thousands of candidates the best is
similar by luck too, so the same is measured where nothing can be shared: with each image's tokens beside
those of another image, and with random directions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from fluxscope.draw.layer_plots import partner_histogram
from fluxscope.draw.pairs import FeaturePair, heatmaps_on_one_scale, pair_sheet
from fluxscope.draw.plots import frequency_comparison, l0_comparison
from fluxscope.files import link_or_copy, save_image
from fluxscope.measures.clip import open_picture
from fluxscope.measures.compare import Partners, image_l0, linear_cka, one_to_one, top_features, top_overlap
from fluxscope.measures.profiles import Shared, best_pairs, match, shared_features
from fluxscope.run.context import Context
from fluxscope.run.manifest import Manifest
from fluxscope.run.records import (
    L0,
    AliveCounts,
    BackMatch,
    Comparison,
    ComparisonSummary,
    LayerCounts,
    Match,
    Similarity,
)
from fluxscope.steps.step import Step

if TYPE_CHECKING:
    from fluxscope.run.layers import Layer

STEP = Step(
    number=9,
    name="compare-layers",
    module=__name__,
    summary="Compare the features of two SAEs: blocks 5 and 15, or any.",
    reads=("s_matrix", "manifest", "codes", "pictures"),
    makes=("comparison_summary", "comparison"),
    settings=(
        *("saes", "layer5_sae_path", "layer15_sae_path", "site_pattern", "compare"),
        *("target_step_number", "eps_alive", "alpha_scale", "clip_percentile"),
        *("model_id", "height", "width", "num_inference_steps"),
    ),
    shared=True,
    both_layers=True,
)

SAME = 0.5
"""Correlation of token maps from which on two features count as the same one."""

TOP_FEATURES = 20
"""How many of an image's most active features count in the overlap."""

TOP_IMAGES = 20
"""Top images of a feature among which those of distinct prompts are looked for."""

SHEET_PAIRS, SHEET_IMAGES = 10, 4
SHEET_LEAST_IMAGES = 6
"""Images on which a feature must be active to stand on the sheet: rarer ones match by accident."""

Matches = dict[str, Partners]
"""By the name of the measure: image_level, token_maps, decoder_cosine."""


def run(context: Context) -> str:
    from fluxscope.run.layers import open_layer, same_images

    files = context.files
    early, late = (open_layer(context, site, TOP_IMAGES) for site in context.config.compared_sites)
    manifest = same_images(early, late)
    first, second = early.profiles(), late.profiles()
    matches, chance = match(first, second), match(first, second.of_other_images(), candidates=1)
    shared = shared_features(matches["token_maps"], early.stats.alive, late.stats.alive, SAME)
    by_chance = int((chance["token_maps"].similarity[early.stats.alive] >= SAME).sum())
    words = in_words(early, late, shared, by_chance)
    mean_overlap, overlap = overlap_of(early, late, matches["token_maps"])
    comparison = Comparison(
        words=words,
        cka=linear_cka(reconstructions(early, late)),
        l0={layer.name: l0_of(layer) for layer in (early, late)},
        top_feature_overlap=mean_overlap,
        top_feature_overlap_per_image=overlap,
        similarity=similarities(early, matches, chance),
        persist_by_chance=by_chance,
        persist=shared.persist.tolist(),
        vanish=shared.vanish.tolist(),
        appear=shared.appear.tolist(),
        matches={name: matches_of(found, early) for name, found in matches.items()},
        matches_back={name: back_matches_of(found, late) for name, found in matches.items()},
    )
    draw(context, early, late, matches, chance)
    draw_pairs(context, early, late, matches["token_maps"], manifest)
    comparison.write(files.comparison)
    summary_of(early, late).write(files.comparison_summary)
    return words


def in_words(early: Layer, late: Layer, shared: Shared, by_chance: int) -> str:
    """What becomes of the first site's features, in one sentence.

    Args:
        by_chance: how many would persist by chance.
    """
    return (
        f"Of {len(early.stats.alive)} features alive in {early.name}, {len(shared.persist)} persist to "
        f"{late.name} (token maps correlate at {SAME} or more; {by_chance} by chance) and "
        f"{len(shared.vanish)} vanish; {len(shared.appear)} of the {len(late.stats.alive)} alive in "
        f"{late.name} appear there."
    )


def draw(context: Context, early: Layer, late: Layer, matches: Matches, chance: Matches) -> None:
    """Write the plots of the comparison, and S under the names that the contract gives it."""
    files, layers = context.files, (early, late)
    for layer in layers:
        link_or_copy(layer.files.s_matrix, files.compared_s(layer.files.key))
    l0 = {
        f"{layer.name} ({layer.tokens_l0().mean():.3g} a token)": image_l0(layer.s, layer.stats.eps)
        for layer in layers
    }
    frequency = {layer.name: layer.stats.frequency for layer in layers}
    folder = files.layer_comparison
    save_image(folder / "l0_comparison.png", l0_comparison(l0))
    save_image(folder / "frequency_comparison.png", frequency_comparison(frequency, len(early.s)))
    alive = early.stats.alive
    similarity, by_chance = (
        {name.replace("_", " "): found.similarity[alive] for name, found in measured.items()}
        for measured in (matches, chance)
    )
    title = f"How similar is each {early.name} feature's best partner in {late.name}?"
    save_image(folder / "partner_similarity.png", partner_histogram(similarity, by_chance, title))


def draw_pairs(context: Context, early: Layer, late: Layer, found: Partners, manifest: Manifest) -> None:
    """The sheet of matched features; no sheet where no pair is good enough."""
    config, path = context.config, context.files.layer_comparison / "matched_features.png"
    often = np.rint(early.stats.frequency * len(early.s)) >= SHEET_LEAST_IMAGES
    shown = best_pairs(found, often, SHEET_PAIRS)
    pairs = [pair_of(context, early, late, found, int(feature), manifest) for feature in shown]
    if not pairs:
        path.unlink(missing_ok=True)
        return
    footer = (
        f"{config.model_id} · {early.files.site} above, {late.files.site} below · step "
        f"{config.target_step_number} of {config.num_inference_steps} · {len(early.s)} pictures. Each row of "
        "heatmaps has one scale."
    )
    sheet = pair_sheet(
        pairs,
        (early.name, late.name),
        f"Features of {early.name} and their partners in {late.name}",
        "each other's best partner by token maps, on the first one's strongest pictures of distinct prompts",
        footer,
    )
    save_image(path, sheet)


def pair_of(
    context: Context,
    early: Layer,
    late: Layer,
    found: Partners,
    feature: int,
    manifest: Manifest,
) -> FeaturePair:
    """A feature and its best partner, with heatmaps over the feature's top images of distinct prompts."""
    config, partner = context.config, int(found.best[feature])
    images = distinct(early.stats.top_idx[:, feature], manifest)
    measured = {
        "S over images": np.corrcoef(early.s[:, feature], late.s[:, partner])[0, 1],
        "token maps": found.similarity[feature],
    }
    if early.sae.input_dim == late.sae.input_dim:
        measured["decoder cosine"] = cosine(early.directions()[feature], late.directions()[partner])
    pictures = [np.asarray(open_picture(manifest.picture(manifest.rows[image]))) for image in images]
    upper, lower = (
        heatmaps_on_one_scale(
            pictures,
            [layer.store.image(image).column(which).numpy() for image in images],
            config.image_token_grid,
            config.clip_percentile,
            config.alpha_scale,
        )
        for layer, which in ((early, feature), (late, partner))
    )
    return FeaturePair(
        feature,
        partner,
        [(name, f"{value:.2f}") for name, value in measured.items()],
        upper,
        lower,
        [manifest.rows[image].prompt for image in images],
    )


def cosine(a: Float32[np.ndarray, " d"], b: Float32[np.ndarray, " d"]) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def distinct(ranked: np.ndarray, manifest: Manifest) -> list[int]:
    """The first images of so many distinct prompts, by their places in the manifest."""
    first: dict[str, int] = {}
    for image in ranked:
        first.setdefault(manifest.rows[image].prompt, int(image))
    return list(first.values())[:SHEET_IMAGES]


def matches_of(found: Partners, early: Layer) -> list[Match]:
    """A record for each alive early feature: its best partner, and its partner when none is shared."""
    alone = one_to_one(found)
    return [
        Match(
            feature=int(f),
            partner=known(found.best[f]),
            similarity=number(found.similarity[f]),
            one_to_one=known(alone[f]),
        )
        for f in early.stats.alive
    ]


def back_matches_of(found: Partners, late: Layer) -> list[BackMatch]:
    """A record for each alive late feature: its best partner in the early layer."""
    return [
        BackMatch(
            feature=int(f),
            partner=known(found.back_best[f]),
            similarity=number(found.back_similarity[f]),
        )
        for f in late.stats.alive
    ]


def similarities(
    early: Layer, matches: dict[str, Partners], chance: dict[str, Partners]
) -> dict[str, Similarity]:
    """The median similarity of the early features' best partners, by each measure, and what chance gives."""
    alive = early.stats.alive
    return {
        name: Similarity(
            median=median(found.similarity[alive]),
            median_by_chance=median(chance[name].similarity[alive]),
        )
        for name, found in matches.items()
    }


def overlap_of(early: Layer, late: Layer, found: Partners) -> tuple[float | None, list[float | None]]:
    """The share of each image's most active early features whose partner is among its late ones: the mean,
    and image by image."""
    tops = [top_features(layer.s, TOP_FEATURES, layer.stats.eps) for layer in (early, late)]
    overlap = top_overlap(tops[0], tops[1], found.best)
    finite = overlap[np.isfinite(overlap)]
    return number(finite.mean()) if len(finite) else None, [number(share) for share in overlap]


def reconstructions(early: Layer, late: Layer) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What the two SAEs make of the same tokens, a block of images at a time."""
    return zip(early.reconstructions(), late.reconstructions(), strict=True)


def l0_of(layer: Layer) -> L0:
    """Active features of a token and of an image: means and standard deviations."""
    per_token, per_image = layer.tokens_l0(), image_l0(layer.s, layer.stats.eps)
    return L0(
        per_token=float(per_token.mean()),
        per_token_std=float(per_token.std()),
        per_image_mean=float(per_image.mean()),
        per_image_std=float(per_image.std()),
    )


def summary_of(early: Layer, late: Layer) -> ComparisonSummary:
    """comparison_summary.json. Features are counted by their ids, which two SAEs share by chance only."""
    first, second = (set(layer.stats.alive.tolist()) for layer in (early, late))
    names = [layer.files.key.removeprefix("layer") for layer in (early, late)]
    return ComparisonSummary(
        num_images=len(early.s),
        hidden_dim=early.store.n_features,
        sites={layer.files.key: counts_of(layer) for layer in (early, late)},
        comparison=AliveCounts(
            alive_in_both=len(first & second),
            alive_only_in={
                f"alive_only_in_{names[0]}": len(first - second),
                f"alive_only_in_{names[1]}": len(second - first),
            },
        ),
    )


def counts_of(layer: Layer) -> LayerCounts:
    """Active features of a picture, and features alive."""
    per_image = image_l0(layer.s, layer.stats.eps)
    return LayerCounts(
        mean_l0=float(per_image.mean()),
        std_l0=float(per_image.std()),
        num_alive_features=len(layer.stats.alive),
        num_features=layer.store.n_features,
    )


def known(feature: int | np.integer) -> int | None:
    """A feature as JSON keeps it; None for -1, which stands for none."""
    return int(feature) if feature >= 0 else None


def number(value: float | np.floating) -> float | None:
    """A number as JSON keeps it; None for NaN."""
    return float(value) if np.isfinite(value) else None


def median(values: Float32[np.ndarray, " m"]) -> float | None:
    """The median of what is no NaN; None where nothing is."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else None
