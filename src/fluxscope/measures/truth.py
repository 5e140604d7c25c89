"""Features against the known truth of flux-shapes: which concept a feature stands for, and how well.

A concept is an attribute's value, such as "shape: star". For each picture it is known whether the concept is
there, and on which tokens. A feature is read as a detector of the concept: on images where it is active, and
on the tokens where it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int, Int32
from scipy.sparse import csr_array

from fluxscope.errors import FluxscopeError


@dataclass(frozen=True)
class ConceptScores:
    """How well each of f features detects each of c concepts on n images.

    Attributes:
        concepts: their names.
        base: float32 (c), share of images with the concept.
        top_share: float32 (f, c), share of the feature's top images with the concept; 0 without top images.
        precision: float32 (f, c), share of the images on which the feature is active that have the concept.
        recall: float32 (f, c), share of the images with the concept on which the feature is active.
        f1: float32 (f, c), the harmonic mean of precision and recall.
    """

    concepts: tuple[str, ...]
    base: Float32[np.ndarray, " c"]
    top_share: Float32[np.ndarray, "f c"]
    precision: Float32[np.ndarray, "f c"]
    recall: Float32[np.ndarray, "f c"]
    f1: Float32[np.ndarray, "f c"]

    def lift(self) -> Float32[np.ndarray, "f c"]:
        """What the top images share beyond chance: 1 when all of them have the concept and few others do, 0
        at its base rate: (top_share - base) / (1 - base)."""
        room = np.where(self.base < 1, 1 - self.base, np.inf)
        above_chance: np.ndarray = ((self.top_share - self.base) / room).astype(np.float32)
        return above_chance


def concept_matrix(
    attributes: Sequence[Mapping[str, Sequence[str]]],
) -> tuple[tuple[str, ...], Bool[np.ndarray, "n c"]]:
    """Turn each image's attributes into a table of concepts.

    Args:
        attributes: for each image, the values of each attribute that occur in it, such as
            {"shape": ["star", "ring"], "background": ["navy"]}.

    Returns:
        the concepts that occur, "attribute: value", sorted, and which image has which.
    """
    per_image = [
        {f"{name}: {value}" for name, values in one.items() for value in values} for one in attributes
    ]
    concepts = tuple(sorted(set().union(*per_image)))
    return concepts, np.array([[c in have for c in concepts] for have in per_image], bool).reshape(
        -1, len(concepts)
    )


def concept_scores(
    active: csr_array,
    top_images: Int[np.ndarray, "f m"],
    concepts: Sequence[str],
    present: Bool[np.ndarray, "n c"],
) -> ConceptScores:
    """Score every feature against every concept, all at once.

    Args:
        active: (n, f), nonzero where the feature is active on the image (compare.sparse_S gives it).
        top_images: each feature's top images, -1 after the last (selection.RankedImages.image).
        present: which image has which concept.

    Raises:
        FluxscopeError: active and present have different numbers of images.
    """
    _same_images(active.shape[0], len(present))
    fires = (active > 0).astype(np.float64).tocsc()
    hits = np.asarray(fires.T @ present.astype(np.float64))  # (f, c) images
    precision = _share(hits, np.asarray(fires.sum(0)).reshape(-1)[:, None])
    recall = _share(hits, present.sum(0)[None, :])
    listed = top_images >= 0
    bounds = np.concatenate([[0], np.cumsum(listed.sum(1))])
    picks = csr_array((np.ones(bounds[-1]), top_images[listed], bounds), shape=(len(listed), len(present)))
    top_share = _share(picks @ present.astype(np.float64), listed.sum(1)[:, None])
    return ConceptScores(
        tuple(concepts),
        present.mean(0).astype(np.float32),
        top_share,
        precision,
        recall,
        _share(2 * precision * recall, precision + recall),
    )


def token_masks(
    masks: Bool[np.ndarray, "c h w"], grid: tuple[int, int], least: float = 0.25
) -> Bool[np.ndarray, "t c"]:
    """Which tokens a concept covers: those with at least a share `least` of their pixels in its mask.

    Args:
        masks: one picture's pixel masks, one a concept.
        grid: rows and columns of tokens; height and width are multiples of them.
    """
    c, height, width = masks.shape
    rows, columns = grid
    if height % rows or width % columns:
        raise FluxscopeError(
            f"masks of {width} x {height} pixels don't divide into {rows} x {columns} tokens",
            "Use the picture size and token grid of one run.",
        )
    tiles = masks.reshape(c, rows, height // rows, columns, width // columns)
    covered: np.ndarray = (tiles.mean((2, 4)) >= least).reshape(c, -1).T  # (t, c)
    return covered


def token_iou(
    codes: csr_array, covered: Bool[np.ndarray, "r c"], above: float = 0.0
) -> Float32[np.ndarray, "f c"]:
    """Measure how well the places where a feature is active are those of a concept.

    Intersection over union of two sets of tokens, over all images together.

    Args:
        codes: (r, f), a row for each token of each image.
        covered: which token lies on which concept (token_masks, image after image).
        above: leave out codes at or below this share of the feature's largest one.

    Raises:
        FluxscopeError: codes and covered have different numbers of tokens.
    """
    _same_images(codes.shape[0], len(covered))
    codes = codes.tocsc()
    largest = codes.max(axis=0).toarray().reshape(-1)
    strong = codes.data > above * np.repeat(largest, np.diff(codes.indptr))
    fires = csr_array(
        (strong.astype(np.float64), codes.indices, codes.indptr), shape=codes.shape[::-1]
    )  # (f, r)
    both = fires @ covered.astype(np.float64)
    either = np.asarray(fires.sum(1)).reshape(-1)[:, None] + covered.sum(0)[None, :] - both
    return _share(both, either)


def best_concepts(
    scores: ConceptScores, by: Float32[np.ndarray, "f c"]
) -> tuple[Int32[np.ndarray, " f"], Float32[np.ndarray, " f"]]:
    """Each feature's best concept and its score; -1 and 0 where no concept scores above 0.

    Args:
        by: scores.lift(), scores.f1, token_iou's result, ...
    """
    best = by.argmax(1)
    value = by[np.arange(len(by)), best]
    assert by.shape[1] == len(scores.concepts)
    return np.where(value > 0, best, -1).astype(np.int32), np.maximum(value, 0).astype(np.float32)


def _share(part: Float64[np.ndarray, "f c"] | np.ndarray, whole: np.ndarray) -> Float32[np.ndarray, "f c"]:
    """part / whole, 0 where whole is 0."""
    whole = np.broadcast_to(whole, part.shape)
    ratio: np.ndarray = np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0).astype(np.float32)
    return ratio


def _same_images(a: int, b: int) -> None:
    if a != b:
        raise FluxscopeError(
            f"{a} rows of codes, {b} of truth", "Both must be of the same images, in one order."
        )
