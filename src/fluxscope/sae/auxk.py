"""AuxK: dead latents are revived by letting them reconstruct what the living left over.

    loss = coefficient x mean |residual - sum z_f w_dec[f]|^2 / variance of the residual

over the k strongest dead latents of each row, with the residual a constant (Gao et al. 2024,
arXiv 2406.04093). Only the dead latents' columns are ever computed, and all but their codes in blocks of
latents, so that memory stays at one (batch, dead) matrix.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fluxscope.sae.kernels import ByFeature, Weights, gather_dot, weighted_rows

SPARSE_BELOW = 1 / 8
"""Density of dead latents' codes below which gathers beat matrix products (one core, d = 768)."""
BLOCK = 1024
"""Dead latents whose rows are gathered at once: wide enough for products, a few MB at FLUX.1's width."""
_ROWS = 512


def aux_step(
    centred: Float[Tensor, "b d"],
    residual: Float[Tensor, "b d"],
    dead: Int64[Tensor, " m"],
    k: int,
    coefficient: float,
    weights: Weights,
    grads: Weights,
) -> Float[Tensor, ""]:
    """Loss and gradients of AuxK.

    Args:
        centred: x - b_pre.
        residual: x - reconstruction.
        dead: ids of the dead latents, at least one.
        k: dead latents that take part in a row.
        grads: gradients are added to what it holds.

    Returns:
        The loss.
    """
    code = _codes(centred, dead, k, weights)
    size = residual.numel()
    spread = torch.linalg.vector_norm(residual).square() / size - residual.mean(0).square().mean()
    variance = spread.clamp_min(torch.finfo(residual.dtype).tiny)
    # Latents that have died are rarely above zero: then their entries alone are cheaper than products.
    sparse = not code.is_cuda and int(code.count_nonzero()) < SPARSE_BELOW * code.numel()
    blocks = [(_Sparse if sparse else _Dense)(part) for part in code.split(BLOCK, 1)]
    ids = dead.split(BLOCK)
    error = -residual
    for block, latents in zip(blocks, ids, strict=True):
        block.add_reconstruction(weights.decoder[latents], error)
    loss: Tensor = coefficient * torch.linalg.vector_norm(error).square() / size / variance
    upstream = error.mul_(2 * coefficient / size / variance)
    for block, latents in zip(blocks, ids, strict=True):
        d_encoder, d_bias, d_decoder = block.gradients(weights.decoder[latents], centred, upstream)
        grads.encoder.index_add_(0, latents, d_encoder)
        grads.decoder.index_add_(0, latents, d_decoder)
        grads.bias.index_add_(0, latents, d_bias)
        grads.pre_bias.addmv_(weights.encoder[latents].T, d_bias, alpha=-1)
    return loss


def aux_step_reference(
    x: Tensor, residual: Tensor, dead: Tensor, k: int, coefficient: float, weights: Weights
) -> Tensor:
    """The twin of `aux_step`: the loss, for autograd."""
    pre = torch.relu((x - weights.pre_bias) @ weights.encoder.T + weights.bias)[:, dead]
    value, place = pre.topk(min(k, len(dead)), dim=1)
    guess = torch.zeros_like(pre).scatter(1, place, value) @ weights.decoder[dead]
    variance = (residual - residual.mean(0)).square().mean()
    return coefficient * (residual - guess).square().mean() / variance


def _codes(centred: Tensor, dead: Tensor, k: int, weights: Weights) -> Float[Tensor, "b m"]:
    """The k largest codes of the dead latents of each row, the others zero."""
    code = centred.new_empty(len(centred), len(dead))
    for part, latents in zip(code.split(BLOCK, 1), dead.split(BLOCK), strict=True):
        torch.addmm(weights.bias[latents], centred, weights.encoder[latents].T, out=part)
    code.relu_()
    if k < len(dead):
        for rows in code.split(_ROWS):
            if rows.is_cuda or int((rows > 0).sum(1).max()) > k:
                floor = rows.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
                rows.masked_fill_(rows < floor, 0)
    return code


class _Dense:
    """A block of dead latents' codes, by products."""

    def __init__(self, code: Float[Tensor, "b n"]) -> None:
        self.code = code

    def add_reconstruction(self, decoder: Float[Tensor, "n d"], error: Float[Tensor, "b d"]) -> None:
        error.addmm_(self.code, decoder)

    def gradients(self, decoder: Tensor, centred: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the block's encoder rows, biases and decoder rows."""
        d_code = (upstream @ decoder.T).mul_(self.code > 0)
        return d_code.T @ centred, d_code.sum(0), self.code.T @ upstream


class _Sparse:
    """The same from the entries above zero."""

    def __init__(self, code: Float[Tensor, "b n"]) -> None:
        self.row, self.column = code.nonzero(as_tuple=True)
        self.value = code[self.row, self.column]
        ends = torch.bincount(self.row, minlength=len(code)).cumsum(0)
        self.offsets = torch.cat([ends.new_zeros(1), ends])

    def add_reconstruction(self, decoder: Float[Tensor, "n d"], error: Float[Tensor, "b d"]) -> None:
        error.add_(weighted_rows(decoder, self.column, self.value, self.offsets))

    def gradients(self, decoder: Tensor, centred: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        d_value = gather_dot(upstream, decoder, self.column, self.offsets)
        by_latent = ByFeature.sort(self.column, len(decoder))
        d_encoder, d_decoder = torch.empty_like(decoder), torch.empty_like(decoder)
        by_latent.product(self.value, self.row, upstream, d_decoder)
        by_latent.product(d_value, self.row, centred, d_encoder)
        return d_encoder, d_value.new_zeros(len(decoder)).index_add_(0, self.column, d_value), d_decoder
