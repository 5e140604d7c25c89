"""The page under every sheet: a head with title and legend, room for the body, a foot with the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fluxscope.draw.heatmap import BLUE, Picture, as_rgb, spotlight
from fluxscope.draw.text import FAINT, INK, LINE, PAPER, SOFT, font, line_height, wrap, write_lines

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

MARGIN = 36
RAMP = 150  # width of the legend, pixels


def blue_ramp() -> Picture:
    """The legend of overlays: from nothing to the overlays' colour."""
    share = 0.85 * np.linspace(0, 1, RAMP)[:, None]
    ramp: Picture = np.rint(255 * (1 - share) + np.array(BLUE) * share).astype(np.uint8)[None]
    return ramp


def lit_ramp() -> Picture:
    """The legend of pictures under a spotlight: from faded to all colours."""
    from PIL import Image

    hues = np.linspace(0, 230, RAMP).astype(np.uint8)  # red to violet
    full = np.stack([hues, np.full(RAMP, 190, np.uint8), np.full(RAMP, 215, np.uint8)], 1)
    colours = np.asarray(Image.fromarray(full[None], "HSV").convert("RGB"))
    return spotlight(colours, np.linspace(0, 1, RAMP)[None])


def blank_page(
    body: tuple[int, int], title: str, subtitle: str = "", footer: str = "", ramp: Picture | None = None
) -> tuple[Image, ImageDraw, int]:
    """Make a page for a body of (width, height) pixels.

    Args:
        ramp: the colours of the legend from inactive to strongest, one row; None without one.

    Returns:
        the page, its pen, and the y at which the body begins; its x is MARGIN.
    """
    from PIL import Image, ImageDraw

    width = body[0] + 2 * MARGIN
    room = body[0] - (0 if ramp is None else RAMP + 20)
    title_lines = wrap(title, font(26, True), room, 2)
    subtitle_lines = wrap(subtitle, font(14), room, 2)
    top = (
        MARGIN
        + len(title_lines) * line_height(font(26, True))
        + len(subtitle_lines) * line_height(font(14))
        + 12
    )
    foot_lines = wrap(footer, font(12), body[0], 3)
    foot = MARGIN + (len(foot_lines) * line_height(font(12)) if foot_lines else -12)
    page = Image.new("RGB", (width, top + body[1] + foot), PAPER)
    draw = ImageDraw.Draw(page)
    write_lines(draw, (MARGIN, MARGIN - 6), title_lines, font(26, True), INK)
    y = MARGIN - 2 + len(title_lines) * line_height(font(26, True))
    write_lines(draw, (MARGIN, y), subtitle_lines, font(14), SOFT)
    write_lines(draw, (MARGIN, top + body[1] + 14), foot_lines, font(12), FAINT)
    if ramp is not None:
        _draw_ramp(draw, width - MARGIN - RAMP, MARGIN + 2, ramp)
    return page, draw, top


def _draw_ramp(draw: ImageDraw, left: int, top: int, ramp: Picture) -> None:
    for x, colour in enumerate(ramp[0].tolist()):
        draw.line((left + x, top, left + x, top + 9), fill=tuple(colour))
    draw.rectangle((left, top, left + RAMP - 1, top + 9), outline=LINE)
    draw.text((left, top + 13), "inactive", FAINT, font(11))
    draw.text((left + RAMP, top + 13), "strongest", FAINT, font(11), anchor="ra")


def paste_framed(
    page: Image, draw: ImageDraw, corner: tuple[int, int], picture: Picture | Image, size: tuple[int, int]
) -> None:
    """Paste a picture, scaled to a size, inside a hairline."""
    left, top = corner
    page.paste(resized(picture, size), corner)
    draw.rectangle((left - 1, top - 1, left + size[0], top + size[1]), outline=LINE)


def fitted_size(pictures: list[Picture | Image], tile: int) -> tuple[int, int]:
    """Width and height of the box that the largest picture fills when its longest side is `tile`."""
    shapes = [as_rgb(picture).shape for picture in pictures]
    height, width = max(s[0] for s in shapes), max(s[1] for s in shapes)
    return round(tile * width / max(width, height)), round(tile * height / max(width, height))


def resized(picture: Picture | Image, size: tuple[int, int]) -> Image:
    """A picture scaled to fill a box, keeping its shape, centred on grey where it leaves room."""
    from PIL import Image

    image = Image.fromarray(as_rgb(picture))
    scale = min(size[0] / image.width, size[1] / image.height)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(inner, Image.Resampling.LANCZOS)
    if inner == size:
        return image
    box = Image.fromarray(np.full((size[1], size[0], 3), LINE, np.uint8))
    box.paste(image, ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
    return box
