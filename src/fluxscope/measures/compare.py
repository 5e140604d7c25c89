"""Two layers on the same images: which feature of one is which of the other (step 9).

Everything about pairs of features comes as blocks of rows of a similarity matrix (fa, fb), so that the whole
matrix, 2.4 billion numbers for two SAEs of 49,152 features, never exists.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Float32, Float64, Int, Int32

from fluxscope.errors import FluxscopeError
from fluxscope.measures.ranking import SMatrix, check_S, check_values, even_bounds, walk_rows

if TYPE_CHECKING:
    from scipy.sparse import csr_array

BLOCK = 512
"""Rows of a similarity matrix at a time: 100 MB against 49,152 features."""

ALL_PAIRS = 1 << 21
"""Up to this many pairs of features the matching sees all of them, above only the best of each feature."""

Block = tuple[int, np.ndarray]
"""First row and rows of a similarity matrix; NaN where a feature is constant."""


@dataclass(frozen=True)
class Partners:
    """The most similar feature of layer b for every feature of layer a, and the other way round.

    Attributes:
        best: int32 (fa), features of b; -1 where a's feature, or all of b, is constant.
        similarity: float32 (fa), NaN there.
        back_best, back_similarity: the same for the features of b.
        candidates: int32 (fa, c), the c most similar features of b, descending, -1 after the last.
        candidate_similarity: float32 (fa, c), NaN after the last.
    """

    best: Int32[np.ndarray, " fa"]
    similarity: Float32[np.ndarray, " fa"]
    back_best: Int32[np.ndarray, " fb"]
    back_similarity: Float32[np.ndarray, " fb"]
    candidates: Int32[np.ndarray, "fa c"]
    candidate_similarity: Float32[np.ndarray, "fa c"]


def sparse_S(S: SMatrix) -> csr_array:
    """S as a sparse matrix, read in blocks of rows: 12 bytes for each of its nonzero entries."""
    from scipy.sparse import csr_array

    check_S(S)
    n, f = S.shape
    counts, columns, values = [], [], []
    for start, rows in walk_rows(S, even_bounds(n, f)):
        place = np.flatnonzero(rows != 0)
        value = rows.reshape(-1)[place]
        check_values(value, f, start, place)
        counts.append(np.bincount(place // f, minlength=len(rows)))
        columns.append((place % f).astype(np.int32))
        values.append(value)
    bounds = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    return csr_array((np.concatenate(values), np.concatenate(columns), bounds), shape=(n, f))


def correlation_blocks(a: csr_array, b: csr_array, block: int = BLOCK) -> Iterator[Block]:
    """Pearson correlations between the columns of two sparse matrices over the same rows.

    The rows may be images (image-level S) or the tokens of all images (token maps). Only products of entries
    that are both nonzero are formed: cov = E[xy] - E[x] E[y].

    Raises:
        FluxscopeError: the two have different numbers of rows.
    """
    n = same_rows(a.shape[0], b.shape[0])
    a, b = a.astype(np.float64).T.tocsr(), b.astype(np.float64).tocsr()
    mean_a, deviation_a = _moments(a.T.tocsr())
    mean_b, deviation_b = _moments(b)
    for start in range(0, a.shape[0], block):
        rows = slice(start, start + block)
        covariance = (a[rows] @ b).toarray() / n - np.outer(mean_a[rows], mean_b)
        yield start, np.clip(covariance / np.outer(deviation_a[rows], deviation_b), -1, 1)


def same_rows(a: int, b: int) -> int:
    if a != b:
        raise FluxscopeError(
            f"one layer has {a} rows, the other {b}",
            "Compare layers of the same images: collect both in one run.",
        )
    return a


def _moments(x: csr_array) -> tuple[Float64[np.ndarray, " f"], Float64[np.ndarray, " f"]]:
    """Mean and standard deviation of each column; NaN instead of a deviation of (nearly) nothing."""
    n = x.shape[0]
    mean = np.asarray(x.sum(0)).reshape(-1) / n
    square = np.asarray((x * x).sum(0)).reshape(-1) / n
    variance = square - mean**2
    return mean, np.sqrt(np.where(variance > 1e-12 * square, variance, np.nan))


def cosine_blocks(
    a: Float[np.ndarray, "fa d"], b: Float[np.ndarray, "fb d"], block: int = BLOCK
) -> Iterator[Block]:
    """Cosines between two sets of directions, such as two decoders of the same width."""
    a, b = (
        x / np.where(norm > 0, norm, np.nan)[:, None] for x in (a, b) for norm in [np.linalg.norm(x, axis=1)]
    )
    for start in range(0, len(a), block):
        yield start, np.clip(a[start : start + block] @ b.T, -1, 1)


def partners(blocks: Iterable[Block], fa: int, fb: int, candidates: int | None = None) -> Partners:
    """Find every feature's best partner, in both directions, in one pass over the similarity matrix.

    Args:
        candidates: how many partners to keep for each feature of a, for the matching; by default all when
            the matrix is small (ALL_PAIRS), else 64.
    """
    kept = min(fb, candidates or (fb if fa * fb <= ALL_PAIRS else 64))
    found = np.full((fa, kept), -1, np.int32)
    value = np.full((fa, kept), np.nan, np.float32)
    back, back_value = np.full(fb, -1, np.int32), np.full(fb, -np.inf)
    for start, similarity in blocks:
        known = np.where(np.isnan(similarity), -np.inf, similarity)
        rows = slice(start, start + len(known))
        found[rows], value[rows] = _top(known, kept)
        winner = known.argmax(0)
        best = known[winner, np.arange(fb)]
        better = best > back_value
        back[better], back_value[better] = winner[better] + start, best[better]
    return Partners(
        found[:, 0],
        value[:, 0],
        back,
        np.where(back >= 0, back_value, np.nan).astype(np.float32),
        found,
        value,
    )


def _top(known: Float[np.ndarray, "r fb"], kept: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest values of each row, descending, ties to the lower column; -1 and NaN for -inf."""
    if kept < known.shape[1]:
        column = np.sort(np.argpartition(-known, kept - 1, axis=1)[:, :kept], axis=1)
    else:
        column = np.broadcast_to(np.arange(kept), known.shape)
    value = np.take_along_axis(known, column, axis=1)
    order = np.argsort(-value, axis=1, kind="stable")
    column, value = np.take_along_axis(column, order, 1), np.take_along_axis(value, order, 1)
    there = np.isfinite(value)
    return np.where(there, column, -1), np.where(there, value, np.nan)


def one_to_one(found: Partners) -> Int32[np.ndarray, " fa"]:
    """Match the features of a with those of b so that the sum of similarities is largest (Hungarian method).

    A feature stays alone (-1) rather than take a partner that it is not positively similar to. The candidates
    decide which pairs are seen: all, or the best of each feature.
    """
    from scipy.sparse import csr_array, hstack
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    fa, fb = len(found.best), len(found.back_best)
    row, column = np.nonzero(found.candidate_similarity > 0)
    # Costs above 0, as the method's sparse form wants; staying alone costs as much as a similarity of 0.
    cost = 2.0 - found.candidate_similarity[row, column].astype(np.float64)
    pairs = csr_array((cost, (row, found.candidates[row, column])), shape=(fa, fb))
    alone = csr_array((np.full(fa, 2.0), (np.arange(fa), np.arange(fa))), shape=(fa, fa))
    matched_row, matched = min_weight_full_bipartite_matching(hstack([pairs, alone]).tocsr())
    partner = np.full(fa, -1, np.int32)
    partner[matched_row] = np.where(matched < fb, matched, -1)
    return partner


def linear_cka(blocks: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """Measure how alike two representations of the same tokens are: linear CKA (Kornblith et al., 2019).

    |Y'X|^2 / (|X'X| |Y'Y|) with centred columns and Frobenius norms: 1 when one is a rotation and scaling of
    the other, near 0 when they have nothing in common. Sums of products are gathered block by block.

    Args:
        blocks: the same tokens in both layers, float (t, da) and (t, db), such as their activations or what
            the SAEs reconstruct of them.

    Raises:
        FluxscopeError: blocks of different length, or no variance at all.
    """
    n, sums = 0, None
    for x, y in blocks:
        same_rows(len(x), len(y))
        x, y = x.astype(np.float64), y.astype(np.float64)
        new = [x.sum(0), y.sum(0), x.T @ x, y.T @ y, x.T @ y]
        sums = new if sums is None else [total + more for total, more in zip(sums, new, strict=True)]
        n += len(x)
    if sums is None:
        raise FluxscopeError("there are no tokens to compare", "Run step 1 first.", redo="collect")
    x, y, xx, yy, xy = sums
    own = np.linalg.norm(xx - np.outer(x, x) / n) * np.linalg.norm(yy - np.outer(y, y) / n)
    if not own > 0:
        raise FluxscopeError(
            "one layer is the same on every token", "Check the SAE and the site of that layer."
        )
    return float(np.linalg.norm(xy - np.outer(x, y) / n) ** 2 / own)


def image_l0(S: SMatrix, eps: float) -> Int32[np.ndarray, " n"]:
    """How many features are active on each image."""
    n, f = S.shape
    blocks = [np.count_nonzero(rows > eps, axis=1) for _, rows in walk_rows(S, even_bounds(n, f))]
    return np.concatenate(blocks).astype(np.int32)


def top_features(S: SMatrix, k: int, eps: float) -> Int32[np.ndarray, "n k"]:
    """The k most active features of each image, descending, ties to the lower id; -1 after the last."""
    n, f = S.shape
    tops = []
    for _, rows in walk_rows(S, even_bounds(n, f)):
        column, _value = _top(np.where(rows > eps, rows, -np.inf), min(k, f))
        tops.append(column)
    return np.concatenate(tops).astype(np.int32)


def top_overlap(
    a: Int[np.ndarray, "n k"], b: Int[np.ndarray, "n k"], partner: Int[np.ndarray, " fa"]
) -> Float32[np.ndarray, " n"]:
    """The share of each image's top features in a whose partner is among its top features in b.

    Args:
        partner: a's features in terms of b's; np.arange(f) compares them by id.

    Returns:
        float32 (n), NaN for images without a top feature.
    """
    translated = np.where(a >= 0, partner[a], -1)
    hit = ((translated[:, :, None] == b[:, None, :]) & (translated >= 0)[:, :, None]).any(2)
    size = (a >= 0).sum(1)
    share: np.ndarray = (hit.sum(1) / np.where(size > 0, size, np.nan)).astype(np.float32)
    return share
