"""Matryoshka BatchTopK: nested dictionaries, the first features standing on their own.

    z as in BatchTopK; for each prefix size m:  x'_m = W_dec[:, :m] z[:m] + b_pre
    loss = mean over m of |x - x'_m|^2 / d

Bussmann, Nabeshima, Karvonen and Nanda 2025 (arXiv 2503.17547). Early features must explain x without the
later ones, so they stay general instead of being split and absorbed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

from fluxscope.errors import CheckpointError
from fluxscope.fields import setting
from fluxscope.sae.base import LinearSae
from fluxscope.sae.batch_topk import BatchChosen, ThresholdedSae
from fluxscope.sae.config_values import positive_integer, sizes

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
        check_levels(self.levels, hidden_dim)

    @classmethod
    def from_config(
        cls, input_dim: int, hidden_dim: int, config: dict[str, Any]
    ) -> MatryoshkaSparseAutoencoder:
        k = positive_integer(config.get("topk_k"), "topk_k")
        return cls(input_dim, hidden_dim, k, sizes(config, "levels"))

    def config(self) -> dict[str, Any]:
        return super().config() | {"levels": list(self.levels)}


def default_levels(hidden_dim: int) -> tuple[int, ...]:
    return tuple(sorted({max(1, round(hidden_dim * share)) for share in SHARES}))


def check_levels(levels: Sequence[int], hidden_dim: int) -> None:
    """Raises CheckpointError unless the sizes ascend to the number of features."""
    if list(levels) != sorted(set(levels)) or levels[0] < 1 or levels[-1] != hidden_dim:
        raise CheckpointError(
            f"prefix sizes {list(levels)} do not ascend to {hidden_dim}",
            f"Choose ascending sizes that end with {hidden_dim}.",
        )


@final
@dataclass(frozen=True)
class Matryoshka(BatchChosen):
    """Settings of Matryoshka BatchTopK: those of its family, and one more.

    Args:
        levels: sizes of the prefixes; empty: f/16, f/8, f/4, f/2 and f.
    """

    levels: tuple[int, ...] = setting((), "Prefix sizes, such as 64,256,1024.", low=1)
    sae: ClassVar[type[LinearSae]] = MatryoshkaSparseAutoencoder

    def check(self, hidden_dim: int) -> None:
        super().check(hidden_dim)
        check_levels(self.prefixes(hidden_dim), hidden_dim)

    def prefixes(self, hidden_dim: int) -> tuple[int, ...]:
        return self.levels or default_levels(hidden_dim)

    def build(self, input_dim: int, hidden_dim: int) -> MatryoshkaSparseAutoencoder:
        return MatryoshkaSparseAutoencoder(input_dim, hidden_dim, self.k, self.levels)
