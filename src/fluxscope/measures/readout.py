"""Several features read together, and what reads activations without any SAE: coalitions, probes, directions.

All are linear readouts fitted by least squares with a little ridge: closed forms, the same in every run. A
row's score is compared with a cut that is chosen on the rows to tune on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64
from scipy.sparse import csc_array, csr_array

from fluxscope.measures.detection import Parts, as_columns

RIDGE = 1e-3
"""Added to the correlations' diagonal."""

TRIED = (1, 2, 3, 4, 6, 8, 12, 16)
"""Sizes of coalition that are tried."""

ENOUGH = 0.95
"""A concept needs so many features that they reach this share of what sixteen reach."""

_DENSE = 0.05
"""Above this share of nonzero codes a dense product is faster."""


@dataclass(frozen=True)
class Verdicts:
    """What detectors, one a concept, say of the reported rows.

    Attributes:
        fires: whether the detector says yes.
        auprc: area under the curve of precision and recall, on the same rows.
    """

    fires: Bool[np.ndarray, "r c"]
    auprc: Float64[np.ndarray, " c"]


@dataclass(frozen=True)
class Coalitions:
    """The best coalitions of up to so many features.

    Attributes:
        members: for each concept the features, in the order in which they were taken; -1 after the last.
        size: how many of them do best on the rows to tune on.
        verdicts: theirs.
    """

    members: Int64[np.ndarray, "c k"]
    size: Int64[np.ndarray, " c"]
    verdicts: Verdicts


@dataclass(frozen=True)
class CoalitionScores:
    """Coalitions of a detector's features.

    Attributes:
        up_to: by the largest size that was allowed.
        needed: for each concept, how many features reach `ENOUGH` of the best F1 on the rows to tune on.
        weight: |weight times standard deviation| of each feature in the largest coalition of each concept.
    """

    up_to: dict[int, Coalitions]
    needed: Int64[np.ndarray, " c"]
    weight: Float64[np.ndarray, "f c"]


def best_coalitions(
    codes: csr_array | csc_array,
    truth: Bool[np.ndarray, "r c"],
    parts: Parts,
    limits: tuple[int, ...] = (4, 16),
) -> CoalitionScores:
    """Find features that detect each concept together, greedily: each next one explains most of what is left.

    Features and weights are those of least squares on the rows to choose on (orthogonal matching pursuit);
    how many of them, and the cut, are chosen on the rows to tune on.

    Raises:
        FluxscopeError: codes and truth have different numbers of rows.
    """
    columns = as_columns(codes, truth)
    pursuit = _Pursuit(columns[parts.choose], truth[parts.choose])
    tune, report = columns[parts.tune], columns[parts.report]
    sizes = [size for size in TRIED if size <= max(limits)]
    c = truth.shape[1]
    members = np.full((c, max(limits)), -1, np.int64)
    tuned = np.zeros((c, len(sizes)))
    weight = np.zeros((columns.shape[1], c))
    fires = {limit: np.zeros((len(parts.report), c), bool) for limit in limits}
    area, best = {limit: np.zeros(c) for limit in limits}, {limit: np.ones(c, np.int64) for limit in limits}
    for concept in range(c):
        taken, weights = pursuit.greedy(concept, max(limits))
        if not taken:
            continue
        members[concept, : len(taken)] = taken
        steps = np.stack([weights[min(size, len(taken)) - 1] for size in sizes], axis=1)  # (taken, sizes)
        scores = tune[:, taken].toarray() @ steps
        cuts, tuned[concept] = best_cuts(scores, np.repeat(truth[parts.tune, concept, None], len(sizes), 1))
        reported = report[:, taken].toarray() @ steps
        facts = truth[parts.report, concept]
        weight[taken, concept] = np.abs(weights[-1]) * pursuit.spread[taken]
        for limit in limits:
            place = int(tuned[concept, : sum(size <= limit for size in sizes)].argmax())
            fires[limit][:, concept] = reported[:, place] >= cuts[place]
            area[limit][concept] = dense_average_precision(reported[:, place], facts)
            best[limit][concept] = min(sizes[place], len(taken))
    reached = tuned >= ENOUGH * tuned.max(1, keepdims=True)
    return CoalitionScores(
        {
            limit: Coalitions(members[:, :limit], best[limit], Verdicts(fires[limit], area[limit]))
            for limit in limits
        },
        np.array(sizes)[reached.argmax(1)],
        weight,
    )


class _Pursuit:
    """Least squares over ever more features, for many concepts: all products are made once."""

    def __init__(self, codes: csc_array, truth: Bool[np.ndarray, "r c"]) -> None:
        r = codes.shape[0]
        facts = truth.astype(np.float32)
        mean = np.asarray(codes.mean(0), np.float64)
        product = _gram(codes) / r - np.outer(mean, mean)
        self.spread = np.sqrt(np.maximum(product.diagonal(), 0))
        self._live = self.spread > 1e-6 * max(self.spread.max(initial=0.0), 1e-12)
        scale = np.where(self._live, self.spread, 1)
        self._correlation = product / np.outer(scale, scale)
        self._covariance = (np.asarray(codes.T @ facts) / r - np.outer(mean, facts.mean(0))) / scale[:, None]
        self._scale = scale

    def greedy(self, concept: int, most: int) -> tuple[list[int], list[Float64[np.ndarray, " k"]]]:
        """The features taken, and the weights of the first 1, 2, ... of them, the others' being zero."""
        wanted = self._covariance[:, concept]
        left = np.where(self._live, np.abs(wanted), -1.0)
        taken: list[int] = []
        steps = []
        while len(taken) < most and left.max(initial=-1.0) > 1e-12:
            taken.append(int(left.argmax()))
            inner = self._correlation[np.ix_(taken, taken)] + RIDGE * np.eye(len(taken))
            weights = np.linalg.solve(inner, wanted[taken])
            steps.append(weights)
            left = np.abs(wanted - self._correlation[:, taken] @ weights)
            left[~self._live] = -1
            left[taken] = -1
        padded = [np.pad(weights, (0, len(taken) - len(weights))) / self._scale[taken] for weights in steps]
        return taken, padded


def _gram(codes: csc_array) -> Float64[np.ndarray, "f f"]:
    share = codes.nnz / max(1, codes.shape[0] * codes.shape[1])
    if share > _DENSE:
        dense = codes.toarray().astype(np.float32)
        return np.asarray(dense.T @ dense, np.float64)
    return np.asarray((codes.T @ codes).toarray(), np.float64)


def linear_probe(x: Float32[np.ndarray, "r d"], truth: Bool[np.ndarray, "r c"], parts: Parts) -> Verdicts:
    """The dense probe: all dimensions read at once, by least squares."""
    chosen = x[parts.choose]
    mean, spread = chosen.mean(0), np.maximum(chosen.std(0), 1e-6)
    standard = (chosen - mean) / spread
    facts = truth[parts.choose] - truth[parts.choose].mean(0)
    inner = standard.T @ standard / len(standard) + RIDGE * np.eye(x.shape[1])
    weights = np.linalg.solve(inner, standard.T @ facts / len(standard)) / spread[:, None]
    return read_out((x - mean) @ weights, truth, parts)


def difference_of_means(
    x: Float32[np.ndarray, "r d"], truth: Bool[np.ndarray, "r c"], parts: Parts
) -> Verdicts:
    """One direction a concept: from the mean of the rows without it to that of the rows with it."""
    chosen, facts = x[parts.choose], truth[parts.choose].astype(np.float32)
    there = facts.sum(0)
    total = chosen.sum(0)[:, None]
    with_it = chosen.T @ facts
    direction = with_it / np.maximum(there, 1) - (total - with_it) / np.maximum(len(facts) - there, 1)
    return read_out(x @ direction, truth, parts)


def read_out(scores: Float[np.ndarray, "r c"], truth: Bool[np.ndarray, "r c"], parts: Parts) -> Verdicts:
    """Detectors from scores of any sign, one column a concept: the cut is chosen on the rows to tune on."""
    cuts, _ = best_cuts(scores[parts.tune], truth[parts.tune])
    reported, facts = scores[parts.report], truth[parts.report]
    area = [dense_average_precision(reported[:, c], facts[:, c]) for c in range(truth.shape[1])]
    return Verdicts(reported >= cuts, np.array(area))


def best_cuts(
    scores: Float[np.ndarray, "r c"], truth: Bool[np.ndarray, "r c"]
) -> tuple[Float64[np.ndarray, " c"], Float64[np.ndarray, " c"]]:
    """Each column's cut with the largest F1, and that F1; infinite and 0 for concepts that never are."""
    cuts, values = np.full(scores.shape[1], np.inf), np.zeros(scores.shape[1])
    for c in range(scores.shape[1]):
        there = truth[:, c].sum()
        if there:
            order = np.argsort(-scores[:, c], kind="stable")
            value = scores[order, c]
            f1 = 2 * np.cumsum(truth[order, c]) / (np.arange(1, len(value) + 1) + there)
            f1[:-1][value[1:] == value[:-1]] = 0
            cuts[c], values[c] = value[f1.argmax()], f1.max()
    return cuts, values


def dense_average_precision(scores: Float[np.ndarray, " r"], truth: Bool[np.ndarray, " r"]) -> float:
    """Area under the curve of precision and recall, in steps; rows of equal scores come together."""
    there = int(truth.sum())
    if not there:
        return 0.0
    order = np.argsort(-scores, kind="stable")
    value = scores[order]
    ends = np.append(value[1:] != value[:-1], True)
    hits, count = np.cumsum(truth[order])[ends], np.arange(1, len(value) + 1)[ends]
    return float((np.diff(hits, prepend=0) / there) @ (hits / count))
