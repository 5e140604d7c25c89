"""The training step of SAEs with sparse codes, without dense intermediates beyond the encoder's product.

A code has a few dozen active latents among thousands, so everything after their choice works on the chosen
entries: the reconstruction gathers decoder rows; both weight gradients are products of one sparse matrix,
sorted once by latent, with dense rows; the gradient of the shared bias is a sum, then a product. All in
plain PyTorch, on CPU and CUDA; every function has its dense twin (`..._reference`), which tests hold it to.

Matrices are kept as (f, d), one row a latent, so that gathers read whole rows.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from fluxscope.sae.base import LinearSae
    from fluxscope.sae.largest import Entries

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")


@dataclass(frozen=True, eq=False)
class Weights:
    """An SAE's four tensors, or their gradients; all share memory with the SAE's."""

    pre_bias: Float[Tensor, " d"]
    encoder: Float[Tensor, "f d"]
    bias: Float[Tensor, " f"]
    decoder: Float[Tensor, "f d"]

    @classmethod
    def of(cls, sae: LinearSae) -> Weights:
        return cls(
            sae.pre_bias.detach(),
            sae.encoder.weight.detach(),
            sae.encoder.bias.detach(),
            sae.decoder.weight.detach().T,
        )

    @classmethod
    def gradients_of(cls, sae: LinearSae) -> Weights:
        """The `.grad` of the SAE's parameters, made where there is none yet."""
        for parameter in (sae.pre_bias, sae.encoder.weight, sae.encoder.bias, sae.decoder.weight):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        grads = sae.pre_bias.grad, sae.encoder.weight.grad, sae.encoder.bias.grad, sae.decoder.weight.grad
        return cls(grads[0], grads[1], grads[2], grads[3].T)  # type: ignore[arg-type, union-attr]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a step's forward pass found.

    Args:
        loss: mean squared error, averaged over the levels.
        residual: x - reconstruction from all latents.
    """

    loss: Float[Tensor, ""]
    residual: Float[Tensor, "b d"]


def weighted_rows(
    table: Float[Tensor, "f d"],
    column: Int64[Tensor, " e"],
    weight: Float[Tensor, " e"],
    offsets: Int64[Tensor, " n_plus_1"],
) -> Float[Tensor, "n d"]:
    """Row i is the sum of weight[j] table[column[j]] over the entries j of row i."""
    return functional.embedding_bag(
        column, table, offsets, mode="sum", per_sample_weights=weight, include_last_offset=True
    )


def weighted_rows_reference(table: Tensor, column: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """The twin of `weighted_rows`."""
    row = _rows_of(offsets)
    dense = weight.new_zeros(len(offsets) - 1, len(table)).index_put((row, column), weight, accumulate=True)
    return dense @ table


def gather_dot(
    left: Float[Tensor, "n d"],
    table: Float[Tensor, "f d"],
    column: Int64[Tensor, " e"],
    offsets: Int64[Tensor, " n_plus_1"],
) -> Float[Tensor, " e"]:
    """Entry j of row i is left[i] . table[column[j]]."""
    pattern = _csr(offsets, column, left.new_zeros(len(column)), (len(left), len(table)))
    dots: Tensor = torch.sparse.sampled_addmm(pattern, left, table.T, beta=0).values()
    return dots


def gather_dot_reference(left: Tensor, table: Tensor, column: Tensor, offsets: Tensor) -> Tensor:
    """The twin of `gather_dot`."""
    return (left @ table.T)[_rows_of(offsets), column]


@dataclass(frozen=True, eq=False)
class ByFeature:
    """Entries sorted by latent: one sort serves both weight gradients.

    Args:
        order: (e), the entries in order of their latent.
        offsets: (f + 1), where each latent's entries begin.
    """

    order: Int64[Tensor, " e"]
    offsets: Int64[Tensor, " f_plus_1"]

    @classmethod
    def sort(cls, feature: Int64[Tensor, " e"], n_features: int) -> ByFeature:
        short = torch.int16 if n_features <= 2**15 else torch.int32  # fewer bytes sort sooner
        order = feature.to(short).sort(stable=True).indices
        ends = torch.bincount(feature, minlength=n_features).cumsum(0)
        return cls(order, torch.cat([ends.new_zeros(1), ends]))

    def product(
        self, weight: Float[Tensor, " e"], row: Int64[Tensor, " e"], rows: Float[Tensor, "n d"], out: Tensor
    ) -> None:
        """out[f] = sum of weight[j] rows[row[j]] over the entries j of latent f."""
        matrix = _csr(self.offsets, row[self.order], weight[self.order], (len(self.offsets) - 1, len(rows)))
        torch.addmm(out, matrix, rows, beta=0, out=out)


def sparse_step(
    x: Float[Tensor, "b d"],
    centred: Float[Tensor, "b d"],
    entries: Entries,
    weights: Weights,
    grads: Weights,
    levels: tuple[int, ...] = (),
) -> Outcome:
    """Loss and gradients of the reconstruction from chosen latents.

    loss = mean over levels m of mean |x - b_pre - sum_{f < m} z_f w_dec[f]|^2 / d; one level, all latents,
    is the plain squared error.

    Args:
        x, centred: the batch, and the batch less b_pre.
        entries: the chosen latents; with several levels, ascending within a row.
        weights: the SAE's tensors.
        grads: receives the gradients; what it held is overwritten.
        levels: for nested (Matryoshka) dictionaries the sizes of the prefixes, ascending up to f.
    """
    b, d = x.shape
    row, bag, bag_offsets = _bags(entries, levels, b)
    n_levels = max(1, len(levels))
    parts = weighted_rows(weights.decoder, entries.feature, entries.value, bag_offsets)
    error = parts.view(b, n_levels, d)
    if n_levels > 1:
        error = error.cumsum(1)
    error -= centred[:, None]
    loss = error.square().mean()
    upstream = error * (2 / error.numel())
    if n_levels > 1:  # a latent acts in its own level and all larger ones
        upstream = upstream.flip(1).cumsum(1).flip(1).contiguous()
    by_feature = ByFeature.sort(entries.feature, len(weights.encoder))
    flat = upstream.view(b * n_levels, d)
    by_feature.product(entries.value, bag, flat, grads.decoder)
    d_value = gather_dot(flat, weights.decoder, entries.feature, bag_offsets) * (entries.value > 0)
    by_feature.product(d_value, row, centred, grads.encoder)
    grads.bias.zero_().index_add_(0, entries.feature, d_value)
    torch.sum(upstream[:, 0], 0, out=grads.pre_bias)
    grads.pre_bias.addmv_(weights.encoder.T, grads.bias, alpha=-1)
    return Outcome(loss, -error[:, -1])


def sparse_step_reference(x: Tensor, code: Tensor, weights: Weights, levels: tuple[int, ...] = ()) -> Tensor:
    """The twin of `sparse_step`: the loss of a dense code, for autograd."""
    losses = [
        (x - weights.pre_bias - code[:, :m] @ weights.decoder[:m]).square().mean()
        for m in levels or (code.shape[1],)
    ]
    return torch.stack(losses).mean()


def _bags(entries: Entries, levels: tuple[int, ...], b: int) -> tuple[Tensor, Tensor, Tensor]:
    """Each entry's row, its bag (row, level), and where the bags begin. Features ascend, so bags do."""
    row = _rows_of(entries.offsets)
    if len(levels) < 2:
        return row, row, entries.offsets
    bounds = torch.tensor(levels, device=row.device)
    bag = row * len(levels) + torch.bucketize(entries.feature, bounds, right=True)
    ends = torch.bincount(bag, minlength=b * len(levels)).cumsum(0)
    return row, bag, torch.cat([ends.new_zeros(1), ends])


def _rows_of(offsets: Tensor) -> Tensor:
    counts = offsets.diff()
    return torch.arange(len(counts), device=offsets.device).repeat_interleave(counts)


def _csr(offsets: Tensor, column: Tensor, value: Tensor, shape: tuple[int, int]) -> Tensor:
    """A sparse matrix by rows. Its columns need not ascend, so no invariants are checked."""
    return torch.sparse_csr_tensor(offsets, column, value, shape, check_invariants=False)
