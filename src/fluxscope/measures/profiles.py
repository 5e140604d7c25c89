"""Which features of two SAEs are the same: by their images, by their tokens, by their directions (step 9)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int, Int32

from fluxscope.measures.compare import Partners, correlation_blocks, cosine_blocks, partners

if TYPE_CHECKING:
    from scipy.sparse import csr_array


@dataclass(frozen=True)
class Profiles:
    """What the features of an SAE are compared by.

    Attributes:
        image_level: S, (n, f).
        token_maps: the codes of all tokens, (n x t, f).
        directions: of the decoder.
    """

    image_level: csr_array
    token_maps: csr_array
    directions: Float[np.ndarray, "f d"]

    def of_other_images(self) -> Profiles:
        """The same features where nothing can be shared: the control of every match.

        Each image's rows stand in the place of one half the run away, and directions are random.
        """
        n = self.image_level.shape[0]
        tokens = self.token_maps.shape[0] // n
        noise = np.random.default_rng(0).standard_normal(self.directions.shape, dtype=np.float32)
        return Profiles(rolled(self.image_level, n // 2), rolled(self.token_maps, n // 2 * tokens), noise)


def rolled(x: csr_array, rows: int) -> csr_array:
    """The matrix with its first rows moved to its end."""
    from scipy.sparse import vstack

    return vstack([x[rows:], x[:rows]], format="csr")


def match(a: Profiles, b: Profiles, candidates: int | None = None) -> dict[str, Partners]:
    """Each feature's partners by image-level S, by token maps, and by decoder cosine.

    The cosine is left out where the two SAEs read activations of different widths.
    """
    sizes = len(a.directions), len(b.directions)
    blocks = {
        "image_level": correlation_blocks(a.image_level, b.image_level),
        "token_maps": correlation_blocks(a.token_maps, b.token_maps),
    }
    if a.directions.shape[1] == b.directions.shape[1]:
        blocks["decoder_cosine"] = cosine_blocks(a.directions, b.directions)
    return {name: partners(rows, *sizes, candidates) for name, rows in blocks.items()}


@dataclass(frozen=True)
class Shared:
    """Which features two SAEs, a and b, have in common; ids, ascending.

    Attributes:
        persist: features of a with a partner in b at least as similar as the threshold.
        vanish: alive features of a without one.
        appear: alive features of b without one in a.
    """

    persist: Int32[np.ndarray, " p"]
    vanish: Int32[np.ndarray, " v"]
    appear: Int32[np.ndarray, " q"]


def shared_features(
    found: Partners, alive_a: Int[np.ndarray, " m"], alive_b: Int[np.ndarray, " o"], threshold: float = 0.5
) -> Shared:
    """Tell features that persist from those that vanish and appear, by their best partners' similarity."""
    kept = found.similarity[alive_a] >= threshold  # NaN is not
    known = found.back_similarity[alive_b] >= threshold
    return Shared(
        alive_a[kept].astype(np.int32), alive_a[~kept].astype(np.int32), alive_b[~known].astype(np.int32)
    )


def best_pairs(found: Partners, eligible: Bool[np.ndarray, " fa"], count: int) -> Int[np.ndarray, " m"]:
    """The eligible features of a that are their partner's best one too, the most similar pairs first."""
    shared = found.best >= 0
    mutual = shared & (found.back_best[found.best] == np.arange(len(found.best)))
    strength = np.where(mutual & eligible, found.similarity, -np.inf)
    best = np.argsort(-strength, kind="stable")[:count]
    return best[strength[best] > 0]
