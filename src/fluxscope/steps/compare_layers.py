"""Step 9: the features of blocks 5 and 15 on the same images, from what step 1 stored.

Every feature of the early layer is matched with one of the late layer in three ways: by the correlation of
S over images, by the correlation of token maps, and by the cosine of decoder directions. From the token
maps' matches follow the words: which features persist, vanish, appear. Among thousands of candidates the
best is similar by luck too, so the same is measured where nothing can be shared: with each image's tokens
beside those of another image, and with random directions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32
from scipy.sparse import csr_array, vstack

from fluxscope.files import write_json
from fluxscope.measures.compare import (
    Fates,
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
from fluxscope.run.context import Context
from fluxscope.run.layer_pictures import TOP_IMAGES, draw
from fluxscope.run.layers import Layer, open_layer, same_images

EARLY, LATE = 5, 15
SAME = 0.5
"""Correlation of token maps from which on two features count as the same one."""

TOP_FEATURES = 20
"""How many of an image's most active features count in the overlap."""


@dataclass(frozen=True)
class Evidence:
    """What the features of a layer are compared by.

    Attributes:
        image_level: S, (n, f).
        token_maps: the codes of all tokens, (n x t, f).
        directions: of the decoder.
    """

    image_level: csr_array
    token_maps: csr_array
    directions: Float[np.ndarray, "f d"]

    @classmethod
    def of(cls, layer: Layer) -> Evidence:
        return cls(sparse_S(layer.s), layer.token_rows(), layer.directions())

    def unrelated(self) -> Evidence:
        """The same features on other images: each image's row in the place of one half the run away."""
        n = self.image_level.shape[0]
        tokens = self.token_maps.shape[0] // n
        noise = np.random.default_rng(0).standard_normal(self.directions.shape, dtype=np.float32)
        return Evidence(rolled(self.image_level, n // 2), rolled(self.token_maps, n // 2 * tokens), noise)


def rolled(x: csr_array, rows: int) -> csr_array:
    """The matrix with its first rows moved to its end."""
    return vstack([x[rows:], x[:rows]], format="csr")


def run(context: Context) -> str:
    files = context.files
    early, late = (open_layer(context, number, TOP_IMAGES) for number in (EARLY, LATE))
    records = same_images(early, late)
    seen = Evidence.of(late)
    own = Evidence.of(early)
    matches, chance = match(own, seen), match(own, seen.unrelated(), candidates=1)
    fate = fates(matches["token_maps"], early.stats.alive, late.stats.alive, SAME)
    lucky = int((chance["token_maps"].similarity[early.stats.alive] >= SAME).sum())
    words = in_words(early, late, fate, lucky)
    comparison = {
        "words": words,
        "cka": linear_cka(reconstructions(early, late)),
        "l0": {layer.name: l0_of(layer) for layer in (early, late)},
        **overlap_of(early, late, matches["token_maps"]),
        "similarity": similarities(early, matches, chance),
        "persist_by_chance": lucky,
        "persist": fate.persist,
        "vanish": fate.vanish,
        "appear": fate.appear,
        "matches": {name: matches_of(found, early) for name, found in matches.items()},
        "matches_back": {name: back_matches_of(found, late) for name, found in matches.items()},
    }
    draw(context, early, late, matches, chance, records)
    write_json(files.comparison, comparison)
    write_json(files.comparison_summary, summary_of(early, late))
    return words


def in_words(early: Layer, late: Layer, fate: Fates, lucky: int) -> str:
    """What becomes of the early layer's features, in one sentence.

    Args:
        lucky: how many would persist by chance.
    """
    return (
        f"Of {len(early.stats.alive)} features alive in {early.name}, {len(fate.persist)} persist to "
        f"{late.name} (token maps correlate at {SAME} or more; {lucky} by chance) and {len(fate.vanish)} "
        f"vanish; {len(fate.appear)} of the {len(late.stats.alive)} alive in {late.name} appear there."
    )


def match(early: Evidence, late: Evidence, candidates: int | None = None) -> dict[str, Partners]:
    """Each early feature's partners by image-level S, by token maps, and by decoder cosine.

    The cosine is left out where the two SAEs are of different widths.
    """
    sizes = len(early.directions), len(late.directions)
    blocks = {
        "image_level": correlation_blocks(early.image_level, late.image_level),
        "token_maps": correlation_blocks(early.token_maps, late.token_maps),
    }
    if early.directions.shape[1] == late.directions.shape[1]:
        blocks["decoder_cosine"] = cosine_blocks(early.directions, late.directions)
    return {name: partners(rows, *sizes, candidates) for name, rows in blocks.items()}


def matches_of(found: Partners, early: Layer) -> list[dict[str, Any]]:
    """A record for each alive early feature: its best partner, and its partner when none is shared."""
    alone = one_to_one(found)
    return [
        {
            "feature": int(f),
            "partner": known(found.best[f]),
            "similarity": number(found.similarity[f]),
            "one_to_one": known(alone[f]),
        }
        for f in early.stats.alive
    ]


def back_matches_of(found: Partners, late: Layer) -> list[dict[str, Any]]:
    """A record for each alive late feature: its best partner in the early layer."""
    return [
        {
            "feature": int(f),
            "partner": known(found.back_best[f]),
            "similarity": number(found.back_similarity[f]),
        }
        for f in late.stats.alive
    ]


def similarities(
    early: Layer, matches: dict[str, Partners], chance: dict[str, Partners]
) -> dict[str, dict[str, float | None]]:
    """The median similarity of the early features' best partners, by each measure, and what chance gives."""
    alive = early.stats.alive
    return {
        name: {
            "median": median(found.similarity[alive]),
            "median_by_chance": median(chance[name].similarity[alive]),
        }
        for name, found in matches.items()
    }


def overlap_of(early: Layer, late: Layer, found: Partners) -> dict[str, Any]:
    """The share of each image's most active early features whose partner is among its late ones."""
    tops = [top_features(layer.s, TOP_FEATURES, layer.stats.eps) for layer in (early, late)]
    overlap = top_overlap(tops[0], tops[1], found.best)
    finite = overlap[np.isfinite(overlap)]
    return {
        "top_feature_overlap": number(finite.mean()) if len(finite) else None,
        "top_feature_overlap_per_image": [number(share) for share in overlap],
    }


def reconstructions(early: Layer, late: Layer) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What the two SAEs make of the same tokens, a block of images at a time."""
    return zip(early.reconstructions(), late.reconstructions(), strict=True)


def l0_of(layer: Layer) -> dict[str, float]:
    """Active features of a token and of an image: means and standard deviations."""
    per_token, per_image = layer.tokens_l0(), image_l0(layer.s, layer.stats.eps)
    return {
        "per_token": float(per_token.mean()),
        "per_token_std": float(per_token.std()),
        "per_image_mean": float(per_image.mean()),
        "per_image_std": float(per_image.std()),
    }


def summary_of(early: Layer, late: Layer) -> dict[str, Any]:
    """comparison_summary.json. Features are counted by their ids, which two SAEs share by chance only."""
    alive = set(early.stats.alive.tolist()), set(late.stats.alive.tolist())
    summary: dict[str, Any] = {"num_images": len(early.s), "hidden_dim": early.store.n_features}
    for layer in (early, late):
        per_image = image_l0(layer.s, layer.stats.eps)
        summary[f"layer{layer.number}"] = {
            "mean_l0": float(per_image.mean()),
            "std_l0": float(per_image.std()),
            "num_alive_features": len(layer.stats.alive),
            "num_features": layer.store.n_features,
        }
    summary["comparison"] = {
        "alive_in_both": len(alive[0] & alive[1]),
        f"alive_only_in_{early.number}": len(alive[0] - alive[1]),
        f"alive_only_in_{late.number}": len(alive[1] - alive[0]),
    }
    return summary


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
