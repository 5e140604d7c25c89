"""How activations are shifted, scaled and perhaps whitened for training, and how that is folded back.

    x' = scale (x - mean) W        W symmetric; the identity unless whitening is asked for

so that x' has mean zero and mean squared norm d. Folded into an SAE's weights, its codes stay in the units
of x:

    W_enc <- W_enc W, b_enc <- b_enc / scale, W_dec <- W^-1 W_dec, b_pre <- mean + W^-1 b_pre / scale

Whitening makes all directions equally large, so that the loss doesn't leave out the small ones:
"dimension" divides every dimension by its own spread, "pca" every principal component (ZCA: rotated back),
"soft_pca" every principal component by its spread to the power of 0.7, so that large ones stay larger.
W is scaled so that the mean over random unit directions of |W^-1 direction|^2 is 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from fluxscope.errors import FluxscopeError

if TYPE_CHECKING:
    from fluxscope.sae.base import LinearSae

Whitening = Literal["none", "dimension", "pca", "soft_pca"]
SOFT = 0.7
"""The power at which features of flux-shapes say most, of five tried: docs/studies/sites.md."""
SMALLEST_SPREAD = 1e-4
"""No direction is taken to vary less than this share of the mean variance: noise is not blown up further."""


@dataclass(frozen=True, eq=False)
class Normalisation:
    """The map from activations to what is trained on.

    Args:
        mean: (d).
        scale: a number.
        whitening: as asked for.
        matrix, inverse: W and its inverse; (d) where they are diagonal, None for the identity.
    """

    mean: Float32[Tensor, " d"]
    scale: float
    whitening: Whitening = "none"
    matrix: Float32[Tensor, "*d_or_d_d"] | None = None
    inverse: Float32[Tensor, "*d_or_d_d"] | None = None

    def __call__(self, x: Float[Tensor, "t d"]) -> Float32[Tensor, "t d"]:
        return _apply((x.to(self.mean.device, torch.float32) - self.mean) * self.scale, self.matrix)

    def to(self, device: torch.device | str) -> Normalisation:
        matrix, inverse = (m if m is None else m.to(device) for m in (self.matrix, self.inverse))
        return Normalisation(self.mean.to(device), self.scale, self.whitening, matrix, inverse)

    @torch.no_grad()
    def fold(self, sae: LinearSae) -> None:
        """Make an SAE trained on x' read and write x.

        Its codes become 1 / scale times what they were, and the active ones stay the active ones. Without
        whitening, decoder directions keep their unit norm. After whitening they have norms of their own;
        where an architecture looks at every feature by itself (ReLU, JumpReLU) those go into the codes and
        the directions have unit norm again. The TopK family compares features: there the norms stay, since
        codes of other sizes would make it choose others.
        """
        sae.pre_bias.copy_(_apply(sae.pre_bias / self.scale, self.inverse) + self.mean)
        sae.encoder.bias.div_(self.scale)
        sae.encoder.weight.copy_(_apply(sae.encoder.weight, self.matrix))
        sae.decoder.weight.copy_(_apply(sae.decoder.weight.T, self.inverse).T)
        sae.scale_codes(1 / self.scale)
        if self.matrix is not None and sae.features_stand_alone:
            norms = sae.decoder.weight.norm(dim=0)
            sae.decoder.weight.div_(norms.clamp_min(torch.finfo(norms.dtype).tiny))
            sae.encoder.weight.mul_(norms[:, None])
            sae.encoder.bias.mul_(norms)
            sae.scale_codes(norms)


def _apply(rows: Float[Tensor, "*n d"], matrix: Tensor | None) -> Float[Tensor, "*n d"]:
    if matrix is None:
        return rows
    return rows * matrix if matrix.ndim == 1 else rows @ matrix


def fit(parts: Iterable[Float[Tensor, "n d"]], whitening: Whitening = "none") -> Normalisation:
    """The normalisation of activations that come in parts, all of them finite; summed in float64.

    Raises:
        FluxscopeError: all rows are equal.
    """
    by_component = whitening in ("pca", "soft_pca")
    mean, covariance = _moments(parts, full=by_component)
    variances = covariance.diagonal() if by_component else covariance
    d, spread = len(mean), float(variances.sum())
    if spread <= 1e-12 * (spread + float(mean @ mean)):
        raise FluxscopeError("all activations are equal: there is nothing to learn", "Collect other ones.")
    if whitening == "none":
        return Normalisation(mean.float(), math.sqrt(d / spread))
    if by_component:
        variances, components = torch.linalg.eigh(covariance)
    kept = variances.clamp_min(SMALLEST_SPREAD * spread / d)
    if whitening == "soft_pca":
        kept = kept**SOFT
    # W = size x (kept)^-1/2. The mean of |W^-1 u|^2 over unit directions u is trace(W^-2) / d.
    size = kept.mean().sqrt()
    matrix, inverse = size * kept.rsqrt(), kept.sqrt() / size
    scale = math.sqrt(d / float((variances * matrix.square()).sum()))
    if by_component:
        matrix, inverse = (components * m @ components.T for m in (matrix, inverse))
    return Normalisation(mean.float(), scale, whitening, matrix.float(), inverse.float())


def _moments(
    parts: Iterable[Float[Tensor, "n d"]], full: bool
) -> tuple[Float64[Tensor, " d"], Float64[Tensor, "*d_or_d_d"]]:
    """The mean, and the variances or, in full, the covariance."""
    n, total, square = 0, torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for part in parts:
        x = part.double()
        n, total = n + len(x), total + x.sum(0)
        square = square + (x.T @ x if full else x.square().sum(0))
    mean = total / n
    return mean, square / n - (mean.outer(mean) if full else mean.square())
