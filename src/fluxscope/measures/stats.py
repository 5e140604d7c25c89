"""How often and how strongly each feature fires over a set of images (step 2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32

from fluxscope.errors import FluxscopeError
from fluxscope.measures.ranking import (
    BLOCK_ELEMENTS,
    Entries,
    SMatrix,
    TopLists,
    check_S,
    check_values,
    even_bounds,
    release_pages,
    walk_rows,
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

    alive: Int32[np.ndarray, " m"]
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
        block: rows at a time; by default 4 MiB of them.

    Raises:
        FluxscopeError: S is empty or no matrix, holds NaN, Infinity or negative values, or top_k is below 1.
    """
    check_S(S)
    if top_k < 1:
        raise FluxscopeError(f"top_k is {top_k}", "Keep at least one image per feature.")
    n, f = S.shape
    in_columns = S.flags.f_contiguous and not S.flags.c_contiguous
    width = max(1, BLOCK_ELEMENTS // n) if in_columns else f
    parts = []
    for start in range(0, f, width):
        columns = np.ascontiguousarray(S[:, start : start + width]) if in_columns else S
        parts.append(_stats_of(columns, eps, min(top_k, n), block))
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


def _stats_of(S: SMatrix, eps: float, k: int, block: int | None) -> tuple[np.ndarray, ...]:
    """Count, sum and sum of squares over active images, and the top lists, by features."""
    n, f = S.shape
    lists = TopLists(f, k)
    count, total, squares = np.zeros(f, np.int64), np.zeros(f), np.zeros(f)
    for start, rows in walk_rows(S, even_bounds(n, f, block)):
        place = np.flatnonzero(rows != 0)  # NaN is not zero: it is met here
        value = rows.reshape(-1)[place].astype(np.float32, copy=False)
        check_values(value, f, start, place)
        feature = place % f
        high = value >= lists.bar[feature]
        lists.push(Entries(place[high] // f + start, feature[high], value[high]))
        active = value > eps
        if not active.all():
            feature, value = feature[active], value[active]
        exact = value.astype(np.float64)
        count += np.bincount(feature, minlength=f)
        total += np.bincount(feature, exact, f)
        squares += np.bincount(feature, exact**2, f)
    return count, total, squares, *_filled(*lists.lists(), n)


def _filled(
    score: Float32[np.ndarray, "f k"], image: Int32[np.ndarray, "f k"], n: int
) -> tuple[Float32[np.ndarray, "f k"], Int32[np.ndarray, "f k"]]:
    """Fill short lists with the images of lowest index on which the feature is zero.

    A short list holds all images on which its feature is not zero, and those are fewer than k: among the
    first 2k images there are enough others.
    """
    f, k = image.shape
    taken = np.zeros((f, min(2 * k, n)), bool)
    row, column = np.nonzero((image >= 0) & (image < taken.shape[1]))
    taken[row, image[row, column]] = True
    others = np.argsort(taken, axis=1, kind="stable")
    length = (image >= 0).sum(1, keepdims=True)
    short = np.arange(k) >= length
    spare = np.take_along_axis(others, np.where(short, np.arange(k) - length, 0), axis=1)
    return np.where(short, np.float32(0), score), np.where(short, spare, image).astype(np.int32)
