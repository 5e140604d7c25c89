"""Features as detectors: how well the best single one tells where a concept is.

    parts = split_by_group(families, seed=0).of_tokens(64)      # choose, tune, report: split by prompt
    scores = best_single_f1(codes, truth, parts)                # codes (r, f) sparse, truth (r, c)
    scores.f1, scores.iou, scores.auprc                         # one a concept, on the part that is reported

A feature detects a concept on the rows (tokens, or pictures) where its code exceeds a threshold. The feature
and the threshold that do best are chosen on one part of the rows and scored on another: the best of thousands
is good by luck on the part that chose it. F1, intersection over union and the area under the curve of
precision and recall stay low for features that fire everywhere or that know only the common concepts
(arXiv 2506.05774); of one detector, IoU = F1 / (2 - F1).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int, Int64
from scipy.sparse import csc_array, csr_array

from fluxscope.errors import FluxscopeError

SHARES = (0.4, 0.2, 0.4)
"""Of the groups: choose, tune, report."""

_ENTRIES = 1 << 23
"""Entries times concepts that are counted together: 32 MiB an array."""


@dataclass(frozen=True)
class Parts:
    """Rows of three kinds, ascending: the first choose, the second tune, on the third scores are reported."""

    choose: Int64[np.ndarray, " a"]
    tune: Int64[np.ndarray, " b"]
    report: Int64[np.ndarray, " c"]

    def of_tokens(self, tokens: int) -> Parts:
        """The same parts, where every row becomes so many rows."""

        def spread(rows: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " m"]:
            spread_out: np.ndarray = (rows[:, None] * tokens + np.arange(tokens)).reshape(-1)
            return spread_out

        return Parts(spread(self.choose), spread(self.tune), spread(self.report))


def split_by_group(groups: Int[np.ndarray, " n"], seed: int, shares: Sequence[float] = SHARES) -> Parts:
    """Deal rows into three parts so that rows of one group, such as one prompt, stay together.

    Raises:
        FluxscopeError: there are fewer than three groups.
    """
    distinct = np.unique(groups)
    if len(distinct) < 3:
        raise FluxscopeError(
            f"{len(distinct)} prompts cannot be parted in three", "Use more pictures, of different prompts."
        )
    dealt = np.random.default_rng(seed).permutation(distinct)
    first = min(max(1, round(shares[0] * len(dealt))), len(dealt) - 2)
    second = min(max(first + 1, round((shares[0] + shares[1]) * len(dealt))), len(dealt) - 1)
    choose, tune, report = (
        np.flatnonzero(np.isin(groups, part)) for part in np.split(dealt, [first, second])
    )
    return Parts(choose, tune, report)


@dataclass(frozen=True)
class Detectors:
    """For each of c concepts the feature and threshold that detect it best, and how well.

    Attributes:
        feature: -1 where no feature fires on the concept.
        threshold: the feature detects where its code is at least this.
        chosen_f1: on the rows that chose it.
        f1, iou, auprc: on the rows that are reported.
    """

    feature: Int64[np.ndarray, " c"]
    threshold: Float32[np.ndarray, " c"]
    chosen_f1: Float64[np.ndarray, " c"]
    f1: Float64[np.ndarray, " c"]
    iou: Float64[np.ndarray, " c"]
    auprc: Float64[np.ndarray, " c"]


def best_single_f1(codes: csr_array | csc_array, truth: Bool[np.ndarray, "r c"], parts: Parts) -> Detectors:
    """Find the best single feature for every concept.

    Args:
        codes: (r, f), never negative.
        truth: which row has which concept.
        parts: of the rows. Feature and threshold are chosen on `choose`, scores are of `report`.

    Raises:
        FluxscopeError: codes and truth have different numbers of rows.
    """
    columns = as_columns(codes, truth)
    chosen = columns[parts.choose]
    seen = truth[parts.choose]
    best = best_f1(chosen, seen)  # (f, c)
    feature = best.argmax(0)
    value = best[feature, np.arange(len(feature))].astype(np.float64)
    feature = np.where(value > 0, feature, -1)
    threshold = thresholds(chosen, seen, feature, np.arange(len(feature)))
    reported, facts = columns[parts.report], truth[parts.report]
    fires = fired(reported, feature, threshold)
    f1 = f1_of(fires, facts)
    curve = average_precision(reported, facts, feature, np.arange(len(feature)))
    return Detectors(feature, threshold, value, f1, f1 / (2 - f1), curve)


def as_columns(codes: csr_array | csc_array, truth: Bool[np.ndarray, "r c"]) -> csc_array:
    """The codes by feature. Raises FluxscopeError where they are of other rows than the truth."""
    if codes.shape[0] != len(truth):
        raise FluxscopeError(
            f"{codes.shape[0]} rows of codes, {len(truth)} of truth",
            "Both must be of the same images, in one order.",
        )
    return codes.tocsc()


def best_f1(codes: csc_array, truth: Bool[np.ndarray, "r c"]) -> Float32[np.ndarray, "f c"]:
    """Every feature's largest F1 on every concept, over all thresholds above zero.

    The codes of a feature are sorted once, downwards; counting along them gives the hits of every threshold
    for all concepts.
    """
    f, c = codes.shape[1], truth.shape[1]
    best = np.zeros((f, c), np.float32)
    there = truth.sum(0).astype(np.float32)
    for block in _blocks(codes.indptr, max(1, _ENTRIES // max(c, 1))):
        hits, count, ends, live, starts = _walk(codes, truth, block)
        f1 = 2 * hits / (count[:, None] + there)
        f1[~ends] = 0
        best[live] = np.maximum.reduceat(f1, starts, axis=0) if len(live) else 0
    return best


def _blocks(indptr: np.ndarray, entries: int) -> list[slice]:
    """Runs of features with about so many entries each."""
    f = len(indptr) - 1
    bounds = [0]
    while bounds[-1] < f:
        stop = int(np.searchsorted(indptr, indptr[bounds[-1]] + entries, side="right")) - 1
        bounds.append(min(max(stop, bounds[-1] + 1), f))
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]


def _walk(
    codes: csc_array, truth: Bool[np.ndarray, "r c"], block: slice
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The entries of some features, each feature's codes downwards.

    Returns:
        hits (e, c), rows with the concept down to this entry; count (e), all rows down to it; ends (e),
        whether a threshold can lie here: not between equal codes; live, the features that have entries;
        starts, the first entry of each.
    """
    indptr = codes.indptr[block.start : block.stop + 1]
    lengths = np.diff(indptr)
    live = np.flatnonzero(lengths)
    place = np.repeat(np.arange(len(lengths)), lengths)
    value = codes.data[indptr[0] : indptr[-1]]
    order = np.lexsort((-value, place))
    starts = (indptr[:-1] - indptr[0])[live]
    hits = np.cumsum(truth[codes.indices[indptr[0] : indptr[-1]][order]], axis=0, dtype=np.float32)
    hits -= np.repeat(np.concatenate([hits[:1] * 0, hits[starts[1:] - 1]]), lengths[live], axis=0)
    count = (np.arange(len(value)) - np.repeat(starts, lengths[live]) + 1).astype(np.float32)
    value = value[order]
    ends = np.append((value[1:] != value[:-1]) | (place[1:] != place[:-1]), True)[: len(value)]
    return hits, count, ends, live + block.start, starts


def thresholds(
    codes: csc_array,
    truth: Bool[np.ndarray, "r c"],
    features: Int[np.ndarray, " p"],
    concepts: Int[np.ndarray, " p"],
) -> Float32[np.ndarray, " p"]:
    """The lowest code that each feature must have to detect its concept with the largest F1; infinite for
    feature -1."""
    best = np.full(len(features), np.inf, np.float32)
    for i, (feature, concept) in enumerate(zip(features.tolist(), concepts.tolist(), strict=True)):
        if feature >= 0:
            value, has = _descending(codes, truth, feature, concept)
            if len(value):
                f1 = 2 * np.cumsum(has) / (np.arange(1, len(value) + 1) + truth[:, concept].sum())
                f1[:-1][value[1:] == value[:-1]] = 0
                best[i] = value[f1.argmax()]
    return best


def fired(
    codes: csc_array, features: Int[np.ndarray, " p"], threshold: Float32[np.ndarray, " p"]
) -> Bool[np.ndarray, "r p"]:
    """Where each feature's code reaches its threshold."""
    fires = np.zeros((codes.shape[0], len(features)), bool)
    for i, feature in enumerate(features.tolist()):
        if feature >= 0:
            own = slice(codes.indptr[feature], codes.indptr[feature + 1])
            fires[codes.indices[own], i] = codes.data[own] >= threshold[i]
    return fires


def f1_of(fires: Bool[np.ndarray, "r c"], truth: Bool[np.ndarray, "r c"]) -> Float64[np.ndarray, " c"]:
    """F1 of each detector against its concept; 0 where neither ever is."""
    hits = (fires & truth).sum(0)
    total = fires.sum(0) + truth.sum(0)
    f1: np.ndarray = np.divide(2.0 * hits, total, out=np.zeros(len(total)), where=total > 0)
    return f1


def average_precision(
    codes: csc_array,
    truth: Bool[np.ndarray, "r c"],
    features: Int[np.ndarray, " p"],
    concepts: Int[np.ndarray, " p"],
) -> Float64[np.ndarray, " p"]:
    """Area under the curve of precision and recall, in steps: the sum of recall gained times precision there.

    All rows where a feature is silent come last, together; 0 for feature -1 and concepts that never are.
    """
    area = np.zeros(len(features))
    for i, (feature, concept) in enumerate(zip(features.tolist(), concepts.tolist(), strict=True)):
        there = int(truth[:, concept].sum())
        if feature >= 0 and there:
            value, has = _descending(codes, truth, feature, concept)
            hits, count = np.cumsum(has), np.arange(1, len(value) + 1)
            ends = np.append(value[1:] != value[:-1], True)[: len(value)]
            hits, count = np.append(hits[ends], there), np.append(count[ends], len(truth))
            area[i] = (np.diff(hits, prepend=0) / there) @ (hits / count)
    return area


def _descending(
    codes: csc_array, truth: Bool[np.ndarray, "r c"], feature: int, concept: int
) -> tuple[np.ndarray, np.ndarray]:
    """A feature's codes downwards, and which of their rows have the concept."""
    own = slice(codes.indptr[feature], codes.indptr[feature + 1])
    order = np.argsort(-codes.data[own], kind="stable")
    return codes.data[own][order], truth[codes.indices[own][order], concept]
