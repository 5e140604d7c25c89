"""Labelled grids of pictures: what steering does, strength by strength, with the baseline marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fluxscope.draw.heatmap import Picture
from fluxscope.draw.page import MARGIN, blank_page, blue_ramp, fitted_size, paste_framed
from fluxscope.draw.text import ACCENT, FAINT, INK, SOFT, font, line_height, shorten, wrap, write_lines
from fluxscope.errors import FluxscopeError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

GAP = 10
LABELS = 150  # width of the row labels, pixels
HEAD, NOTE = 28, 18  # heights of the column labels and of the notes, pixels


@dataclass(frozen=True)
class GridRow:
    """One row of a grid.

    Attributes:
        pictures: one a column; None leaves its place empty.
        label: stands at the left, such as the prompt and seed.
        notes: a few words under each picture, such as the distance from the baseline.
        beside: a further picture at the left of the row, such as the overlay of the feature's heatmap.
    """

    pictures: Sequence[Picture | Image | None]
    label: str = ""
    notes: Sequence[str] = ()
    beside: Picture | Image | None = None


def labelled_grid(
    rows: Sequence[GridRow],
    column_labels: Sequence[str],
    title: str = "",
    subtitle: str = "",
    footer: str = "",
    baseline: int | None = None,
    beside_label: str = "where it fires",
    tile: int = 160,
) -> Image:
    """Draw pictures in rows and columns under their labels.

    Args:
        rows: each as long as column_labels.
        baseline: the column of unchanged pictures; it is framed and its label set in colour.
        beside_label: the head of the pictures given as `beside`.
        tile: longest side of a picture, pixels.

    Raises:
        FluxscopeError: there are no pictures, or a row has another length than the labels.
    """
    pictures = [p for row in rows for p in row.pictures if p is not None]
    if not pictures:
        raise FluxscopeError("no pictures to put on a grid", "Nothing was steered: select a feature first.")
    for number, row in enumerate(rows):
        if len(row.pictures) != len(column_labels):
            raise FluxscopeError(
                f"row {number} has {len(row.pictures)} pictures, there are {len(column_labels)} columns",
                "Give None for a picture that is missing.",
            )
    plan = _Plan.of(rows, fitted_size(pictures, tile))
    body = (plan.column_left(len(column_labels)) - GAP, HEAD + len(rows) * plan.row_height - GAP)
    page, draw, top = blank_page(body, title, subtitle, footer, ramp=blue_ramp() if plan.beside else None)
    _draw_column_labels(draw, top, column_labels, baseline, beside_label, plan)
    for number, row in enumerate(rows):
        _draw_row(page, draw, top + HEAD + number * plan.row_height, row, plan)
    if baseline is not None:
        for first, last in _runs([row.pictures[baseline] is not None for row in rows]):
            _frame_column(draw, top, (first, last), baseline, plan)
    return page


@dataclass(frozen=True)
class _Plan:
    """Sizes of a grid, pixels; x counts from the margin."""

    tile: tuple[int, int]
    labels: bool
    notes: bool
    beside: bool

    @classmethod
    def of(cls, rows: Sequence[GridRow], tile: tuple[int, int]) -> _Plan:
        return cls(
            tile,
            any(r.label for r in rows),
            any(r.notes for r in rows),
            any(r.beside is not None for r in rows),
        )

    @property
    def row_height(self) -> int:
        return self.tile[1] + (NOTE if self.notes else 0) + GAP

    @property
    def beside_left(self) -> int:
        return LABELS + GAP if self.labels else 0

    def column_left(self, column: int) -> int:
        start = self.beside_left + (self.tile[0] + 3 * GAP if self.beside else 0)
        return start + column * (self.tile[0] + GAP)


def _draw_column_labels(
    draw: ImageDraw, top: int, labels: Sequence[str], baseline: int | None, beside_label: str, plan: _Plan
) -> None:
    face, strong = font(13), font(13, True)
    if plan.beside:
        draw.text(
            (MARGIN + plan.beside_left + plan.tile[0] / 2, top + 4), beside_label, SOFT, face, anchor="ma"
        )
    for column, label in enumerate(labels):
        x = MARGIN + plan.column_left(column) + plan.tile[0] / 2
        colour = ACCENT if column == baseline else INK
        draw.text((x, top + 4), shorten(label, strong, plan.tile[0] + GAP), colour, strong, anchor="ma")


def _draw_row(page: Image, draw: ImageDraw, top: int, row: GridRow, plan: _Plan) -> None:
    fit = max(1, plan.tile[1] // line_height(font(13)))
    write_lines(draw, (MARGIN, top), wrap(row.label, font(13), LABELS, fit), font(13), INK)
    if row.beside is not None:
        paste_framed(page, draw, (MARGIN + plan.beside_left, top), row.beside, plan.tile)
    for column, picture in enumerate(row.pictures):
        left = MARGIN + plan.column_left(column)
        if picture is not None:
            paste_framed(page, draw, (left, top), picture, plan.tile)
        if column < len(row.notes):
            note = shorten(row.notes[column], font(11), plan.tile[0])
            draw.text((left + plan.tile[0] / 2, top + plan.tile[1] + 4), note, FAINT, font(11), anchor="ma")


def _runs(there: Sequence[bool]) -> list[tuple[int, int]]:
    """First and last number of each unbroken run."""
    runs: list[tuple[int, int]] = []
    for number in (n for n, here in enumerate(there) if here):
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


def _frame_column(draw: ImageDraw, top: int, rows: tuple[int, int], baseline: int, plan: _Plan) -> None:
    """Frame the unchanged pictures of some rows, first to last; the first row's frame holds its label."""
    left = MARGIN + plan.column_left(baseline)
    first = top + HEAD + rows[0] * plan.row_height
    bottom = top + HEAD + (rows[1] + 1) * plan.row_height - GAP
    frame = (left - 5, first - (HEAD if rows[0] == 0 else 5), left + plan.tile[0] + 4, bottom + 4)
    draw.rounded_rectangle(frame, radius=7, outline=ACCENT, width=2)
