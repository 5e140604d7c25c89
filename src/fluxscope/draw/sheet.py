"""The contact sheet: one card per feature, its numbers on the left, the pictures it fires on beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fluxscope.draw.heatmap import Picture
from fluxscope.draw.page import MARGIN, blank_page, blue_ramp, fitted_size, lit_ramp, paste_framed
from fluxscope.draw.text import (
    ACCENT,
    FAINT,
    INK,
    LINE,
    PANEL,
    SOFT,
    font,
    line_height,
    shorten,
    wrap,
    write_lines,
)
from fluxscope.errors import MissingInputError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

GAP, PAD = 14, 16
SIDE = 172  # width of the card's column of numbers
CAPTION, SMALL = 13, 12  # sizes of type, pixels
HEAD, ROW = 46, 20  # height of a card's number, and of a line of its numbers


SHOWN = {
    "chosen_score": ("chosen on {chosen_pictures}", "{:.2f}"),
    "shown_score": ("shown on {shown_pictures}", "{:.2f}"),
    "q_value": ("false discovery", "{:.1%}"),
    "clip_coherence": ("coherence", "{:.3f}"),
    "coherence_z": ("z against chance", "{:+.1f}"),
    "crop_coherence": ("crop coherence", "{:.3f}"),
    "frequency": ("frequency", "{:.1%}"),
    "coverage": ("prompts covered", "{}"),
}
"""The measures that a card shows, by their names, in its order: label, and form of the number. A label may
hold other measures, which must then be known."""


@dataclass(frozen=True)
class Example:
    """One picture on which a feature fires.

    Attributes:
        overlay: the picture under its heatmap.
        original: the bare picture, for the comparison sheet.
        lit: the picture faded where the feature is inactive, for the contact sheet; without one the overlay.
        caption: its prompt.
        note: a few words in grey above the caption, such as "image 12, activation 3.4".
    """

    overlay: Picture | Image
    original: Picture | Image
    caption: str
    note: str = ""
    lit: Picture | None = None


@dataclass(frozen=True)
class FeatureCard:
    """A feature with its examples and its measures by name; None stands for what was not measured.

    Attributes:
        warning: a few words that stand below the numbers, such as "not beyond chance".
    """

    feature_id: int
    examples: Sequence[Example]
    measures: Mapping[str, float | None] = field(default_factory=dict)
    name: str = ""
    warning: str = ""

    def numbers(self) -> list[tuple[str, str]]:
        """Label and value of what is known, in the order of the card."""
        known = {name: value for name, value in self.measures.items() if value is not None}
        return [
            (label.format(**known), form.format(known[name]))
            for name, (label, form) in SHOWN.items()
            if name in known
        ]


def contact_sheet(
    cards: Sequence[FeatureCard],
    title: str,
    subtitle: str = "",
    footer: str = "",
    tile: int = 184,
    across: int = 1,
) -> Image:
    """Draw the contact sheet: each example in its own colours where the feature is active, its prompt below.

    Args:
        cards: one a feature, drawn in this order.
        title, subtitle: the head of the sheet.
        footer: the settings in a line, so that a sheet explains itself when it travels alone.
        tile: longest side of a picture, pixels.
        across: how many cards stand beside each other.

    Raises:
        MissingInputError: there are no cards, or none has an example.
    """
    return _sheet(cards, title, subtitle, footer, tile, across, both=False)


def comparison_sheet(
    cards: Sequence[FeatureCard],
    title: str,
    subtitle: str = "",
    footer: str = "",
    tile: int = 150,
    across: int = 1,
) -> Image:
    """The same with each bare picture at the left of its overlay."""
    return _sheet(cards, title, subtitle, footer, tile, across, both=True)


def _sheet(
    cards: Sequence[FeatureCard], title: str, subtitle: str, footer: str, tile: int, across: int, both: bool
) -> Image:
    if not any(card.examples for card in cards):
        raise MissingInputError(
            "no feature has an example to show", "Run steps 4 and 5.", redo="select, overlays"
        )
    layout = _Layout.of(cards, tile, both)
    across = min(max(across, 1), len(cards))
    down = -(-len(cards) // across)
    step = (layout.card_width + GAP, layout.card_height + GAP)
    body = (across * step[0] - GAP, down * step[1] - GAP)
    lit = not both and all(example.lit is not None for card in cards for example in card.examples)
    page, draw, top = blank_page(body, title, subtitle, footer, ramp=lit_ramp() if lit else blue_ramp())
    for number, card in enumerate(cards):
        row, column = divmod(number, across)
        _draw_card(page, draw, (MARGIN + column * step[0], top + row * step[1]), card, layout)
    return page


@dataclass(frozen=True)
class _Layout:
    """Sizes shared by all cards of a sheet, pixels."""

    picture: tuple[int, int]
    both: bool
    most: int
    note: bool
    caption_lines: int
    side_height: int

    @classmethod
    def of(cls, cards: Sequence[FeatureCard], tile: int, both: bool) -> _Layout:
        examples = [example for card in cards for example in card.examples]
        picture = fitted_size([example.overlay for example in examples], tile)
        cell = picture[0] * 2 + 2 if both else picture[0]
        needed = max(len(wrap(e.caption, font(CAPTION), cell, 3)) for e in examples)
        side = max(_side_height(card) for card in cards)
        most, note = max(len(c.examples) for c in cards), any(e.note for e in examples)
        return cls(picture, both, most, note, needed, side)

    @property
    def cell_width(self) -> int:
        return self.picture[0] * 2 + 2 if self.both else self.picture[0]

    @property
    def card_width(self) -> int:
        return PAD + SIDE + self.most * (self.cell_width + GAP) - GAP + PAD

    @property
    def card_height(self) -> int:
        text = self.caption_lines * line_height(font(CAPTION)) + (
            line_height(font(SMALL)) if self.note else 0
        )
        return PAD + max(self.picture[1] + (8 if text else 0) + text - 4, self.side_height) + PAD


def _side_height(card: FeatureCard) -> int:
    """Height of the column of numbers."""
    warning = len(wrap(card.warning, font(SMALL, True), SIDE - 28, 2)) * line_height(font(SMALL))
    name = len(wrap(card.name, font(CAPTION), SIDE - 24, 2)) * line_height(font(CAPTION))
    return HEAD + (name + 4 if name else 0) + ROW * len(card.numbers()) + warning


def _draw_card(
    page: Image, draw: ImageDraw, corner: tuple[int, int], card: FeatureCard, layout: _Layout
) -> None:
    left, top = corner
    box = (left, top, left + layout.card_width - 1, top + layout.card_height - 1)
    draw.rounded_rectangle(box, radius=10, fill=PANEL, outline=LINE)
    _draw_numbers(draw, (left + PAD, top + PAD), card)
    for place, example in enumerate(card.examples):
        x = left + PAD + SIDE + place * (layout.cell_width + GAP)
        _draw_example(page, draw, (x, top + PAD), example, layout)


def _draw_numbers(draw: ImageDraw, corner: tuple[int, int], card: FeatureCard) -> None:
    left, top = corner
    draw.text((left, top - 2), "FEATURE", FAINT, font(10, True))
    draw.text((left, top + 10), str(card.feature_id), INK, font(24, True))
    top += HEAD
    if card.name:
        lines = wrap(card.name, font(CAPTION), SIDE - 24, 2)
        write_lines(draw, (left, top - 4), lines, font(CAPTION), INK)
        top += len(lines) * line_height(font(CAPTION)) + 4
    for label, value in card.numbers():
        draw.text((left, top), label, SOFT, font(SMALL))
        draw.text((left + SIDE - 28, top), value, INK, font(SMALL, True), anchor="ra")
        top += ROW
    for line in wrap(card.warning, font(SMALL, True), SIDE - 28, 2):
        draw.text((left, top), line, ACCENT, font(SMALL, True))
        top += line_height(font(SMALL))


def _draw_example(
    page: Image, draw: ImageDraw, corner: tuple[int, int], example: Example, layout: _Layout
) -> None:
    left, top = corner
    alone = example.overlay if example.lit is None else example.lit
    pictures = [example.original, example.overlay] if layout.both else [alone]
    for number, picture in enumerate(pictures):
        paste_framed(page, draw, (left + number * (layout.picture[0] + 2), top), picture, layout.picture)
    top += layout.picture[1] + 8
    if layout.note:
        note = shorten(example.note, font(SMALL), layout.cell_width)
        draw.text((left, top), note, FAINT, font(SMALL))
        top += line_height(font(SMALL))
    lines = wrap(example.caption, font(CAPTION), layout.cell_width, layout.caption_lines)
    write_lines(draw, (left, top), lines, font(CAPTION), INK)
