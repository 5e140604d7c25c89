"""What strengths did to pictures: where a change begins, where it breaks, and how well both ways show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FIRST_CHANGE = 0.1
"""A picture has changed when its distance from the baseline is this share of that of unrelated pictures."""


def dose_response(
    strengths: Sequence[float], distances: Sequence[float], unrelated: float
) -> dict[str, float | None]:
    """The strength at which a picture first changes, and at which it is as far away as an unrelated one.

    From there on more strength changes it no further: the distance saturates and the picture is broken.
    Strengths between the tested ones are read off straight lines, which begin at distance 0.

    Args:
        strengths: all of one sign, in any order.
        distances: of each picture from its baseline.
        unrelated: the typical distance between pictures of different prompts.

    Returns:
        first_change, breaks: None where no tested strength comes that far.
    """
    order = np.argsort(np.abs(strengths))
    x = np.concatenate([[0.0], np.asarray(strengths, float)[order]])
    y = np.concatenate([[0.0], np.asarray(distances, float)[order]])
    return {
        "first_change": _first_crossing(x, y, FIRST_CHANGE * unrelated),
        "breaks": _first_crossing(x, y, unrelated),
    }


def _first_crossing(x: np.ndarray, y: np.ndarray, level: float) -> float | None:
    reached = np.flatnonzero(y >= level)
    if not len(reached) or reached[0] == 0:
        return None
    i = int(reached[0])
    share = (level - y[i - 1]) / (y[i] - y[i - 1])
    return float(x[i - 1] + share * (x[i] - x[i - 1]))


def demo_score(positive: float, negative: float) -> tuple[float, float]:
    """How well a strength shows both ways: (consistency, score).

    consistency = min / max of the two distances; score = their mean x (0.5 + 0.5 x consistency).
    """
    larger = max(positive, negative)
    consistency = min(positive, negative) / larger if larger > 0 else 0.0
    return consistency, (positive + negative) / 2 * (0.5 + 0.5 * consistency)
