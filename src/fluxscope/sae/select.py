"""Which latents of a batch are the largest: exact selections that are faster than sorting everything.

Both rest on maxima of groups: the k largest entries of a row lie in the k groups with the largest maxima.
Groups are taken across the row with a stride, so that their maxima are one vectorised pass; what is left to
sort is a sixteenth of the row, and then k groups. Among exactly equal values any may be chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

GROUP = 16
"""Members of a group: 8 leaves too many maxima to sort, 32 too many members (measured at f = 6,144)."""


@dataclass(frozen=True, eq=False)
class Entries:
    """The latents chosen for each row of a batch; within a row in any order, each latent once.

    Args:
        feature: (e), the latent.
        value: (e), its code, zero or above.
        offsets: (b + 1), where each row's entries begin.
    """

    feature: Int64[Tensor, " e"]
    value: Float[Tensor, " e"]
    offsets: Int64[Tensor, " b_plus_1"]

    @classmethod
    def from_rows(cls, feature: Int64[Tensor, "b k"], value: Float[Tensor, "b k"]) -> Entries:
        """k latents a row."""
        rows, k = feature.shape
        offsets = torch.arange(0, rows * k + 1, k, device=feature.device)
        return cls(feature.flatten(), value.flatten(), offsets)


class Scratch:
    """Buffers kept between steps: a fresh one of 50 MB costs 12 ms in page faults, every step."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def get(
        self, name: str, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None
    ) -> Tensor:
        """The buffer of a name, with unspecified contents; made anew when shape, dtype or device differ."""
        kept, dtype = self._buffers.get(name), dtype or like.dtype
        if kept is None or kept.shape != shape or kept.dtype != dtype or kept.device != like.device:
            kept = self._buffers[name] = torch.empty(shape, dtype=dtype, device=like.device)
        return kept


def largest_in_rows(pre: Float[Tensor, "b f"], k: int) -> tuple[Float[Tensor, "b k"], Int64[Tensor, "b k"]]:
    """(values, indices) of the k largest entries of each row, unordered: torch.topk's, sooner."""
    rows, width = pre.shape
    stride = width // GROUP
    if pre.is_cuda or width % GROUP or stride < 2 * k:
        return pre.topk(k, dim=1, sorted=False)
    grouped = pre.view(rows, GROUP, stride)
    best = grouped.amax(1).topk(k, dim=1, sorted=False).indices  # (b, k)
    members = grouped.gather(2, best[:, None].expand(rows, GROUP, k)).view(rows, GROUP * k)
    value, place = members.topk(k, dim=1, sorted=False)  # place = member * k + rank of the group
    group = best.gather(1, place % k)
    return value, (place // k) * stride + group


def largest_in_rows_reference(
    pre: Float[Tensor, "b f"], k: int
) -> tuple[Float[Tensor, "b k"], Int64[Tensor, "b k"]]:
    """The twin of `largest_in_rows`."""
    return pre.topk(k, dim=1, sorted=False)


def largest_overall(pre: Float[Tensor, "b f"], count: int) -> Entries:
    """The `count` largest entries of a whole batch, those above zero alone, row by row."""
    rows, width = pre.shape
    floor = pre.new_zeros(())
    if width % GROUP == 0 and rows * width // GROUP >= count:
        maxima = pre.view(rows, GROUP, width // GROUP).amax(1).flatten()
        floor = maxima.topk(count, sorted=False).values.min().clamp_min(0)
    row, feature = ((pre >= floor) & (pre > 0)).nonzero(as_tuple=True)
    value = pre[row, feature]
    if len(value) > count:
        keep = value.topk(count, sorted=False).indices.sort().values
        row, feature, value = row[keep], feature[keep], value[keep]
    offsets = torch.bincount(row, minlength=rows).cumsum(0)
    return Entries(feature, value, torch.cat([offsets.new_zeros(1), offsets]))


def largest_overall_reference(pre: Float[Tensor, "b f"], count: int) -> Float[Tensor, "b f"]:
    """The twin of `largest_overall`, as a dense code."""
    flat = torch.relu(pre).flatten()
    value, place = flat.topk(count, sorted=False)
    return torch.zeros_like(flat).scatter(0, place, value).view_as(pre)
