"""How good an SAE is on activations it was not trained on.

Explained variance sums its numerator and denominator apart over the whole corpus, in raw space: batch-wise
ratios averaged would weigh quiet batches too much. All sums are kept in float64.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from fluxscope.sae.base import LinearSae, encode_sparse
from fluxscope.sae.codes import SparseCodes

NEARLY_DEAD = 1e-7
DENSE = (0.01, 0.10)


@dataclass(frozen=True)
class Scores:
    """What an SAE does on a corpus of `n_tokens` tokens.

    Args:
        explained_variance: 1 - sum |x - x'|^2 / sum |x - mean x|^2.
        l0: mean number of active features a token.
        dead: share of features that never fired.
        nearly_dead: share of features that fired on fewer than one token in 10^7, dead ones included.
        dense_1, dense_10: share of features that fired on more than 1% and 10% of the tokens.
        norm_ratio: root of sum |x' - mean x|^2 / sum |x - mean x|^2; below 1 is shrinkage.
        relative_bias: sum |x' - mean x|^2 / sum (x' - mean x).(x - mean x); below 1, scaling codes up would
            lower the error (Rajamanoharan et al. 2024, arXiv 2404.16014).
    """

    n_tokens: int
    explained_variance: float
    l0: float
    dead: float
    nearly_dead: float
    dense_1: float
    dense_10: float
    norm_ratio: float
    relative_bias: float


class Evaluation:
    """Sums over batches of activations and what an SAE made of them; `scores()` at the end.

    Args:
        input_dim, hidden_dim: d and f.
    """

    def __init__(self, input_dim: int, hidden_dim: int) -> None:
        self.n_tokens = 0
        self.fired = torch.zeros(hidden_dim, dtype=torch.int64)
        self._sum_x, self._sum_y = (torch.zeros(input_dim, dtype=torch.float64) for _ in range(2))
        self._xx = self._yy = self._xy = self._error = 0.0

    def update(
        self, x: Float[Tensor, "t d"], reconstruction: Float[Tensor, "t d"], codes: SparseCodes
    ) -> None:
        """Add one batch."""
        x, y = x.double().cpu(), reconstruction.double().cpu()
        self.n_tokens += len(x)
        self.fired += torch.bincount(codes.feature.cpu(), minlength=codes.n_features)
        self._sum_x += x.sum(0)
        self._sum_y += y.sum(0)
        self._xx += float((x * x).sum())
        self._yy += float((y * y).sum())
        self._xy += float((x * y).sum())
        self._error += float(((x - y) ** 2).sum())

    @property
    def frequency(self) -> Float32[Tensor, " f"]:
        """Share of tokens on which each feature fired."""
        return (self.fired.double() / max(self.n_tokens, 1)).float()

    def scores(self) -> Scores:
        n, frequency = self.n_tokens, self.frequency
        assert n > 0, "scores of no tokens"
        mean = self._sum_x / n
        centre = float(mean @ mean) * n
        variance = self._xx - centre
        size = self._yy - 2 * float(mean @ self._sum_y) + centre  # sum |y - mean x|^2
        overlap = self._xy - float(mean @ self._sum_y)  # sum (y - mean x).(x - mean x)
        return Scores(
            n_tokens=n,
            explained_variance=1 - _ratio(self._error, variance),
            l0=float(self.fired.sum()) / n,
            dead=_share(self.fired == 0),
            nearly_dead=_share(frequency < NEARLY_DEAD),
            dense_1=_share(frequency > DENSE[0]),
            dense_10=_share(frequency > DENSE[1]),
            norm_ratio=max(_ratio(size, variance), 0.0) ** 0.5,
            relative_bias=_ratio(size, overlap),
        )


def _ratio(numerator: float, denominator: float) -> float:
    """0 for activations that never vary, where no ratio means anything."""
    return numerator / denominator if denominator else 0.0


def _share(mask: Tensor) -> float:
    return float(mask.double().mean())


@torch.no_grad()
def evaluate(sae: LinearSae, batches: Iterable[Tensor], chunk: int = 2048) -> Evaluation:
    """Run an SAE over batches of raw activations, (t, d) each."""
    evaluation = Evaluation(sae.input_dim, sae.hidden_dim)
    for batch in batches:
        for part in batch.split(chunk):
            x = part.to(sae.pre_bias)
            codes = encode_sparse(sae, x, chunk)
            evaluation.update(x, sae.decode(codes.to_dense()), codes)
    return evaluation


@torch.no_grad()
def largest_decoder_cosines(sae: LinearSae, block: int = 1024) -> Float32[Tensor, " f"]:
    """For each feature, the largest cosine of its decoder direction with another's: near 1, a duplicate."""
    directions = torch.nn.functional.normalize(sae.decoder.weight.float(), dim=0).T  # (f, d)
    largest = []
    for start in range(0, len(directions), block):
        cosines = directions[start : start + block] @ directions.T
        rows = torch.arange(len(cosines), device=cosines.device)
        cosines[rows, rows + start] = -torch.inf
        largest.append(cosines.amax(1))
    return torch.cat(largest)
