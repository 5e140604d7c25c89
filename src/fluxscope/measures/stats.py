"""How often and how strongly each feature fires over a set of images (step 2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32

from fluxscope.dims import FeatureIds, SMatrix
from fluxscope.errors import FluxscopeError
from fluxscope.measures.ranking import (
    BLOCK_ELEMENTS,
    Entries,
    TopLists,
    check_S,
    nonzero_entries,
    release_pages,
    walk_entries,
)

RARE_BELOW = 0.01
VERY_COMMON_FROM = 0.10


@dataclass(frozen=True)
class FeatureStats:
    """Statistics of f features over n images; "active" means S > eps.

    Attributes:
        alive: int32 ids of the features active on at least one image, ascending.
        frequency: float32 (f), share of images on which the feature is active.
        mean, std: float32 (f), of S over the images on which the feature is active; 0 for dead features.
        maximum: float32 (f), of S over all images.
        top_idx, top_scores: int32 and float32 (k, f), the k images with the largest S, descending, ties
            to the lower image index. k is at most n.
        n_images, eps: what they were computed from.
    """

    alive: FeatureIds
    frequency: Float32[np.ndarray, " f"]
    mean: Float32[np.ndarray, " f"]
    std: Float32[np.ndarray, " f"]
    maximum: Float32[np.ndarray, " f"]
    top_idx: Int32[np.ndarray, "k f"]
    top_scores: Float32[np.ndarray, "k f"]
    n_images: int
    eps: float

    @property
    def counts(self) -> dict[str, int]:
        """The counts of feature_analysis_summary.json: alive, dead, rare (frequency above 0, below 1%),
        common (1% to 10%) and very common (10% and above) features."""
        # In float64: the float32 of 0.01 or 0.1 lies on either side of the bound it should sit on.
        share = np.rint(self.frequency.astype(np.float64) * self.n_images) / self.n_images
        alive = share > 0
        return {
            "num_alive_features": int(alive.sum()),
            "num_dead_features": int((~alive).sum()),
            "num_rare_features": int((alive & (share < RARE_BELOW)).sum()),
            "num_common_features": int(((share >= RARE_BELOW) & (share < VERY_COMMON_FROM)).sum()),
            "num_very_common_features": int((share >= VERY_COMMON_FROM).sum()),
        }


def feature_stats(S: SMatrix, eps: float, top_k: int, block: int | None = None) -> FeatureStats:
    """Compute every feature's statistics in one pass over S.

    Args:
        S: float32 (n, f), an array or a memory map. In C order (as S_matrix.npy is written) it is walked
            by rows, one stretch of the file at a time; a Fortran-ordered S by groups of columns, for the
            same reason. Memory stays at a few blocks, whatever n is.
        eps: a feature is active on an image when S > eps.
        top_k: how many top images to keep for each feature.
        block: rows at a time; by default 2 MiB of them.

    Raises:
        FluxscopeError: S is empty or no matrix, holds NaN, Infinity or negative values, or top_k is below 1.
    """
    check_S(S)
    if top_k < 1:
        raise FluxscopeError(f"top_k is {top_k}", "Keep at least one image per feature.")
    n, f = S.shape
    width = f if S.flags.c_contiguous or not S.flags.f_contiguous else max(1, BLOCK_ELEMENTS // n)
    parts = []
    for start in range(0, f, width):
        columns = S if width >= f else np.ascontiguousarray(S[:, start : start + width])
        parts.append(_stats_of_columns(columns, eps, min(top_k, n), block))
        release_pages(S)
    count, total, squares, score, image = (np.concatenate(p) for p in zip(*parts, strict=True))
    seen = np.maximum(count, 1)
    mean = total / seen
    return FeatureStats(
        alive=np.flatnonzero(count).astype(np.int32),
        frequency=(count / n).astype(np.float32),
        mean=mean.astype(np.float32),
        std=np.sqrt(np.maximum(squares / seen - mean**2, 0)).astype(np.float32),
        maximum=score[:, 0].copy(),
        top_idx=np.ascontiguousarray(image.T),
        top_scores=np.ascontiguousarray(score.T),
        n_images=n,
        eps=eps,
    )


def _stats_of_columns(S: SMatrix, eps: float, k: int, block: int | None) -> tuple[np.ndarray, ...]:
    """Count, sum and sum of squares over active images, and the top lists, of some columns of S."""
    f = S.shape[1]
    lists = TopLists(f, k)
    _seed_lists(lists, S[:k])
    count, total, squares = np.zeros(f, np.int64), np.zeros(f), np.zeros(f)
    for entries in walk_entries(S, block):
        lists.push(entries.where(entries.image >= k))
        active = entries.where(entries.value > eps)
        value = active.value.astype(np.float64)
        count += np.bincount(active.feature, minlength=f)
        total += np.bincount(active.feature, value, minlength=f)
        squares += np.bincount(active.feature, value**2, minlength=f)
    lists.settle()
    return count, total, squares, lists.score, lists.image


def _seed_lists(lists: TopLists, first_rows: SMatrix) -> None:
    """Start from the first k images, zeros included, so that every list is full from the beginning.

    From then on only nonzero entries can enter: a later zero never beats an earlier one.
    """
    k, f = first_rows.shape
    nonzero_entries(first_rows)  # refuses NaN
    image, feature = np.divmod(np.arange(k * f), f)
    value = np.array(first_rows, dtype=np.float32).reshape(-1)
    lists.push(Entries(image, feature, value))
    lists.settle()
