"""The images that each feature fires on most, one of each prompt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32, Int64

from fluxscope.errors import FluxscopeError
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


def rank_images(
    S: SMatrix,
    prompt_idx: Int[np.ndarray, " images"],
    eps: float,
    top_m: int,
    block: int | None = None,
    some: Bool[np.ndarray, " images"] | None = None,
) -> RankedImages:
    """Walk S once and rank each feature's images by activation, keeping the first image of each prompt.

    Args:
        S: float32 (n, f), an array or a memory map; it is read in blocks of rows, none of them smaller than
            the images of one prompt.
        prompt_idx: the prompt of each row.
        eps: a feature is active on an image when S > eps.
        top_m: how many images to keep.
        some: the images to rank, whole prompts of them; by default all.

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
    order = order if some is None else order[some[order]]
    as_is = len(order) == n and bool((order == np.arange(n)).all())
    n = len(order)
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


def both_ranked(first: RankedImages, second: RankedImages, pictures: tuple[int, int]) -> RankedImages:
    """What rank_images gives of all images, from those of two halves of the prompts.

    Args:
        pictures: how many images each has.
    """
    score = np.concatenate([first.score, second.score], axis=1)
    image = np.concatenate([first.image, second.image], axis=1)
    last = np.where(image < 0, np.iinfo(np.int32).max, image)
    best = np.lexsort((last, -score), axis=1)[:, : first.score.shape[1]]
    count = first.frequency * pictures[0] + second.frequency * pictures[1]
    return RankedImages(
        np.take_along_axis(image, best, axis=1),
        np.take_along_axis(score, best, axis=1),
        first.coverage + second.coverage,
        (np.rint(count) / sum(pictures)).astype(np.float32),
    )


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
