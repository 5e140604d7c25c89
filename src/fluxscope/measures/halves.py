"""Some prompts choose a feature, the others show it: what is said of it then did not choose it.

The prompts are parted in two halves. A coin says for each feature which half scores it; it is shown, and
scored again, on the other. So both halves choose, and both have pictures to show.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

LEAST = 16
"""Prompts that are parted. Fewer are not enough to tell features from chance: all choose, and all show."""


@dataclass(frozen=True)
class Halves:
    """Which prompts choose a feature, and which show it.

    Attributes:
        prompts: those of the first half.
        by_first: the features that the first half chooses, and the second shows.
    """

    prompts: Int[np.ndarray, " p"]
    by_first: Bool[np.ndarray, " f"]


def part_prompts(prompt_idx: Int[np.ndarray, " n"], f: int, seed: int = 0) -> Halves | None:
    """Part the prompts and toss the coins; None with fewer prompts than LEAST."""
    prompts = np.unique(prompt_idx)
    if len(prompts) < LEAST:
        return None
    rng = np.random.default_rng(seed)
    return Halves(rng.permutation(prompts)[: len(prompts) // 2], rng.random(f) < 0.5)
