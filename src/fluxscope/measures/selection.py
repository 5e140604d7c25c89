"""Which features are worth showing: scores of all, chosen on some prompts, shown on others (step 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int, Int32

from fluxscope.errors import ConfigError
from fluxscope.measures.certainty import false_discovery
from fluxscope.measures.coherence import coherence, random_coherence
from fluxscope.measures.halves import Halves
from fluxscope.measures.held_out import Views, taught_by_others, taught_on_test_on
from fluxscope.measures.top_images import RankedImages

if TYPE_CHECKING:
    from scipy.sparse import csc_array

RANKINGS = ("clip_held_out", "clip_coherence", "coherence_z", "crop_coherence", "coverage", "frequency")

FALSE_DISCOVERIES = 0.05
"""The share of false discoveries among the features that are said to beat chance."""


@dataclass(frozen=True)
class FeatureScores:
    """What the selection knows of every feature. NaN stands for what was not, or cannot be, measured.

    All but `ranked` are measures, one number a feature: a further one is a field here and a value in
    `score_features`; step 4 writes it, and draw/sheet.py says whether a card shows it.

    Attributes:
        ranked: the top images behind the scores.
        clip_coherence: float32 (f), their mean pairwise cosine; NaN with too few prompts.
        coherence_z: float32 (f), its distance from the coherence of random image sets of the same size and
            of distinct prompts, in their standard deviations.
        crop_coherence: float32 (f), the same of crops around the activation's peak (see with_crops).
        coverage, frequency: those of `ranked`.
        n_top: int32 (f), how many top images (of distinct prompts) there are.
        clip_held_out: float32 (f), how well what other prompts' pictures taught tells where the feature
            fires (measures/held_out.py); of a run in two halves: what the half that chooses it taught, on
            the half that shows it.
        p_value: float32 (f), the chance of so large a clip_held_out; 1 for alive features without one.
        q_value: float32 (f), the share of false discoveries among all alive features of such a p_value.
        chosen_score, shown_score: float32 (f), the score that ranks, on the pictures that choose the
            feature and on those that show it.
        chosen_pictures, shown_pictures: int32 (f), how many these are.
    """

    ranked: RankedImages
    clip_coherence: Float32[np.ndarray, " f"]
    coherence_z: Float32[np.ndarray, " f"]
    crop_coherence: Float32[np.ndarray, " f"]
    coverage: Int32[np.ndarray, " f"]
    frequency: Float32[np.ndarray, " f"]
    n_top: Int32[np.ndarray, " f"]
    clip_held_out: Float32[np.ndarray, " f"]
    p_value: Float32[np.ndarray, " f"]
    q_value: Float32[np.ndarray, " f"]
    chosen_score: Float32[np.ndarray, " f"]
    shown_score: Float32[np.ndarray, " f"]
    chosen_pictures: Int32[np.ndarray, " f"]
    shown_pictures: Int32[np.ndarray, " f"]

    def measures(self) -> dict[str, np.ndarray]:
        """Every measure by its name."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "ranked"}

    def by(self, name: str) -> np.ndarray:
        """The scores to rank by; a ConfigError names the known ones."""
        if name not in RANKINGS:
            raise ConfigError(f"rank_by is {name!r}", f"Choose one of {', '.join(RANKINGS)}.")
        return self.measures()[name]


@dataclass(frozen=True)
class Choice:
    """A feature that is chosen to be shown.

    Attributes:
        example_image_ids: the images that it is shown on.
        top_m_image_ids: its top images, strongest first.
    """

    feature_id: int
    example_image_ids: list[int]
    top_m_image_ids: list[int]


def score_features(
    ranked: RankedImages,
    embeddings: Float32[np.ndarray, "n e"],
    prompt_idx: Int[np.ndarray, " n"],
    min_prompts: int = 6,
    some: Bool[np.ndarray, " n"] | None = None,
) -> FeatureScores:
    """Score the top images of all features at once.

    Args:
        ranked: from rank_images, over the same images as the embeddings.
        embeddings: CLIP's, unit rows.
        prompt_idx: the prompt of each image.
        min_prompts: features with fewer top images get no coherence; where the run has fewer prompts than
            that, all of its prompts are enough (but two at least).
        some: the images that were ranked; by default all.
    """
    some = np.ones(len(prompt_idx), bool) if some is None else some
    prompt_idx = prompt_idx[some]
    top_m = ranked.image.shape[1]
    n_top = (ranked.image >= 0).sum(1).astype(np.int32)
    enough = max(2, min(min_prompts, top_m, len(np.unique(prompt_idx))))
    sets = np.where((n_top >= enough)[:, None], ranked.image, -1)
    value = coherence(embeddings, sets)
    mean, deviation = random_coherence(embeddings[some], prompt_idx, top_m)
    # Where every random set is the same set (all prompts are needed), chance has no spread and z no meaning.
    deviation = np.where(deviation > 1e-9, deviation, np.nan)
    unknown, n = np.full(len(value), np.nan, np.float32), np.full(len(value), len(prompt_idx), np.int32)
    return FeatureScores(
        ranked,
        clip_coherence=value,
        coherence_z=((value - mean[n_top]) / deviation[n_top]).astype(np.float32),
        crop_coherence=unknown,
        coverage=ranked.coverage,
        frequency=ranked.frequency,
        n_top=n_top,
        clip_held_out=unknown,
        p_value=unknown,
        q_value=unknown,
        chosen_score=unknown,
        shown_score=unknown,
        chosen_pictures=n,
        shown_pictures=n,
    )


def with_crops(
    scores: FeatureScores,
    features: Int[np.ndarray, " c"],
    crop_embeddings: Float32[np.ndarray, "r e"],
    crop_sets: Int[np.ndarray, "c m"],
) -> FeatureScores:
    """Add the crop coherence of some features.

    Args:
        features: whose crops were embedded.
        crop_embeddings: unit rows, one a crop.
        crop_sets: the rows of crop_embeddings that belong to each feature, -1 after the last.
    """
    crops = scores.crop_coherence.copy()
    crops[features] = coherence(crop_embeddings, crop_sets)
    return replace(scores, crop_coherence=crops)


@dataclass(frozen=True)
class Sides:
    """What is known of every feature from all images, from those that choose it, from those that show it.

    Where the prompts are too few for halves, all images do both, and nothing is known of chance.
    """

    overall: FeatureScores
    choosing: FeatureScores
    showing: FeatureScores

    def each(self, change: Callable[[FeatureScores], FeatureScores]) -> Sides:
        """The same change to all; where all images do both, once."""
        overall = change(self.overall)
        if self.choosing is self.showing:
            return Sides(overall, overall, overall)
        return Sides(overall, change(self.choosing), change(self.showing))

    def by(self, rank_by: str) -> FeatureScores:
        """The overall scores, with the score that ranks from either side."""
        chosen = self.choosing.by(rank_by).astype(np.float32)
        apart = self.choosing is not self.showing
        shown = self.showing.by(rank_by).astype(np.float32) if apart else np.full_like(chosen, np.nan)
        return replace(self.overall, chosen_score=chosen, shown_score=shown)


def together(overall: FeatureScores, views: Views) -> Sides:
    """All images choose and show."""
    r = taught_by_others(views, np.ones(len(views.prompts), bool))
    overall = replace(overall, clip_held_out=r)
    return Sides(overall, overall, overall)


def apart(
    overall: FeatureScores, first: FeatureScores, second: FeatureScores, views: Views, halves: Halves
) -> Sides:
    """Each feature's scores on the half of the images that chooses it and on the half that shows it.

    Args:
        first, second: scores of each half.
    """
    one = np.isin(views.prompts, halves.prompts)
    within = taught_by_others(views, one), taught_by_others(views, ~one)
    (r_two, p_two), (r_one, p_one) = taught_on_test_on(views, one, ~one), taught_on_test_on(views, ~one, one)
    choosing, showing = _dealt(first, second, halves.by_first), _dealt(second, first, halves.by_first)
    choosing = replace(choosing, clip_held_out=np.where(halves.by_first, *within))
    showing = replace(showing, clip_held_out=np.where(halves.by_first, r_two, r_one))
    alive = overall.frequency > 0
    p = np.where(alive, np.where(halves.by_first, p_two, p_one), np.nan)
    q = np.full_like(p, np.nan)
    q[alive] = false_discovery(p[alive])
    overall = replace(
        overall,
        clip_held_out=showing.clip_held_out,
        p_value=p.astype(np.float32),
        q_value=q.astype(np.float32),
        chosen_pictures=choosing.chosen_pictures,
        shown_pictures=showing.shown_pictures,
    )
    return Sides(overall, choosing, showing)


def _dealt(yes: FeatureScores, no: FeatureScores, by_first: Bool[np.ndarray, " f"]) -> FeatureScores:
    """The scores of one side where the coin says so, else of the other."""

    def either(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.where(by_first if a.ndim == 1 else by_first[:, None], a, b)

    names = [each.name for each in fields(RankedImages)]
    ranked = RankedImages(
        **{name: either(getattr(yes.ranked, name), getattr(no.ranked, name)) for name in names}
    )
    others = {name: either(value, no.measures()[name]) for name, value in yes.measures().items()}
    return replace(yes, ranked=ranked, **others)


def order_features(scores: FeatureScores, value: Float32[np.ndarray, " f"]) -> Int[np.ndarray, " m"]:
    """The features that have a coherence and the value asked for, largest first, ties by lower id."""
    eligible = np.flatnonzero(np.isfinite(value) & np.isfinite(scores.clip_coherence))
    return eligible[np.argsort(-value[eligible].astype(np.float64), kind="stable")]


def select_features(
    scores: FeatureScores,
    showing: RankedImages,
    image_ids: Sequence[int] | Int[np.ndarray, " n"],
    top_features: int = 10,
    top_examples: int = 4,
    unique: bool = True,
    patterns: csc_array | None = None,
    most_alike: float = 1.0,
) -> list[Choice]:
    """Choose features greedily by their chosen_score, best first, each with its example images.

    With `unique` an image serves as an example once in the whole selection, and a feature that cannot
    show `top_examples` images of its own is passed over.

    Args:
        showing: the images that each feature is shown on.
        image_ids: the id of each row of S.
        patterns: (rows, f), where features fire; one whose pattern correlates with that of a chosen one by
            more than `most_alike` is passed over.

    Returns:
        fewer than top_features where the run doesn't hold more.
    """
    used: set[int] = set()
    choices: list[Choice] = []
    kept: list[np.ndarray] = []
    for feature in order_features(scores, scores.chosen_score):
        if len(choices) == top_features:
            break
        top = [int(i) for i in showing.image[feature] if i >= 0]
        examples = [i for i in top if not (unique and i in used)][:top_examples]
        if len(examples) < top_examples:
            continue
        pattern = None if patterns is None else _pattern(patterns, int(feature))
        if pattern is not None and any(pattern @ other > most_alike for other in kept):
            continue
        kept += [] if pattern is None else [pattern]
        used.update(examples)
        ranked = [int(i) for i in scores.ranked.image[feature] if i >= 0]
        shown, best = ([int(image_ids[i]) for i in images] for images in (examples, ranked))
        choices.append(Choice(int(feature), shown, best))
    return choices


def _pattern(patterns: csc_array, feature: int) -> Float64[np.ndarray, " rows"]:
    """Where a feature fires, as a unit vector less its mean: products of two are correlations."""
    column = patterns[:, [feature]].toarray()[:, 0].astype(np.float64)
    column -= column.mean()
    unit: np.ndarray = column / max(float(np.linalg.norm(column)), 1e-12)
    return unit
