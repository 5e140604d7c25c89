"""Which latents of a batch are the largest: exact selections that are faster than sorting everything.

Two ideas. Maxima of groups: the k largest entries of a row lie in the k groups with the largest maxima;
groups are taken across the row with a stride, so that their maxima are one vectorised pass. Keys: the upper
16 bits of a positive float order it well enough to choose candidates, and with a position in the lower 16
they are one int32, which NumPy partitions up to 20 times as fast as torch.topk does rows of floats. The
candidates' true values then decide. Among exactly equal values any may be chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

GROUP = 16
"""Members of a group: 8 leaves too many maxima to sort, 32 too many members (measured at f = 6,144)."""
_NETWORK = 512
"""Up to this width NumPy partitions int32 with AVX-512 networks; beyond it takes 10 times as long."""
_SPARE = 24
"""Candidates beyond k: their keys must not tie with the k-th value's, or the row is sorted in full."""
_POSITION = 0xFFFF


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
    """(values, indices) of the k largest entries of each row, unordered; values below zero become zero."""
    wanted = min(k + _SPARE, pre.shape[1])
    if not _by_keys(pre, wanted):
        value, index = pre.topk(k, dim=1, sorted=False)
        return value.relu(), index
    candidate = candidates(pre, wanted)
    value = pre.gather(1, candidate).relu_()
    least = value.amin(1)
    value, place = value.topk(k, dim=1, sorted=False)
    index = candidate.gather(1, place)
    tied = (_bits(value.amin(1)) <= _bits(least)) & (least > 0)
    if tied.any():
        again, index[tied] = pre[tied].topk(k, dim=1, sorted=False)
        value[tied] = again.relu()
    return value, index


def largest_in_rows_reference(
    pre: Float[Tensor, "b f"], k: int
) -> tuple[Float[Tensor, "b k"], Int64[Tensor, "b k"]]:
    """The twin of `largest_in_rows`."""
    value, index = pre.topk(k, dim=1, sorted=False)
    return value.relu(), index


def candidates(pre: Float[Tensor, "b f"], count: int) -> Int64[Tensor, "b count"]:
    """`count` entries of each row: no other's first 16 bits exceed all of theirs. Negative ones count as 0.

    For bfloat16 these are the largest entries.
    """
    if not _by_keys(pre, count):
        return pre.topk(count, dim=1, sorted=False).indices
    rows, width = pre.shape
    stride = width // GROUP
    if width % GROUP or stride < 2 * count:
        return _largest_keys(_keys(pre), count)
    grouped = pre.view(rows, GROUP, stride)
    group = _largest_keys(_keys(grouped.amax(1)), count)  # (b, count)
    members = grouped.gather(2, group[:, None].expand(rows, GROUP, count)).view(rows, GROUP * count)
    place = _largest_keys(_keys(members), count)  # place = member * count + rank of the group
    return (place // count) * stride + group.gather(1, place % count)


def _by_keys(pre: Tensor, count: int) -> bool:
    """Whether keys are worth it: on CPUs, where each place fits into one and rows get much shorter."""
    narrow = pre.dtype in (torch.float32, torch.bfloat16) and max(pre.shape[1], GROUP * count) <= _POSITION
    return narrow and not pre.is_cuda and 2 * count <= min(pre.shape[1], _NETWORK)


def _bits(value: Float[Tensor, "*shape"]) -> Int32[Tensor, "*shape"]:
    """The first 16 bits of positive floats, in the upper half of an int32; 0 for negative ones."""
    if value.dtype == torch.bfloat16:
        return value.view(torch.int16).clamp_min(0).to(torch.int32).bitwise_left_shift_(16)
    return value.float().view(torch.int32).clamp_min(0).bitwise_and_(~_POSITION)


def _keys(value: Float[Tensor, "b w"]) -> Int32[Tensor, "b w"]:
    """A value's first 16 bits, then its place in the row."""
    return _bits(value).bitwise_or_(torch.arange(value.shape[1], dtype=torch.int32))


def _largest_keys(keys: Int32[Tensor, "b w"], count: int) -> Int64[Tensor, "b count"]:
    """Places of the `count` largest keys of each row."""
    rows, width = keys.shape
    while width > max(_NETWORK, 2 * count) and count < _NETWORK // 2:
        pieces = -(-width // _NETWORK)
        padded = torch.nn.functional.pad(keys, (0, -width % pieces))
        keys = _partition(padded.view(rows * pieces, -1), count).reshape(rows, pieces * count)
        width = pieces * count
    return _partition(keys, count).bitwise_and(_POSITION).long()


def _partition(keys: Int32[Tensor, "b w"], count: int) -> Int32[Tensor, "b count"]:
    """The `count` largest of each row, in place."""
    first = keys.shape[1] - count
    keys.numpy().partition(first, axis=1)
    return keys[:, first:]


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
