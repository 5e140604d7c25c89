"""Which detector knows which concept: a table of colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from fluxscope.draw.plots import COLOURS, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_PAIRS = "pair: "
"""Of pairs of a colour and a shape only the mean is drawn."""


@styled
def detectors_and_concepts(
    concepts: Sequence[str], detectors: Sequence[tuple[str, str, Sequence[float]]]
) -> Figure:
    """Draw the F1 of every detector on every concept.

    Args:
        detectors: of each its place, such as a site and step, its name, and its F1 on each concept.
    """
    names, values = rows_to_draw(concepts, np.array([scores for *_, scores in detectors]).T)
    figure, ax = new_figure(2.6 + 0.62 * len(detectors), 1.9 + 0.235 * len(names))
    shown = ax.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    ax.grid(visible=False)
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.set_xticks(
        range(len(detectors)), [name for _, name, _ in detectors], rotation=45, ha="right", fontsize=8
    )
    for (y, x), value in np.ndenumerate(values):
        ax.text(x, y, f"{value:.2f}"[1:] if value < 1 else "1", ha="center", va="center", fontsize=6.5)
        ax.texts[-1].set_color("white" if value < 0.6 else "black")
    start = 0
    for place, group in groupby(detectors, key=lambda each: each[0]):
        width = len(list(group))
        ax.text(start + (width - 1) / 2, -0.8, place, ha="center", fontsize=9, fontweight="bold")
        if start:
            ax.axvline(start - 0.5, color="white", lw=3)
        start += width
    ax.set_title("F1 of the best single feature, where it did not choose itself", pad=26)
    figure.colorbar(shown, ax=ax, shrink=0.5, label="F1")
    return figure


def rows_to_draw(concepts: Sequence[str], values: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The concepts' rows, those of all pairs drawn together as their mean; before them the attributes' mean.

    Args:
        values: (concepts, detectors).
    """
    pairs = [i for i, concept in enumerate(concepts) if concept.startswith(SHOWN_PAIRS)]
    others = [i for i in range(len(concepts)) if i not in pairs]
    kinds = ("shape: ", "color: ", "size: ", "background: ")
    attributes = [i for i, concept in enumerate(concepts) if concept.startswith(kinds)]
    names = [f"mean of {len(attributes)} attributes", *(concepts[i] for i in others)]
    rows = [values[attributes].mean(0), *values[others]]
    if pairs:
        names.append(f"mean of {len(pairs)} pairs")
        rows.append(values[pairs].mean(0))
    return names, np.stack(rows)


@styled
def scores_and_truth(
    panels: Mapping[str, tuple[Mapping[str, np.ndarray], np.ndarray, np.ndarray]],
) -> Figure:
    """Draw scores of features against what they are worth, one dot a feature.

    Args:
        panels: for each site the scores by name (NaN: none), the features' F1, and which of them are true.
    """
    names = list(next(iter(panels.values()))[0])
    figure, axes = new_figure(2.6 * len(names), 2.7 * len(panels), len(panels), len(names))
    for row, (site, (scores, f1, true)) in zip(np.atleast_2d(axes), panels.items(), strict=True):
        for ax, name in zip(row, names, strict=True):
            for some, colour, label in ((~true, COLOURS[5], "others"), (true, COLOURS[1], "true features")):
                ax.plot(scores[name][some], f1[some], ".", ms=3, alpha=0.6, color=colour, label=label)
            ax.set_xlabel(name, fontsize=9)
            ax.set_ylim(0, 1)
        row[0].set_ylabel(f"{site}\nF1 on tokens", fontsize=9)
    handles = axes.flat[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper right", ncols=2, markerscale=4)
    figure.suptitle("Which cheap score tells the truth?", x=0.012, ha="left", fontsize=13, fontweight="bold")
    return figure
