"""The dimension letters used everywhere, and array types named after them.

    b batch        s denoising step    t image token     d model width
    f feature      k active features   n image           c channel
    h height       w width

Types are jaxtyping's, so `Float[Tensor, "b t d"]` states a shape that tests check through the import
hook and that costs users nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32, Int32, UInt8

if TYPE_CHECKING:
    from PIL.Image import Image

SMatrix = Float32[np.ndarray, "n f"]
"""S[i, f]: the largest code of feature f over the image tokens of image i."""

TokenMap = Float32[np.ndarray, " t"]
"""One feature's code at every image token of one image, row-major."""

FeatureIds = Int32[np.ndarray, " m"]
"""Indices of features."""

Picture = UInt8[np.ndarray, "h w 3"]
"""An RGB picture, 0 to 255."""

__all__ = ["FeatureIds", "Image", "Picture", "SMatrix", "TokenMap"]
