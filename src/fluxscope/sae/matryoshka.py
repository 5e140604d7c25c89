"""Matryoshka BatchTopK: nested dictionaries, the first features standing on their own.

    z as in BatchTopK; for each prefix size m:  x'_m = W_dec[:, :m] z[:m] + b_pre
    loss = mean over m of |x - x'_m|^2 / d

Bussmann, Nabeshima, Karvonen and Nanda 2025 (arXiv 2503.17547). Early features must explain x without the
later ones, so they stay general instead of being split and absorbed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, final

from fluxscope.errors import CheckpointError
from fluxscope.sae.batch_topk import ThresholdedSae

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)


@final
class MatryoshkaSparseAutoencoder(ThresholdedSae):
    """A BatchTopK SAE whose prefixes are SAEs too.

    Args:
        input_dim: d, width of the activations.
        hidden_dim: f, number of features.
        k: mean number of active features a token.
        levels: sizes of the prefixes, ascending, the last one f; by default f/16, f/8, f/4, f/2 and f.
    """

    architecture: ClassVar[str] = "matryoshka_batch_topk"

    def __init__(self, input_dim: int, hidden_dim: int, k: int, levels: Sequence[int] = ()) -> None:
        super().__init__(input_dim, hidden_dim, k)
        self.levels = tuple(levels) or default_levels(hidden_dim)
        if (
            list(self.levels) != sorted(set(self.levels))
            or self.levels[0] < 1
            or self.levels[-1] != hidden_dim
        ):
            raise CheckpointError(
                f"prefix sizes {list(self.levels)} do not ascend to {hidden_dim}",
                f"Choose ascending sizes that end with {hidden_dim}.",
            )

    @classmethod
    def from_config(
        cls, input_dim: int, hidden_dim: int, config: dict[str, Any]
    ) -> MatryoshkaSparseAutoencoder:
        return cls(input_dim, hidden_dim, int(config["topk_k"]), config.get("levels") or ())

    def config(self) -> dict[str, Any]:
        return super().config() | {"levels": list(self.levels)}


def default_levels(hidden_dim: int) -> tuple[int, ...]:
    return tuple(sorted({max(1, round(hidden_dim * share)) for share in SHARES}))
