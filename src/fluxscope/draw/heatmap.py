"""From a feature's code at every image token to a heatmap over the picture.

Tokens lie on a grid of rows x columns, row-major; the picture may have any shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Float32, UInt8

from fluxscope.errors import TOKEN_COUNT_REMEDY, FluxscopeError

if TYPE_CHECKING:
    from PIL.Image import Image

BLUE = (32, 112, 255)
"""The overlay's default colour: clear of most photographs' own hues, and told apart by the colour-blind."""

PALE, FADED = 226, 0.9
"""The grey that a picture fades to where a feature is inactive, 0 to 255, and how much of it is covered."""

Grid = int | tuple[int, int]
"""Rows and columns of tokens; one number for a square grid."""

Picture = UInt8[np.ndarray, "h w 3"]
"""An RGB picture, 0 to 255."""

TokenMap = Float32[np.ndarray, " t"]
"""One feature's code at every image token of one image, row-major."""

HeatMap = Float32[np.ndarray, "h w"]


def token_map_to_heatmap(
    token_values: TokenMap,
    image_width: int,
    image_height: int,
    token_grid_size: Grid,
    clip_percentile: float = 99.0,
    min_clip: float = 1e-6,
) -> HeatMap:
    """Spread token values smoothly (bilinear) over a picture.

    Args:
        token_values: one value per image token, row-major.
        token_grid_size: (rows, columns), or one number for a square.
        clip_percentile: values from this percentile on are drawn at full strength; where so few tokens are
            active that the percentile is nothing, the largest value takes its place.
        min_clip: never scale by less than this, so that noise stays dark.

    Returns:
        float32 (image_height, image_width), 0 to 1.

    Raises:
        FluxscopeError: the number of tokens isn't that of the grid, or a value isn't finite.
    """
    from PIL import Image

    share = normalised_grid(token_values, token_grid_size, clip_percentile, min_clip)
    smooth = Image.fromarray(share).resize((image_width, image_height), Image.Resampling.BILINEAR)
    return np.clip(np.asarray(smooth, dtype=np.float32), 0, 1)


def token_map_to_blocky_heatmap(
    token_values: TokenMap,
    image_width: int,
    image_height: int,
    token_grid_size: Grid,
    clip_percentile: float = 99.0,
    min_clip: float = 1e-6,
) -> HeatMap:
    """The same with one flat rectangle per token: what the SAE saw, nothing interpolated."""
    share = normalised_grid(token_values, token_grid_size, clip_percentile, min_clip)
    rows = np.arange(image_height) * share.shape[0] // image_height
    columns = np.arange(image_width) * share.shape[1] // image_width
    blocks: np.ndarray = share[rows[:, None], columns]
    return blocks


HEATMAPS = {"smooth": token_map_to_heatmap, "blocky": token_map_to_blocky_heatmap}
"""By the names of the setting overlay_style."""


def normalised_grid(
    token_values: TokenMap, token_grid_size: Grid, clip_percentile: float, min_clip: float
) -> Float32[np.ndarray, "rows columns"]:
    """Token values on their grid, 0 to 1; arguments and errors as in token_map_to_heatmap."""
    values = np.asarray(token_values, dtype=np.float32).reshape(-1)
    rows, columns = (token_grid_size,) * 2 if isinstance(token_grid_size, int) else token_grid_size
    if values.size != rows * columns:
        raise FluxscopeError(
            f"Token count doesn't match grid: the token map has {values.size} tokens, "
            f"the grid {rows} x {columns} = {rows * columns}",
            TOKEN_COUNT_REMEDY,
        )
    if not np.isfinite(values).all():
        raise FluxscopeError("the token map holds NaN or Infinity", "Collect anew.", redo="collect --force")
    full = float(np.percentile(values, clip_percentile))
    if full <= min_clip:
        full = max(float(values.max()), min_clip)
    heat: np.ndarray = np.clip(values / full, 0, 1).reshape(rows, columns)
    return heat


def overlay_heatmap(
    base_rgb: Picture | Image,
    heatmap: Float[np.ndarray, "h w"],
    alpha_scale: float = 0.8,
    color: tuple[int, int, int] = BLUE,
) -> Picture:
    """Lay a heatmap over a picture: at heat 1 the colour covers `alpha_scale` of it, at 0 nothing.

    Raises:
        FluxscopeError: picture and heatmap have different sizes.
    """
    base = as_rgb(base_rgb)
    check_sizes(base, heatmap)
    alpha = np.clip(heatmap, 0, 1)[..., None] * alpha_scale
    blended: np.ndarray = np.rint(base * (1 - alpha) + np.array(color) * alpha).astype(np.uint8)
    return blended


def spotlight(picture: Picture | Image, heatmap: Float[np.ndarray, "h w"]) -> Picture:
    """Fade a picture to pale grey where it is cold: what a feature responds to keeps its own colours.

    At heat 0 the grey covers `FADED` of the picture, and keeps a quarter of its light and dark.

    Raises:
        FluxscopeError: picture and heatmap have different sizes.
    """
    base = as_rgb(picture)
    grey = 0.75 * PALE + 0.25 * (base @ np.array([0.299, 0.587, 0.114]))[..., None]
    check_sizes(base, heatmap)
    fade = (1 - np.clip(heatmap, 0, 1))[..., None] * FADED
    lit: np.ndarray = np.rint(base * (1 - fade) + grey * fade).astype(np.uint8)
    return lit


def outline_heatmap(
    picture: Picture | Image, heatmap: Float[np.ndarray, "h w"], level: float = 0.5
) -> Picture:
    """Draw a thin line around what is hotter than `level`, light with a dark rim.

    It shows where the heat is even on a picture of the overlay's own colour.
    """
    from scipy.ndimage import binary_dilation, binary_erosion

    canvas = as_rgb(picture).copy()
    hot = heatmap > level
    edge = hot & ~binary_erosion(hot, border_value=1)
    rim = binary_dilation(hot, border_value=0) & ~hot
    canvas[rim] = canvas[rim] // 3
    canvas[edge] = 255 - (255 - canvas[edge]) // 5
    return canvas


def check_sizes(picture: Picture, heatmap: Float[np.ndarray, "rows columns"]) -> None:
    """Raise where a heatmap is of another size than its picture."""
    if picture.shape[:2] != heatmap.shape:
        raise FluxscopeError(
            f"the picture is {picture.shape[1]} x {picture.shape[0]}, the heatmap "
            f"{heatmap.shape[1]} x {heatmap.shape[0]}",
            "Make the heatmap for this picture's width and height.",
        )


def create_side_by_side(
    left: Picture | Image,
    right: Picture | Image,
    padding: int = 8,
    background: tuple[int, int, int] = (255, 255, 255),
) -> Picture:
    """Put two pictures beside each other."""
    return create_feature_grid([left, right], 2, padding, background)


def create_feature_grid(
    images: Sequence[Picture | Image],
    ncols: int = 4,
    padding: int = 8,
    background: tuple[int, int, int] = (255, 255, 255),
) -> Picture:
    """Put pictures on a grid, row by row, each centred in a cell of the largest width and height.

    Raises:
        FluxscopeError: there are no pictures.
    """
    if not images:
        raise FluxscopeError("no pictures to put on a grid", "Select at least one feature with examples.")
    pictures = [as_rgb(image) for image in images]
    height, width = (max(p.shape[axis] for p in pictures) for axis in (0, 1))
    ncols = min(max(ncols, 1), len(pictures))
    nrows = -(-len(pictures) // ncols)
    size = (nrows * (height + padding) - padding, ncols * (width + padding) - padding, 3)
    canvas: UInt8[np.ndarray, "h w 3"] = np.full(size, background, np.uint8)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, ncols)
        top = row * (height + padding) + (height - picture.shape[0]) // 2
        left = column * (width + padding) + (width - picture.shape[1]) // 2
        canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return canvas


def as_rgb(picture: Picture | Image) -> Picture:
    """Any picture as uint8 (h, w, 3)."""
    if isinstance(picture, np.ndarray):
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise FluxscopeError(
                f"a picture of {picture.dtype} with shape {picture.shape} is no RGB picture",
                "Give uint8 (height, width, 3) or a PIL image.",
            )
        return picture
    return np.asarray(picture.convert("RGB"))
