"""Which features are worth showing: coherent top images, on many prompts, beyond chance (step 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from jaxtyping import Float32, Int, Int32, Int64

from fluxscope.errors import ConfigError, FluxscopeError
from fluxscope.measures.coherence import coherence, random_coherence
from fluxscope.measures.ranking import (
    Entries,
    SMatrix,
    TopLists,
    check_S,
    check_values,
    count_rows,
    even_bounds,
    walk_rows,
)

RANKINGS = ("clip_coherence", "coherence_z", "crop_coherence", "coverage", "frequency")


@dataclass(frozen=True)
class RankedImages:
    """The images that each feature fires on most, one per prompt.

    Attributes:
        image: int32 (f, m), rows of S by descending activation, the best image of each prompt, -1 after
            the last; only images on which the feature is active.
        score: float32 (f, m), their activations, -inf after the last.
        coverage: int32 (f), distinct prompts on which the feature is active.
        frequency: float32 (f), share of images on which it is active.
    """

    image: Int32[np.ndarray, "f m"]
    score: Float32[np.ndarray, "f m"]
    coverage: Int32[np.ndarray, " f"]
    frequency: Float32[np.ndarray, " f"]


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
    """

    ranked: RankedImages
    clip_coherence: Float32[np.ndarray, " f"]
    coherence_z: Float32[np.ndarray, " f"]
    crop_coherence: Float32[np.ndarray, " f"]
    coverage: Int32[np.ndarray, " f"]
    frequency: Float32[np.ndarray, " f"]
    n_top: Int32[np.ndarray, " f"]

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


def rank_images(
    S: SMatrix, prompt_idx: Int[np.ndarray, " images"], eps: float, top_m: int, block: int | None = None
) -> RankedImages:
    """Walk S once and rank each feature's images by activation, keeping the first image of each prompt.

    Args:
        S: float32 (n, f), an array or a memory map; it is read in blocks of rows, none of them smaller than
            the images of one prompt.
        prompt_idx: the prompt of each row.
        eps: a feature is active on an image when S > eps.
        top_m: how many images to keep.

    Raises:
        FluxscopeError: S is empty, damaged, or has another number of rows than prompt_idx.
    """
    check_S(S)
    n, f = S.shape
    if len(prompt_idx) != n:
        raise FluxscopeError(
            f"S has {n} images, the prompts are of {len(prompt_idx)}", "Both must come from the same run."
        )
    # The images of each prompt beside each other, as a run writes them, and blocks of whole prompts: then
    # the maxima of the prompts take the place of their images at once.
    order = np.argsort(prompt_idx, kind="stable")
    as_is = bool((order == np.arange(n)).all())
    first = np.unique(prompt_idx[order], return_index=True)[1]  # of each prompt, in the order
    lists = TopLists(f, top_m, float(np.nextafter(np.float32(eps), np.float32(np.inf))))
    coverage, count = np.zeros(f, np.int64), np.zeros(f, np.int64)
    for start, rows in walk_rows(S, _prompt_bounds(first, n, f, block), None if as_is else order):
        stop = start + len(rows)
        heads = first[np.searchsorted(first, start) : np.searchsorted(first, stop)] - start
        best = _maxima(rows, heads)
        if not best.max() < np.inf:
            check_values(rows, f, start)
        coverage += count_rows(best > eps)
        count += count_rows(rows > eps)
        row, feature, value = _candidates(best, rows, heads, lists.bar)
        lists.push(Entries(order[start + row], feature, value))
    score, image = lists.lists()
    return RankedImages(image, score, coverage.astype(np.int32), (count / n).astype(np.float32))


def _prompt_bounds(
    first: Int64[np.ndarray, " p"], n: int, f: int, block: int | None
) -> Int64[np.ndarray, " b"]:
    """Bounds of blocks of about even size, each moved back to the beginning of a prompt."""
    wanted = even_bounds(n, f, block)[1:-1]
    return np.unique(np.concatenate([[0], first[np.searchsorted(first, wanted, "right") - 1], [n]]))


def _maxima(rows: SMatrix, heads: Int64[np.ndarray, " p"]) -> Float32[np.ndarray, "p f"]:
    """The largest value of each stretch of rows; `heads` are the stretches' first rows.

    By turns (all second rows, all third ones, ...): NumPy's reduceat takes many times as long.
    """
    size = np.diff(heads, append=len(rows))
    if (size == size[0]).all():
        turns = [rows[turn :: size[0]] for turn in range(size[0])]
        best: np.ndarray = turns[0] if len(turns) == 1 else np.maximum(turns[0], turns[1])
        for rest in turns[2:]:
            np.maximum(best, rest, out=best)
        return best
    best = rows[heads]
    for turn in range(1, int(size.max())):
        more = np.flatnonzero(size > turn)
        best[more] = np.maximum(best[more], rows[heads[more] + turn])
    return best


def _candidates(
    best: SMatrix, rows: Float32[np.ndarray, "r f"], heads: Int64[np.ndarray, " p"], bar: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, feature and value of the prompts' maxima that reach the bar; the first row that has the value."""
    prompt, feature = np.divmod(np.flatnonzero(best >= bar), best.shape[1])
    value = best[prompt, feature]
    row = heads[prompt]
    behind = rows[row, feature] != value
    while behind.any():
        row[behind] += 1
        behind = rows[row, feature] != value
    return row, feature, value


def score_features(
    ranked: RankedImages,
    embeddings: Float32[np.ndarray, "n e"],
    prompt_idx: Int[np.ndarray, " n"],
    min_prompts: int = 6,
) -> FeatureScores:
    """Score the top images of all features at once.

    Args:
        ranked: from rank_images, over the same images as the embeddings.
        embeddings: CLIP's, unit rows.
        prompt_idx: the prompt of each image.
        min_prompts: features with fewer top images get no coherence; where the run has fewer prompts than
            that, all of its prompts are enough (but two at least).
    """
    top_m = ranked.image.shape[1]
    n_top = (ranked.image >= 0).sum(1).astype(np.int32)
    enough = max(2, min(min_prompts, top_m, len(np.unique(prompt_idx))))
    sets = np.where((n_top >= enough)[:, None], ranked.image, -1)
    value = coherence(embeddings, sets)
    mean, deviation = random_coherence(embeddings, prompt_idx, top_m)
    # Where every random set is the same set (all prompts are needed), chance has no spread and z no meaning.
    deviation = np.where(deviation > 1e-9, deviation, np.nan)
    return FeatureScores(
        ranked,
        clip_coherence=value,
        coherence_z=((value - mean[n_top]) / deviation[n_top]).astype(np.float32),
        crop_coherence=np.full(len(value), np.nan, np.float32),
        coverage=ranked.coverage,
        frequency=ranked.frequency,
        n_top=n_top,
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


def order_features(scores: FeatureScores, rank_by: str) -> Int[np.ndarray, " m"]:
    """The features that have a coherence and the score asked for, best first, ties by lower id."""
    value = scores.by(rank_by).astype(np.float64)
    eligible = np.flatnonzero(np.isfinite(value) & np.isfinite(scores.clip_coherence))
    return eligible[np.argsort(-value[eligible], kind="stable")]


def select_features(
    scores: FeatureScores,
    image_ids: Sequence[int] | Int[np.ndarray, " n"],
    rank_by: str = "clip_coherence",
    top_features: int = 10,
    top_examples: int = 4,
    unique: bool = True,
) -> list[Choice]:
    """Choose features greedily, best first, each with its example images.

    With `unique` an image serves as an example once in the whole selection, and a feature that cannot
    show `top_examples` images of its own is passed over.

    Args:
        image_ids: the id of each row of S.

    Returns:
        fewer than top_features where the run doesn't hold more.
    """
    used: set[int] = set()
    choices: list[Choice] = []
    for feature in order_features(scores, rank_by):
        if len(choices) == top_features:
            break
        top = [int(i) for i in scores.ranked.image[feature] if i >= 0]
        examples = [i for i in top if not (unique and i in used)][:top_examples]
        if len(examples) < top_examples:
            continue
        used.update(examples)
        shown, ranked = ([int(image_ids[i]) for i in images] for images in (examples, top))
        choices.append(Choice(int(feature), shown, ranked))
    return choices
