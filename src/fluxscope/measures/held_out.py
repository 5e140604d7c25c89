"""Does what a feature fires on look like what other prompts' pictures taught? A score that needs no labels.

Pictures are cut in tiles, and CLIP sees each. Some prompts teach, for every feature, a direction in CLIP's
space: what the tiles look like on which it is strong, less what tiles in the same place look like. On other
prompts its strength is held against how far each tile lies along that direction. The correlation is near
zero for a feature that stands for nothing one can see, however alike its few strongest pictures are, and for
one that knows only places.

`taught_by_others` lets all prompts but one teach, each in turn; `taught_on_test_on` lets some teach and tests
on others, with the chance of it: dealing the prompts' tiles anew, prompt by prompt, has an exact mean,
variance and skewness, and a gamma distribution with these stands for all deals.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int, Int64

if TYPE_CHECKING:
    from scipy.sparse import csc_array, csr_array

FEWEST = 4
"""Fewer prompts teach nothing about each other."""

MOST_PROMPTS, MOST_PICTURES = 512, 4
"""So many prompts, and pictures of each, are looked at: more make no score surer that is worth showing."""

BLOCK = 1 << 22
"""Numbers that are looked at together, about."""


@dataclass(frozen=True)
class Views:
    """How strong every feature is, and what CLIP sees, in the same tiles of pictures, prompt by prompt.

    Attributes:
        prompts: int64 (p), which prompts.
        strength: (p v, f), sparse: the largest code in each tile of the prompts' pictures. All prompts have
            as many views: as many pictures, each of as many tiles.
        embeddings: float32 (p, v, e), CLIP's.
    """

    prompts: Int64[np.ndarray, " p"]
    strength: csc_array
    embeddings: Float32[np.ndarray, "p v e"]


def pictures_to_see(prompt_idx: Int[np.ndarray, " n"], seed: int = 0) -> Int64[np.ndarray, "p each"]:
    """The pictures that are looked at: as many of every prompt, the first ones; of very many prompts, some.

    Returns:
        the rows of each prompt's pictures; prompts ascend.
    """
    prompts, first, count = np.unique(np.sort(prompt_idx), return_index=True, return_counts=True)
    each = min(int(count.min()), MOST_PICTURES)
    rows = np.argsort(prompt_idx, kind="stable")[first[:, None] + np.arange(each)]
    kept = np.random.default_rng(seed).permutation(len(prompts))[:MOST_PROMPTS]
    seen: np.ndarray = rows[np.sort(kept)]
    return seen


def views_of(
    pictures: Int[np.ndarray, "p each"],
    prompt_idx: Int[np.ndarray, " n"],
    strength: csr_array,
    embeddings: Float32[np.ndarray, "n tiles e"],
) -> Views:
    """Put together what there is to see.

    Args:
        pictures: from pictures_to_see.
        strength: (p each tiles, f), each feature's largest code in the tiles of these pictures, in order.
        embeddings: CLIP's, of the tiles of all pictures.
    """
    p, _, tiles = len(pictures), *embeddings.shape[:2]
    assert strength.shape[0] == pictures.size * tiles, "strengths and pictures differ"
    seen = embeddings[pictures].reshape(p, -1, embeddings.shape[2])
    return Views(prompt_idx[pictures[:, 0]].astype(np.int64), strength.tocsc(), seen)


def taught_by_others(views: Views, some: Bool[np.ndarray, " p"]) -> Float32[np.ndarray, " f"]:
    """The correlation of each feature's strength with what the other prompts taught, over some prompts.

    Returns:
        float32 (f), NaN for features that are silent there, and with fewer than FEWEST prompts.
    """
    p, f = int(some.sum()), views.strength.shape[1]
    found = np.full(f, np.nan, np.float32)
    if p < FEWEST:
        return found
    x = _less_mean(views.embeddings[some].astype(np.float64))
    for part, strength in _strengths(views, some):
        s = _less_mean(strength)
        w = _taught(x, s)
        along = np.empty_like(s)
        for i in range(p):  # its own part in w, and in the means, taken out
            along[i] = x[i] @ (w - p / (p - 1) * (x[i].T @ s[i]))
        found[part] = _correlation(along - along.mean((0, 1)), s)
    return found


def taught_on_test_on(
    views: Views, learn: Bool[np.ndarray, " p"], test: Bool[np.ndarray, " p"]
) -> tuple[Float32[np.ndarray, " f"], Float64[np.ndarray, " f"]]:
    """The correlation on some prompts with what others taught, and the chance of one so large.

    Returns:
        r, float32 (f), NaN for features that are silent on either side; p, one-sided, 1 where r is NaN.
    """
    f = views.strength.shape[1]
    r, chance = np.full(f, np.nan, np.float32), np.ones(f)
    if min(learn.sum(), test.sum()) < FEWEST:
        return r, chance
    x, y = (_less_mean(views.embeddings[some].astype(np.float64)) for some in (learn, test))
    for (part, seen), (_, strength) in zip(_strengths(views, learn), _strengths(views, test), strict=True):
        along, s = y @ _taught(x, _less_mean(seen)), _less_mean(strength)
        r[part] = _correlation(along, s)
        active = (strength > 0).any(1).sum(0)
        chance[part] = np.where(np.isnan(r[part]), 1.0, _chance(along, s, active))
    return r, chance


def _strengths(
    views: Views, some: Bool[np.ndarray, " p"]
) -> Iterator[tuple[slice, Float64[np.ndarray, "p v c"]]]:
    """The strengths on some prompts, some features at a time."""
    p, v = views.embeddings.shape[:2]
    f = views.strength.shape[1]
    step = max(1, BLOCK // (p * max(p, v)))  # the same blocks for any part of the prompts
    for start in range(0, f, step):
        part = slice(start, min(start + step, f))
        yield part, views.strength[:, part].toarray().reshape(p, v, -1)[some].astype(np.float64)


def _less_mean(x: Float64[np.ndarray, "p v k"]) -> Float64[np.ndarray, "p v k"]:
    """Less the mean over prompts of each place; what differs by rounding alone is the same."""
    less: np.ndarray = x - x.mean(0)
    less[np.abs(less) < 1e-12 * np.abs(x).max((0, 1))] = 0
    return less


def _taught(x: Float64[np.ndarray, "p v e"], s: Float64[np.ndarray, "p v c"]) -> Float64[np.ndarray, "e c"]:
    taught: np.ndarray = x.reshape(-1, x.shape[-1]).T @ s.reshape(-1, s.shape[-1])
    return taught


def _correlation(
    along: Float64[np.ndarray, "p v c"], s: Float64[np.ndarray, "p v c"]
) -> Float64[np.ndarray, " c"]:
    size = np.sqrt((along**2).sum((0, 1)) * (s**2).sum((0, 1)))
    r: np.ndarray = np.divide((along * s).sum((0, 1)), size, out=np.full(len(size), np.nan), where=size > 0)
    return r


def _chance(
    along: Float64[np.ndarray, "p v c"], s: Float64[np.ndarray, "p v c"], active: Int[np.ndarray, " c"]
) -> Float64[np.ndarray, " c"]:
    """The chance of a sum of products so large when prompts are dealt other prompts' tiles, place by place.

    With d_ij the sum of products of prompt i's strengths and prompt j's tiles, whose rows and columns add to
    zero, the sum over a deal has the mean 0, the variance sum d^2 / (p - 1) and the third moment
    p sum d^3 / ((p - 1)(p - 2)) (Hoeffding 1951). No chance is smaller than one of all different deals.
    """
    from scipy.special import gammainc, gammaincc, gammaln, ndtr

    p = len(s)
    d = s.transpose(2, 0, 1) @ along.transpose(2, 1, 0)  # (c, p, p)
    variance = (d**2).sum((1, 2)) / (p - 1)
    third = (d**3).sum((1, 2)) * p / ((p - 1) * (p - 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.trace(d, axis1=1, axis2=2) / np.sqrt(variance)
        skew = third / variance**1.5
        shape = 4 / skew**2
        above = gammaincc(shape, np.maximum(shape + z * np.sqrt(shape), 0))
        below = gammainc(shape, np.maximum(shape - z * np.sqrt(shape), 0))
    chance = np.where(np.abs(skew) < 1e-3, ndtr(-z), np.where(skew > 0, above, below))
    deals = gammaln(p + 1) - gammaln(p - active + 1)  # their logarithm; silent prompts are all the same
    found: np.ndarray = np.where(np.isfinite(chance), np.maximum(chance, np.exp(-deals)), 1.0)
    return found
