"""Type and colours shared by every sheet: fonts that come with matplotlib, wrapping by true width."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

INK = (28, 32, 40)
SOFT = (106, 114, 128)
FAINT = (158, 165, 176)
LINE = (224, 227, 232)
PANEL = (246, 247, 249)
PAPER = (255, 255, 255)
ACCENT = (32, 112, 255)


@cache
def font(size: int, bold: bool = False) -> FreeTypeFont:
    """DejaVu Sans at a size in pixels: bundled, so every machine draws the same sheet, and it knows Greek,
    Cyrillic and most of what a prompt may hold."""
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def wrap(text: str, face: FreeTypeFont, width: int, lines: int) -> list[str]:
    """Break text into at most `lines` lines of `width` pixels.

    The last line ends in an ellipsis if more follows; a word that is longer than a line is cut.
    """
    words, rows = text.split(), [""]
    while words:
        word = words.pop(0)
        longer = f"{rows[-1]} {word}".strip()
        if face.getlength(longer) <= width:
            rows[-1] = longer
        elif not rows[-1] and len(word) > 1:
            fit = max(1, _fitting(word, face, width))
            rows[-1] = word[:fit]
            words.insert(0, word[fit:])
            rows.append("")
        else:
            words.insert(0, word)
            rows.append("")
        if len(rows) > lines:
            rows = rows[:lines]
            rows[-1] = shorten(rows[-1].rstrip(",;:. ") + "…", face, width)
            break
    return [row for row in rows if row]


def shorten(text: str, face: FreeTypeFont, width: int) -> str:
    """Cut text to a width in pixels, with an ellipsis where something was cut."""
    if face.getlength(text) <= width:
        return text
    text = text.rstrip("…")
    return text[: _fitting(text, face, width - face.getlength("…"))].rstrip(",;:. ") + "…"


def _fitting(text: str, face: FreeTypeFont, width: int | float) -> int:
    """How many leading characters fit into a width."""
    count = 0
    while count < len(text) and face.getlength(text[: count + 1]) <= width:
        count += 1
    return count


def write_lines(
    draw: ImageDraw, xy: tuple[int, int], lines: list[str], face: FreeTypeFont, fill: tuple[int, int, int]
) -> None:
    """Write lines below each other, 1.3 times the size apart."""
    for number, line in enumerate(lines):
        draw.text((xy[0], xy[1] + number * line_height(face)), line, font=face, fill=fill)


def line_height(face: FreeTypeFont) -> int:
    return round(face.size * 1.32)
