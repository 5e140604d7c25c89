"""Does what a feature's pictures look like tell where else it fires? A score that needs no labels.

The prompts are parted in two halves. On one half a direction in CLIP's space is learned from a feature: what
the pictures look like on which it is strong, less what all look like. On the other half its strength is held
against how far each picture lies along that direction. The correlation is near zero for a feature that stands
for nothing one can see, however alike its few strongest pictures are. Each half teaches once, and the mean
counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int
from scipy.stats import t as student

from fluxscope.errors import FluxscopeError
from fluxscope.measures.ranking import SMatrix, check_S, even_bounds, walk_rows


@dataclass(frozen=True)
class HeldOut:
    """How well CLIP's view of one half of the prompts tells a feature's strength on the other.

    Attributes:
        r: float32 (f), the mean of both correlations; NaN for features that are silent on a half.
        p: float64 (f), chance of the smaller of the two, were there nothing: one-sided, with as many pictures
            as there are prompts; 1 where r is NaN.
    """

    r: Float32[np.ndarray, " f"]
    p: Float64[np.ndarray, " f"]


@dataclass(frozen=True)
class _Half:
    """Sums over the pictures of some prompts: how S and the embeddings go together, both less their means."""

    prompts: int
    together: Float64[np.ndarray, "f e"]
    spread: Float64[np.ndarray, " f"]
    covariance: Float64[np.ndarray, "e e"]


def clip_held_out(
    S: SMatrix,
    embeddings: Float32[np.ndarray, "images e"],
    prompt_idx: Int[np.ndarray, " pictures"],
    seed: int = 0,
    block: int | None = None,
) -> HeldOut:
    """Score all features in one walk over S.

    The strength on half B along the direction w that half A taught sums to w's inner product with what half B
    itself would teach, so that no picture is looked at twice.

    Args:
        S: float32 (n, f), an array or a memory map.
        embeddings: CLIP's, one row a picture.
        prompt_idx: the prompt of each picture; a half holds whole prompts.

    Raises:
        FluxscopeError: S and the embeddings are of different pictures.
    """
    check_S(S)
    if not len(S) == len(embeddings) == len(prompt_idx):
        raise FluxscopeError(
            f"{len(S)} rows of S, {len(embeddings)} embeddings and {len(prompt_idx)} prompts do not fit",
            "All must come from the same run.",
        )
    prompts = np.random.default_rng(seed).permutation(np.unique(prompt_idx))
    first = np.isin(prompt_idx, prompts[: len(prompts) // 2])
    halves = [_half(S, embeddings, prompt_idx, rows, block) for rows in (first, ~first)]
    both = [_correlation(halves[0], halves[1]), _correlation(halves[1], halves[0])]
    r = (both[0][0] + both[1][0]) / 2
    p = np.where(np.isnan(r), 1.0, np.maximum(both[0][1], both[1][1]))
    return HeldOut(r.astype(np.float32), p)


def _half(
    S: SMatrix,
    embeddings: Float32[np.ndarray, "n e"],
    prompt_idx: Int[np.ndarray, " n"],
    rows: Bool[np.ndarray, " n"],
    block: int | None,
) -> _Half:
    n, (f, e) = int(rows.sum()), (S.shape[1], embeddings.shape[1])
    centred = np.where(rows[:, None], embeddings - embeddings[rows].mean(0) if n else 0, 0).astype(np.float32)
    together, total, squares = np.zeros((f, e)), np.zeros(f), np.zeros(f)
    for start, part in walk_rows(S, even_bounds(len(S), f, block)):
        own = rows[start : start + len(part)]
        value = part[own]
        together += value.T @ centred[start : start + len(part)][own]
        total += value.sum(0, dtype=np.float64)
        squares += np.einsum("nf,nf->f", value, value, dtype=np.float64)
    prompts = len(np.unique(prompt_idx[rows]))
    spread = squares - total**2 / max(n, 1)
    return _Half(prompts, together, spread, centred.T.astype(np.float64) @ centred)


def _correlation(learned: _Half, held: _Half) -> tuple[Float64[np.ndarray, " f"], Float64[np.ndarray, " f"]]:
    """Correlation on one half along the directions that the other taught, and its one-sided p."""
    w = learned.together
    along = np.einsum("fe,fe->f", w @ held.covariance, w)
    size = np.sqrt(np.maximum(along, 0) * np.maximum(held.spread, 0))
    live = size > 1e-12 * max(size.max(initial=0.0), 1e-12)
    r = np.divide(np.einsum("fe,fe->f", w, held.together), size, out=np.full(len(w), np.nan), where=live)
    r = np.clip(r, -1, 1)
    freedom = held.prompts - 2
    if freedom < 1:
        return np.full(len(w), np.nan), np.ones(len(w))
    with np.errstate(divide="ignore", invalid="ignore"):
        p = student.sf(r * np.sqrt(freedom / (1 - r**2)), freedom)
    return r, np.where(np.isnan(p), 1.0, p)
