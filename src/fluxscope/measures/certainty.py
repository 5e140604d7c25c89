"""How sure scores are: intervals by prompt, what chance reaches, and corrections for many concepts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int

DRAWS = 1000
"""How often prompts are drawn for an interval."""

SHUFFLES = 1999
"""How often pictures are permuted for a p-value: the smallest is 1 / 2,000."""

INTERVAL = (2.5, 97.5)


@dataclass(frozen=True)
class Bootstrap:
    """F1 with the prompts drawn anew, with replacement.

    Attributes:
        f1: one row a draw.
    """

    f1: Float64[np.ndarray, "b c"]

    def interval(self) -> Float64[np.ndarray, "2 c"]:
        """Of every concept, 95%."""
        return np.asarray(np.percentile(self.f1, INTERVAL, axis=0))

    def mean_interval(self, columns: Int[np.ndarray, " k"] | list[int]) -> tuple[float, float]:
        """Of the mean over some concepts, 95%."""
        low, high = np.percentile(self.f1[:, columns].mean(1), INTERVAL)
        return float(low), float(high)


def bootstrap_f1(
    fires: Bool[np.ndarray, "r c"],
    truth: Bool[np.ndarray, "r c"],
    groups: Int[np.ndarray, " r"],
    seed: int = 0,
    draws: int = DRAWS,
) -> Bootstrap:
    """Draw groups of rows, such as prompts, anew and score again; the same seed draws the same groups.

    So two detectors' draws belong together, and their difference has an interval too.
    """
    from scipy.sparse import csr_array

    distinct, place = np.unique(groups, return_inverse=True)
    g = len(distinct)
    gather = csr_array((np.ones(len(place)), (place, np.arange(len(place)))), shape=(g, len(place)))
    hits = gather @ (fires & truth).astype(np.float64)
    total = gather @ (fires.astype(np.float64) + truth)
    times = np.random.default_rng(seed).multinomial(g, np.full(g, 1 / g), draws).astype(np.float64)
    both, either = times @ hits, times @ total
    return Bootstrap(np.divide(2 * both, either, out=np.zeros(either.shape), where=either > 0))


def permutation_p(
    fires: Bool[np.ndarray, "n t c"],
    truth: Bool[np.ndarray, "n t c"],
    seed: int = 0,
    shuffles: int = SHUFFLES,
) -> Float64[np.ndarray, " c"]:
    """The chance that detectors hit as often when pictures are dealt other pictures' truth.

    Each picture's tokens stay together, in their places: what a detector knows of places alone doesn't count.

    Returns:
        p of every concept; 1 where its truth is the same in every picture.
    """
    n = len(fires)
    rng = np.random.default_rng(seed)
    dealt = np.stack([rng.permutation(n) for _ in range(shuffles)])
    p = np.ones(fires.shape[2])
    for c in range(len(p)):
        says, has = fires[:, :, c].astype(np.float32), truth[:, :, c].astype(np.float32)
        hits = says @ has.T  # of picture i's verdicts with picture j's truth
        by_chance = hits[np.arange(n), dealt].sum(1)
        p[c] = (1 + (by_chance >= np.trace(hits) - 0.5).sum()) / (1 + shuffles)
    return p


def holm(p: Float64[np.ndarray, " c"]) -> Float64[np.ndarray, " c"]:
    """p-values corrected for their number, so that with 5% any of those below 0.05 is false (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    raised = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(raised, 1)
    return corrected


def false_discovery(p: Float64[np.ndarray, " c"]) -> Float64[np.ndarray, " c"]:
    """For each p-value the share of false ones to expect among all that are as small (Benjamini and Hochberg
    1995): those of at most 0.05 are to 5% false discoveries."""
    order = np.argsort(p, kind="stable")
    share = p[order] * len(p) / np.arange(1, len(p) + 1)
    found = np.empty(len(p))
    found[order] = np.minimum(np.minimum.accumulate(share[::-1])[::-1], 1)
    return found


def permuted_pictures(
    truth: Bool[np.ndarray, "r c"], pictures: list[np.ndarray], tokens: int, seed: int
) -> Bool[np.ndarray, "r c"]:
    """The truth with pictures permuted within each of the parts; their tokens stay together.

    Args:
        pictures: (n), the pictures of each part.
    """
    rng = np.random.default_rng(seed)
    by_picture = truth.reshape(-1, tokens, truth.shape[1])
    dealt = by_picture.copy()
    for part in pictures:
        dealt[part] = by_picture[rng.permutation(part)]
    return dealt.reshape(truth.shape)


def dci(weight: Float64[np.ndarray, "f c"]) -> tuple[float, float]:
    """Disentanglement and completeness of how much each feature matters to each concept.

    Disentanglement is 1 where every feature matters to one concept only, completeness where one feature is
    all that matters to a concept; 0 where all matter to all alike (Eastwood and Williams 2018). Features and
    concepts weigh as much as they matter.

    Args:
        weight: never negative.
    """
    return _concentration(weight), _concentration(weight.T)


def _concentration(weight: Float64[np.ndarray, "a b"]) -> float:
    total = weight.sum(1)
    if not total.sum() or weight.shape[1] < 2:
        return 0.0
    live = total > 0
    share = weight[live] / total[live, None]
    entropy = -(share * np.log(np.where(share > 0, share, 1))).sum(1) / np.log(weight.shape[1])
    return float((1 - entropy) @ total[live] / total.sum())
