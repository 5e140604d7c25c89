"""What copying a donor's activations did to pictures, and how sure one may be of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from fluxscope.measures.distance import Picture, pixel_change

NORMAL = 1.959963984540054
"""Standard deviations within which 95% of a normal distribution lie."""

VISIBLE = 0.01
"""Two pictures that differ nowhere by this share of the range are one but for rounding."""

CHANGED = 0.1
"""A pixel belongs to what changes where source and donor differ by this share of the range."""

NEARER = 0.5
"""From this share of the distance on, a picture is nearer to the donor's than to its own."""

DEAD = 0.1
"""A site whose donor score is below this is no place to steer."""

WEAK = 0.25
"""Nor is a kind of site of which no block reaches this, and whose blocks' mean is dead."""


@dataclass(frozen=True)
class Rate:
    """How often something happened.

    Attributes:
        low, high: Wilson's 95% interval of the share.
    """

    hits: int
    n: int
    share: float
    low: float
    high: float


def rate(happened: Sequence[bool]) -> Rate | None:
    """The share of successes with Wilson's interval (Wilson, 1927); None of nothing.

    It stays inside 0 to 1, and says something for 0 of n too, where the normal approximation does not.
    """
    n = len(happened)
    if not n:
        return None
    hits = sum(map(bool, happened))
    share, z2 = hits / n, NORMAL**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = NORMAL / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low = 0.0 if hits == 0 else max(middle - half, 0.0)
    high = 1.0 if hits == n else min(middle + half, 1.0)
    return Rate(hits, n, share, low, high)


def closed(left: float, whole: float) -> float | None:
    """The share of the way to the donor's picture that is done: 1 there, 0 at the source.

    Args:
        left: the picture's distance from the donor's.
        whole: the source's distance from it.

    Returns:
        None where source and donor are the same picture.
    """
    return 1 - left / whole if whole > 1e-9 else None


def changing_region(source: Picture, donor: Picture) -> Bool[np.ndarray, "h w"]:
    """Where the donor's picture differs from the source's."""
    region: np.ndarray = pixel_change(source, donor) > CHANGED
    return region


def are_one(source: Picture, donor: Picture) -> bool:
    """Whether two prompts made the same picture, so that there is no way between them to go."""
    return float(pixel_change(source, donor).max()) < VISIBLE


def inside_and_outside(
    picture: Picture, source: Picture, donor: Picture
) -> tuple[float | None, float | None]:
    """How much of the change came about where it should, and how much changed where nothing should.

    Returns:
        inside: the share of the pixels' way to the donor's that is done within the region that changes.
        outside: the mean change of a pixel outside it, as a share of the donor's mean change within.
            Either is None where there is no such region.
    """
    region = changing_region(source, donor)
    if not region.any():
        return None, None
    whole = float(pixel_change(source, donor)[region].mean())
    left = float(pixel_change(picture, donor)[region].mean())
    if region.all():
        return 1 - left / whole, None
    return 1 - left / whole, float(pixel_change(picture, source)[~region].mean()) / whole


def mean_closed(shares: Sequence[float | None]) -> float | None:
    """The mean share that is closed; None where nothing is known.

    What is farther off than the donor was at first counts as -1, so that no single broken picture decides.
    """
    known = [max(share, -1.0) for share in shares if share is not None]
    return sum(known) / len(known) if known else None


def mean_of(values: Sequence[float | None]) -> float | None:
    """The mean of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
