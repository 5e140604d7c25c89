"""The site map as a picture: every block alone, blocks together and windows, and the best places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from fluxscope.draw.plots import COLOURS, new_figure, percent_axis, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LABELLED = 26
"""Columns up to which every square has its number; with more the squares are too narrow."""

LISTED = 14
"""Places in the ranked list."""


@dataclass(frozen=True)
class Squares:
    """A heat map of shares.

    Attributes:
        shares: share, lower and upper end of its interval for every row and column; NaN: not measured.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    shares: Float[np.ndarray, "r c 3"]


@dataclass(frozen=True)
class Ranked:
    """The best places: name, share, lower and upper end of its interval."""

    title: str
    places: Sequence[tuple[str, float, float, float]]


@styled
def site_map(maps: Sequence[Squares], ranked: Ranked, title: str, foot: str) -> Figure:
    """Draw the heat maps below each other, and the ranked list with its intervals.

    Args:
        foot: what the shares are of, and how they were measured.
    """
    widest = max(len(each.columns) for each in maps)
    heights = [1.1 + 0.42 * len(each.rows) for each in maps]
    heights.append(1.0 + 0.26 * min(len(ranked.places), LISTED))
    size = min(max(0.52 * widest + 3.2, 9.0), 20.0), sum(heights) + 0.9
    figure, _ = new_figure(*size)
    figure.clear()
    axes = figure.subplots(len(heights), 1, gridspec_kw={"height_ratios": heights})
    for ax, squares in zip(axes, maps, strict=False):
        _draw_squares(ax, squares)
    _draw_ranked(axes[-1], ranked)
    figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold")
    figure.supxlabel(foot, x=0.012, ha="left", fontsize=8.5, color="#6A7280")
    return figure


def _draw_squares(ax: Axes, squares: Squares) -> None:
    shares = squares.shares[..., 0]
    ax.set_facecolor("#F1F2F4")
    ax.imshow(np.ma.masked_invalid(shares), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    ax.set_title(squares.title, fontsize=11)
    ax.set_xticks(range(len(squares.columns)), squares.columns, fontsize=8)
    ax.set_yticks(range(len(squares.rows)), squares.rows, fontsize=9)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    if len(squares.columns) > MOST_LABELLED:
        return
    for (row, column), share in np.ndenumerate(shares):
        if np.isfinite(share):
            low, high = 100 * squares.shares[row, column, 1:]
            ink = "white" if share > 0.55 else "#1C2028"
            ax.text(column, row - 0.1, f"{100 * share:.0f}", ha="center", va="center", fontsize=9, color=ink)
            span = f"{low:.0f}-{high:.0f}"
            ax.text(column, row + 0.28, span, ha="center", va="center", fontsize=5.5, color=ink)


def _draw_ranked(ax: Axes, ranked: Ranked) -> None:
    shown = list(ranked.places[:LISTED])
    for place, (_, share, low, high) in enumerate(shown):
        ax.plot([low, high], [place, place], color=COLOURS[0], lw=2, alpha=0.5, solid_capstyle="round")
        ax.plot([share], [place], "o", color=COLOURS[0], ms=5)
    ax.set_yticks(range(len(shown)), [name for name, *_ in shown], fontsize=9)
    ax.set_ylim(max(len(shown), 1) - 0.5, -0.5)
    ax.set_xlim(-0.02, 1.02)
    percent_axis(ax.xaxis)
    ax.grid(axis="y", visible=False)
    ax.set_title(ranked.title, fontsize=11)
