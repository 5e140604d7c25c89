"""What a detector does when one thing changes: exact pairs of pictures.

Both pictures of a pair come from the same noise, and their prompts differ in one word. A detector of red must
follow when red comes or goes, and must not move when only the shape does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64


@dataclass(frozen=True)
class PairScores:
    """What detectors, one a concept, do on pairs; NaN where there is no such pair.

    Attributes:
        own: pairs in which the concept comes or goes.
        follows: share of them in which the detector fires on the picture that has it alone.
        leakage: share of the other pairs in which the detector comes or goes all the same.
        selectivity: how much its strength moves on its own pairs, as a share of that and of how much it moves
            on the others: 1 is selective, a half knows nothing.
    """

    own: Int64[np.ndarray, " c"]
    follows: Float64[np.ndarray, " c"]
    leakage: Float64[np.ndarray, " c"]
    selectivity: Float64[np.ndarray, " c"]


def exact_pairs(
    pairs: Int[np.ndarray, "p 2"], has: Bool[np.ndarray, "n a"], kinds: list[str], changed: list[str]
) -> Int64[np.ndarray, "q 2"]:
    """The pairs that differ in what was to be changed, and in nothing else.

    Args:
        pairs: numbers of pictures.
        has: which picture has which value of any attribute.
        kinds: the attribute of each value.
        changed: the attribute that was to be changed in each pair.
    """
    differs = has[pairs[:, 0]] != has[pairs[:, 1]]  # (p, a)
    wished = np.array(kinds)[None, :] == np.array(changed)[:, None]
    exact = (differs & wished).any(1) & ~(differs & ~wished).any(1)
    return np.asarray(pairs[exact], np.int64)


def pair_scores(
    pairs: Int[np.ndarray, "p 2"],
    strength: Float[np.ndarray, "n c"],
    threshold: Float[np.ndarray, " c"],
    has: Bool[np.ndarray, "n c"],
) -> PairScores:
    """Score detectors on exact pairs.

    Args:
        strength: each detector's largest code on each picture.
        threshold: the detector fires where its strength is at least this.
        has: which picture has which concept.
    """
    first, second = pairs[:, 0], pairs[:, 1]
    own = has[first] != has[second]  # (p, c)
    fires = strength >= threshold
    flips = fires[first] != fires[second]
    right = own & flips & (fires[first] == has[first])
    moved = np.abs(strength[first] - strength[second])
    on_own, on_others = _mean(moved, own), _mean(moved, ~own)
    both = on_own + on_others
    selectivity = np.divide(on_own, both, out=np.full(len(both), np.nan), where=both > 0)
    return PairScores(own.sum(0), _mean(right, own), _mean(flips, ~own), selectivity)


def absorption(
    fires: Bool[np.ndarray, "r c"],
    truth: Bool[np.ndarray, "r c"],
    parts: list[list[int]],
    part_truth: Bool[np.ndarray, "r q"],
    least: int = 20,
) -> Float64[np.ndarray, " c"]:
    """How much of a concept its detector leaves out: fires for red, but not for red stars.

    Args:
        parts: the columns of `part_truth` that are kinds of each concept.
        least: kinds on fewer rows than these are passed over.

    Returns:
        share of the kinds on which the detector's recall is below half of its recall on all; NaN without any.
    """
    left_out = np.full(len(parts), np.nan)
    for c, kinds in enumerate(parts):
        recall = _recall(fires[:, c], truth[:, c])
        recalls = [
            _recall(fires[:, c], part_truth[:, kind]) for kind in kinds if part_truth[:, kind].sum() >= least
        ]
        if recalls and recall:
            left_out[c] = np.mean([each < recall / 2 for each in recalls])
    return left_out


def _recall(fires: Bool[np.ndarray, " r"], truth: Bool[np.ndarray, " r"]) -> float:
    there = int(truth.sum())
    return int((fires & truth).sum()) / there if there else 0.0


def _mean(value: np.ndarray, where: Bool[np.ndarray, "p c"]) -> Float64[np.ndarray, " c"]:
    """The mean of each column over some rows; NaN over none."""
    count = where.sum(0)
    total = (value * where).sum(0, dtype=np.float64)
    return np.asarray(np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0))
