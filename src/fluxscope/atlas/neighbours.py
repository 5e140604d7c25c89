"""Which features are alike: products of all pairs in eight bits, a block of features at a time.

In eight bits because neighbours of 49,152 features on 5,000 pictures are 24 trillion multiplications.
Whether a feature fires is one bit, so counts are exact; cosines are off by less than 0.005.
"""

from __future__ import annotations

import numpy as np
import torch

ROWS_AT_ONCE = 256


def firing(s: np.ndarray, ids: np.ndarray, eps: float) -> torch.Tensor:
    """int8 (f, n): 1 where a feature is active on a picture."""
    found = np.empty((len(ids), len(s)), np.int8)
    for first in range(0, len(s), ROWS_AT_ONCE):
        found[:, first : first + ROWS_AT_ONCE] = (s[first : first + ROWS_AT_ONCE][:, ids] > eps).T
    return torch.from_numpy(found)


def correlations(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Pearson's correlation of being active, float32 (a, b); 0 for features active everywhere or nowhere.

    Args:
        first, second: int8 (a, n) and (b, n), 0 or 1.
    """
    n = first.shape[1]
    share = [each.sum(1, dtype=torch.float32) / n for each in (first, second)]
    spread = [torch.sqrt(each * (1 - each)) for each in share]
    inverse = [torch.where(each > 1e-4, 1 / each, 0.0) for each in spread]
    found = product(first, second).float() / n
    found -= share[0][:, None] * share[1]
    return found.mul_(inverse[0][:, None]).mul_(inverse[1])


def quantised(directions: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Directions in eight bits, (f, d), and what each row is to be multiplied by to have norm 1."""
    rows = torch.from_numpy(directions)
    coarse = torch.empty(rows.shape, dtype=torch.int8)
    scale = torch.empty(len(rows))
    for at in range(0, len(rows), 4096):
        part = rows[at : at + 4096].float()
        part = part / part.abs().amax(1, keepdim=True).clamp_min(1e-30) * 127
        coarse[at : at + 4096] = part.round_().to(torch.int8)
        scale[at : at + 4096] = 1 / part.norm(dim=1).clamp_min(1e-9)
    return coarse, scale


def cosines(here: slice, coarse: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Cosines of some directions with all, float32 (a, f)."""
    return product(coarse[here], coarse).float().mul_(scale[here, None]).mul_(scale)


def product(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """int32 (a, b): products of the rows of two int8 matrices."""
    found: torch.Tensor = torch._int_mm(first.contiguous(), second.T)
    return found


def nearest(
    scores: torch.Tensor, ids: np.ndarray, own: np.ndarray | None, count: int = 6
) -> list[list[list[float]]]:
    """For each row the columns with the highest scores above 0, as [id, score].

    Args:
        own: the id of each row, which is left out of its list; None where rows are features of another site.
    """
    value, place = (each.numpy() for each in torch.topk(scores, min(count + 1, scores.shape[1]), dim=1))
    lists = []
    for row in range(len(value)):
        itself = None if own is None else own[row]
        pairs = zip(ids[place[row]].tolist(), value[row].tolist(), strict=True)
        lists.append([[i, round(v, 3)] for i, v in pairs if i != itself and v > 0.0005][:count])
    return lists


def plane(rows: torch.Tensor, scale: torch.Tensor) -> np.ndarray:
    """Places on a map, int (f, 2) from 0 to 1000: the first two principal axes, each by rank.

    By subspace iteration (Halko, Martinsson and Tropp 2011, arXiv 0909.4061); a block of rows at a time.

    Args:
        rows: int8 (f, d), and scale (f): what each is multiplied by.
    """
    f, d = rows.shape
    blocks = [slice(at, at + 4096) for at in range(0, f, 4096)]
    mean = torch.zeros(d)
    for b in blocks:
        mean += (rows[b].float() * scale[b, None]).sum(0) / f
    axes = torch.randn(d, min(6, d), generator=torch.Generator().manual_seed(0))
    for _ in range(8):
        turned = torch.zeros_like(axes)
        for b in blocks:
            part = rows[b].float() * scale[b, None] - mean
            turned += part.T @ (part @ axes)
        axes = torch.linalg.qr(turned).Q
    parts = [(rows[b].float() * scale[b, None] - mean) @ axes for b in blocks]
    places = torch.cat(parts)
    order = places.var(0, correction=0).argsort(descending=True)[:2]
    ranks = places[:, order].argsort(dim=0, stable=True).argsort(dim=0)
    found: np.ndarray = (1000 * (ranks.float() + 0.5) / f).round().int().numpy()
    return found if found.shape[1] == 2 else np.repeat(found, 2, 1)
