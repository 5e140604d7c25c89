"""Coherence of sets of images: the mean pairwise cosine of their embeddings, and what chance gives.

For m unit vectors with sum s, the m (m - 1) ordered pairs have the mean cosine (|s|^2 - m) / (m (m - 1)), so
a set costs its sum alone, and the sums of all sets are one sparse matrix product.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Float64, Int

from fluxscope.errors import FluxscopeError


def coherence(
    embeddings: Float32[np.ndarray, "n e"], sets: Int[np.ndarray, "f m"]
) -> Float32[np.ndarray, " f"]:
    """Compute the mean pairwise cosine of every set, all sets at once.

    Args:
        embeddings: unit rows.
        sets: row f lists the embeddings of set f; -1 stands for an empty place.

    Returns:
        float32 (f), NaN where a set has fewer than two members.

    Raises:
        FluxscopeError: the embeddings are not unit rows.
    """
    from scipy.sparse import csr_array

    check_unit_rows(embeddings)
    member = sets >= 0
    size = member.sum(1)
    bounds = np.concatenate([[0], np.cumsum(size)])
    ones = np.ones(bounds[-1], np.float32)
    total = csr_array((ones, sets[member], bounds), shape=(len(sets), len(embeddings))) @ embeddings  # (f, e)
    pairs = np.where(size > 1, size * (size - 1.0), np.nan)
    mean_cosine: np.ndarray = ((np.einsum("fe,fe->f", total, total, dtype=np.float64) - size) / pairs).astype(
        np.float32
    )
    return mean_cosine


def check_unit_rows(embeddings: Float32[np.ndarray, "n e"]) -> None:
    norm = np.linalg.norm(embeddings, axis=1)
    if embeddings.size and not np.allclose(norm, 1, atol=1e-3):
        worst = int(np.nanargmax(np.abs(norm - 1))) if np.isfinite(norm).any() else 0
        raise FluxscopeError(
            f"embedding {worst} has length {norm[worst]:.4g}, not 1",
            "Embed the images again (step 3): cosines need unit rows.",
        )


def random_coherence(
    embeddings: Float32[np.ndarray, "n e"], group: Int[np.ndarray, " n"], largest: int
) -> tuple[Float64[np.ndarray, " sizes"], Float64[np.ndarray, " sizes"]]:
    """Give mean and standard deviation of the coherence of random sets, exactly, without drawing any.

    A random set of m images: m distinct groups (prompts) drawn without replacement, one image of each drawn
    evenly. Its coherence averages a kernel over pairs, so its variance follows from three moments: of two
    pairs that are the same, that share one image, and that share none (Hoeffding's U-statistics, 1948).

    Returns:
        two float64 arrays of largest + 1 entries, indexed by the size m; NaN below two and above the number
        of groups.
    """
    check_unit_rows(embeddings)
    pair, square, shared, disjoint = _pair_moments(embeddings.astype(np.float64), group)
    size = np.arange(largest + 1, dtype=np.float64)
    size[(size < 2) | (size > len(np.unique(group)))] = np.nan
    pairs = size * (size - 1) / 2
    both = square + 2 * (size - 2) * shared + (size - 2) * (size - 3) / 2 * disjoint
    variance = both / pairs - pair**2
    return np.where(np.isnan(size), np.nan, pair), np.sqrt(np.maximum(variance, 0))


def _pair_moments(e: Float64[np.ndarray, "n e"], group: Int[np.ndarray, " n"]) -> tuple[float, ...]:
    """Expectations over random images a, b, c, d of distinct groups of the kernel k = cosine:
    k_ab, k_ab^2, k_ab k_ac, k_ab k_cd.

    Sums over distinct indices are whole sums less their coincidences, which leaves matrix products.
    """
    from scipy.sparse import csr_array

    _, index, counts = np.unique(group, return_inverse=True, return_counts=True)
    n, weight = len(counts), 1.0 / counts[index]
    mean = csr_array((weight, (index, np.arange(len(e)))), shape=(n, len(e))) @ e  # (groups, e)
    whole = mean.sum(0)
    of_images = _second_moment(e, weight, whole, n)  # (e, e)
    of_means = _second_moment(mean, np.ones(n), whole, n)

    own = _dot(e, mean[index])
    others = e @ whole - own  # image i against the sum of the other groups' means
    shared = weight @ (others**2 + own**2) - (of_images * of_means).sum()
    square = (of_images**2).sum() - _within_groups(e, index, counts)

    norms = _dot(mean, mean)
    centre = mean @ whole - norms  # the same two sums for the groups' means, and through them k_ab k_cd
    means_shared = (centre**2 + norms**2).sum() - (of_means**2).sum()
    means_square = (of_means**2).sum() - (norms**2).sum()
    total = centre.sum()
    disjoint = total**2 - 4 * means_shared - 2 * means_square
    tuples = np.array(
        [n * (n - 1), n * (n - 1), n * (n - 1) * (n - 2), n * (n - 1) * (n - 2) * (n - 3)], float
    )
    sums = np.array([total, square, shared, disjoint])
    # With fewer than four groups the larger tuples don't exist, and no set that needs them does either.
    return tuple(np.divide(sums, tuples, out=np.zeros(4), where=tuples > 0))


def _second_moment(
    vectors: Float64[np.ndarray, "r e"], weight: Float64[np.ndarray, " r"], whole: np.ndarray, n: int
) -> Float64[np.ndarray, "e e"]:
    """Weighted sum of outer products of vectors whose weighted mean is whole / n.

    From their differences from that mean: these are small, so that single precision loses nothing, in half
    the time.
    """
    spread = vectors.astype(np.float32)
    spread -= (whole / n).astype(np.float32)
    spread *= np.sqrt(weight).astype(np.float32)[:, None]
    return (spread.T @ spread).astype(np.float64) + np.outer(whole, whole / n)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The inner product of each row of a with the row of b."""
    products: np.ndarray = np.einsum("ij,ij->i", a, b)
    return products


def _within_groups(e: Float64[np.ndarray, "n e"], index: np.ndarray, counts: np.ndarray) -> float:
    """Sum over groups of the mean squared cosine of two images drawn evenly from the same group."""
    order = np.argsort(index, kind="stable")
    starts = np.cumsum(counts) - counts
    total = 0.0
    for size in np.unique(counts):  # groups of one size together: as many rounds as there are sizes
        rows = order[starts[counts == size][:, None] + np.arange(size)]  # (groups of this size, size)
        members = e[rows]  # (groups, size, e)
        turned = members.transpose(0, 2, 1)
        # Both products have the same sum of squares; the smaller one keeps memory below that of e.
        product = members @ turned if size <= e.shape[1] else turned @ members
        total += float((product**2).sum()) / float(size) ** 2
    return total
