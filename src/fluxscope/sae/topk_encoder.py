"""The k largest pre-activations of each row, at three precisions.

    exact     fp32 product
    rescored  bf16 product, its best candidates computed again in fp32, and a certificate for each row that
              no other latent can be among the k largest; rows without one are done again in fp32. The
              chosen latents are those of fp32, at half the cost of its product or less
    bf16      bf16 product, taken as it is

The certificate. Let x = x~ + dx and w = w~ + dw with x~, w~ rounded to bf16. Then
w.x <= w~.x~ + |w| |dx| + |dw| |x~| by Cauchy and Schwarz. The last two terms are themselves products of a
row's number and a latent's, so they ride along as two further columns, rounded upwards: the bf16 product
*is* an upper bound U of the pre-activations; so does what fp32 sums can lose. The candidates are the
largest U, k and some more; when the k-th rescored value is no less than the smallest U among them, nothing
outside can exceed it. The bias rides along as three columns (a sum of three bf16 numbers holds a float32).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from fluxscope.sae.kernels import gather_dot
from fluxscope.sae.largest import Scratch, candidates, largest_in_rows

Precision = Literal["exact", "rescored", "bf16"]

EXTRA = 0.75
"""Candidates beyond k, in units of k. Certificates fail for no row of sparse data, for 0.2% on noise."""
ROW_BLOCK = 512
"""Rows a product: its output stays in the processor's cache, and memory below batch x f."""
_EXTRA_COLUMNS = 32  # a whole number of 64-byte lines
_UP = 1 + 2**-7  # outweighs the rounding of a bound to bf16
_FP32 = 2.0**-24  # largest relative error of one rounding to float32


@dataclass(frozen=True, eq=False)
class TopK:
    """The k largest pre-activations of each row, those below zero set to zero.

    Args:
        value, feature: (b, k), in any order.
        redone: number of rows whose certificate failed.
    """

    value: Float[Tensor, "b k"]
    feature: Int64[Tensor, "b k"]
    redone: int = 0


@cache
def fastest_exact(device: torch.device | str, input_dim: int) -> Precision:
    """ "rescored" where it pays: a processor with bf16 products, and rows of 512 numbers or more.

    Measured on one core of an AMD EPYC with avx512_bf16: half the cost at d = 768, equal at d = 256. On
    CUDA it is a computed choice, not a measured one.
    """
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    fast_bf16 = torch.device(device).type == "cuda" or any(
        capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")
    )
    return "rescored" if fast_bf16 and input_dim >= 512 else "exact"


def encode_topk(
    centred: Float[Tensor, "b d"],
    encoder: Float[Tensor, "f d"],
    bias: Float[Tensor, " f"],
    k: int,
    precision: Precision,
    scratch: Scratch,
) -> TopK:
    """TopK(ReLU(centred encoder^T + bias)) in sparse form.

    Args:
        centred: x - b_pre.
        scratch: buffers kept from step to step.
    """
    if precision == "exact":
        return _exact(centred, encoder, bias, k, scratch)
    weights = bound_weights(encoder, bias, scratch)
    if precision == "bf16":
        return _bf16(centred, weights, k, scratch)
    return _rescored(centred, encoder, bias, weights, k, scratch)


def encode_topk_reference(
    centred: Float[Tensor, "b d"], encoder: Float[Tensor, "f d"], bias: Float[Tensor, " f"], k: int
) -> TopK:
    """The twin of `encode_topk`."""
    value, feature = torch.relu(centred @ encoder.T + bias).topk(k, dim=1)
    return TopK(value, feature)


def _exact(centred: Tensor, encoder: Tensor, bias: Tensor, k: int, scratch: Scratch) -> TopK:
    values, features = [], []
    for part in centred.split(ROW_BLOCK):
        pre = scratch.get(f"pre{len(part)}", (len(part), len(encoder)), centred)
        torch.addmm(bias, part, encoder.T, out=pre)
        value, feature = largest_in_rows(pre, k)
        values.append(value)
        features.append(feature)
    return TopK(torch.cat(values), torch.cat(features))


def _bf16(centred: Tensor, weights: Tensor, k: int, scratch: Scratch) -> TopK:
    rows = bound_rows(centred, scratch, bounds=False)
    value, feature = _largest_products(rows, weights, k, scratch)
    return TopK(value.relu_(), feature)


def _rescored(
    centred: Tensor, encoder: Tensor, bias: Tensor, weights: Tensor, k: int, scratch: Scratch
) -> TopK:
    wanted = min(k + max(16, round(EXTRA * k)), len(encoder))
    rows = bound_rows(centred, scratch)
    bound, feature = _largest_products(rows, weights, wanted, scratch)
    offsets = torch.arange(0, feature.numel() + 1, wanted, device=feature.device)
    score = gather_dot(centred, encoder, feature.flatten(), offsets) + bias[feature.flatten()]
    value, place = score.view_as(bound).topk(k, dim=1, sorted=False)
    value, chosen = value.relu_(), feature.gather(1, place)
    if wanted == len(encoder):
        return TopK(value, chosen)
    outside = bound.amin(1)
    outside = outside + outside.abs() * 2**-8  # the product was rounded to bf16
    failed = (value.amin(1) < outside).nonzero().flatten()
    if len(failed):
        again = _exact(centred[failed], encoder, bias, k, scratch)
        value[failed], chosen[failed] = again.value, again.feature
    return TopK(value, chosen, len(failed))


def _largest_products(
    rows: Tensor, weights: Tensor, k: int, scratch: Scratch
) -> tuple[Float32[Tensor, "b k"], Int64[Tensor, "b k"]]:
    values, features = [], []
    for part in rows.split(ROW_BLOCK):
        product = scratch.get(f"product{len(part)}", (len(part), len(weights)), rows)
        torch.mm(part, weights.T, out=product)
        features.append(candidates(product, k))
        values.append(product.gather(1, features[-1]).float())
    return torch.cat(values), torch.cat(features)


def bound_weights(
    encoder: Float[Tensor, "f d"], bias: Float[Tensor, " f"], scratch: Scratch
) -> Float[Tensor, "f d_plus_extra"]:
    """[w~ | |w|, |dw| | the bias as three numbers, what sums may lose of it | zeros], in bf16."""
    f, d = encoder.shape
    wide = scratch.get("weights", (f, d + _EXTRA_COLUMNS), encoder, torch.bfloat16)
    wide[:, d:] = 0
    for begin in range(0, f, ROW_BLOCK):  # by blocks, so that the difference stays in the cache
        exact, rounded = encoder[begin : begin + ROW_BLOCK], wide[begin : begin + ROW_BLOCK]
        rounded[:, :d] = exact
        difference = scratch.get("difference", exact.shape, exact).copy_(rounded[:, :d]).sub_(exact)
        rounded[:, d] = torch.linalg.vector_norm(exact, dim=1) * _UP
        rounded[:, d + 1] = torch.linalg.vector_norm(difference, dim=1) * _UP
    rest = bias.float()
    for column in range(d + 2, d + 5):
        wide[:, column] = rest
        rest = rest - wide[:, column]
    wide[:, d + 5] = bias.abs() * _lost_in_sums(d) * _UP
    return wide


def bound_rows(
    centred: Float[Tensor, "b d"], scratch: Scratch, bounds: bool = True
) -> Float[Tensor, "b d_plus_extra"]:
    """[x~ | |dx|, |x| | 1, 1, 1, 1 | zeros], in bf16; without bounds, zeros stand for the two norms."""
    b, d = centred.shape
    wide = scratch.get("rows", (b, d + _EXTRA_COLUMNS), centred, torch.bfloat16)
    wide[:, :d] = centred
    wide[:, d:] = 0
    if bounds:
        norm = torch.linalg.vector_norm(centred, dim=1)
        lost = torch.linalg.vector_norm(centred - wide[:, :d], dim=1)
        wide[:, d] = (lost + _lost_in_sums(d) * norm) * _UP
        wide[:, d + 1] = norm * _UP
        wide[:, d + 5] = 1
    wide[:, d + 2 : d + 5] = 1
    return wide


def _lost_in_sums(d: int) -> float:
    """Most that the two sums of products, of the bound and of the rescoring, lose, relative to |x| |w|."""
    return 2 * (d + _EXTRA_COLUMNS) * _FP32
