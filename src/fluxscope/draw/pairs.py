"""Matched features of two layers, side by side: the same pictures under the heatmaps of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fluxscope.draw.heatmap import Picture, TokenMap, outline_heatmap, overlay_heatmap, token_map_to_heatmap
from fluxscope.draw.page import MARGIN, blank_page, blue_ramp, fitted_size, paste_framed
from fluxscope.draw.text import FAINT, INK, LINE, PANEL, SOFT, font, line_height, shorten, wrap, write_lines
from fluxscope.errors import MissingInputError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

GAP, PAD = 12, 16
SIDE = 176  # width of the card's column of text
CAPTION, CAPTION_LINES = 11, 3


@dataclass(frozen=True)
class FeaturePair:
    """A feature of layer a, its partner in layer b, and pictures on which a's feature fires most.

    Attributes:
        first, second: ids of the two features.
        numbers: label and value of what is known of the pair, such as ("correlation", "0.83").
        upper, lower: the pictures under the heatmap of the first feature, and the same under the second's.
        captions: the prompts, one a picture.
    """

    first: int
    second: int
    numbers: Sequence[tuple[str, str]]
    upper: Sequence[Picture | Image]
    lower: Sequence[Picture | Image]
    captions: Sequence[str] = ()


def heatmaps_on_one_scale(
    pictures: Sequence[Picture],
    token_maps: Sequence[TokenMap],
    grid: tuple[int, int],
    percentile: float,
    alpha: float,
) -> list[Picture]:
    """One feature's heatmaps over several pictures; what is faint on one of them stays faint.

    Args:
        grid: rows and columns of tokens.
        percentile: of a token map, at which its heatmap saturates.
        alpha: opacity where the activation is highest.
    """
    full = max(float(np.percentile(tokens, percentile)) for tokens in token_maps)
    drawn = []
    for picture, tokens in zip(pictures, token_maps, strict=True):
        height, width = picture.shape[:2]
        heat = token_map_to_heatmap(tokens, width, height, grid, percentile, max(full, 1e-6))
        drawn.append(outline_heatmap(overlay_heatmap(picture, heat, alpha), heat))
    return drawn


def pair_sheet(
    pairs: Sequence[FeaturePair],
    layers: tuple[str, str],
    title: str,
    subtitle: str = "",
    footer: str = "",
    tile: int = 132,
    across: int = 2,
) -> Image:
    """Draw a card for each pair: the first layer's heatmaps above the second layer's.

    Args:
        layers: the names of the two layers.
        across: how many cards stand beside each other.

    Raises:
        MissingInputError: there are no pairs with pictures.
    """
    shown = [pair for pair in pairs if pair.upper]
    if not shown:
        raise MissingInputError(
            "no matched features to show", "The two layers have no partners: compare others."
        )
    size = fitted_size([picture for pair in shown for picture in (*pair.upper, *pair.lower)], tile)
    card = _card_size(shown, size)
    across = min(max(across, 1), len(shown))
    down = -(-len(shown) // across)
    body = (across * (card[0] + GAP) - GAP, down * (card[1] + GAP) - GAP)
    page, draw, top = blank_page(body, title, subtitle, footer, ramp=blue_ramp())
    for number, pair in enumerate(shown):
        row, column = divmod(number, across)
        corner = (MARGIN + column * (card[0] + GAP), top + row * (card[1] + GAP))
        _draw_pair(page, draw, corner, card, pair, layers, size)
    return page


def _card_size(pairs: Sequence[FeaturePair], picture: tuple[int, int]) -> tuple[int, int]:
    """Width and height of a card that holds any of the pairs, for pictures of a size."""
    most = max(len(pair.upper) for pair in pairs)
    captions = (caption for pair in pairs for caption in pair.captions)
    lines = max((len(_caption(text, picture[0])) for text in captions), default=0)
    below = 6 + lines * line_height(font(CAPTION)) if lines else 0
    return 2 * PAD + SIDE + most * (picture[0] + GAP) - GAP, 2 * PAD + 2 * picture[1] + 4 + below


def _caption(text: str, width: int) -> list[str]:
    return wrap(text, font(CAPTION), width, CAPTION_LINES)


def _draw_pair(
    page: Image,
    draw: ImageDraw,
    corner: tuple[int, int],
    card: tuple[int, int],
    pair: FeaturePair,
    layers: tuple[str, str],
    size: tuple[int, int],
) -> None:
    left, top = corner
    box = (left, top, left + card[0] - 1, top + card[1] - 1)
    draw.rounded_rectangle(box, radius=10, fill=PANEL, outline=LINE)
    left, top = left + PAD, top + PAD
    below = top + size[1] + 4
    _write_feature(draw, (left, top), layers[0], pair.first)
    _write_feature(draw, (left, below), layers[1], pair.second)
    for number, (label, value) in enumerate(pair.numbers):
        y = below + 58 + 19 * number
        draw.text((left, y), label, SOFT, font(12))
        draw.text((left + SIDE - 24, y), value, INK, font(12, True), anchor="ra")
    for place, pictures in enumerate(zip(pair.upper, pair.lower, strict=True)):
        x = left + SIDE + place * (size[0] + GAP)
        paste_framed(page, draw, (x, top), pictures[0], size)
        paste_framed(page, draw, (x, below), pictures[1], size)
        if place < len(pair.captions):
            caption = _caption(pair.captions[place], size[0])
            write_lines(draw, (x, below + size[1] + 6), caption, font(CAPTION), INK)


def _write_feature(draw: ImageDraw, corner: tuple[int, int], layer: str, feature: int) -> None:
    draw.text(corner, shorten(layer, font(11, True), SIDE - 20), FAINT, font(11, True))
    draw.text((corner[0], corner[1] + 15), str(feature), INK, font(22, True))
