"""Plots of features and layers: one message each, the same clean style, never a global state of matplotlib.

Every function returns a PIL picture, so that callers write it whole or not at all. Colours are Okabe and
Ito's (2008), which the colour-blind tell apart.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

P = ParamSpec("P")
DPI = 150
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9EA5B0",
    "axes.labelcolor": "#4B5260",
    "xtick.color": "#4B5260",
    "ytick.color": "#4B5260",
    "axes.grid": True,
    "grid.color": "#E9EBEF",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "text.color": "#1C2028",
}


def styled(draw: Callable[P, Figure]) -> Callable[P, Image]:
    """Draw inside the style, leave matplotlib's settings as they were, and give the figure as a picture."""

    @wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> Image:
        import matplotlib
        from PIL import Image

        buffer = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            draw(*args, **kwargs).savefig(buffer, format="png", dpi=DPI)
        return Image.open(buffer).convert("RGB")

    return inside


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    """A figure of its own (inches) and its axes, outside pyplot, so that nothing is kept or shown."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.12))
    return figure, figure.subplots(rows, columns)


@styled
def decoder_directions(
    feature_ids: Int[np.ndarray, " m"],
    encoder: Float[np.ndarray, "m d"],
    decoder: Float[np.ndarray, "m d"],
    shown: int = 48,
) -> Figure:
    """Draw the dimensions that each feature writes most (decoder), and how far it reads them (encoder).

    A panel a feature, both vectors at unit length, strongest dimension first; all 3,072 dimensions of a
    FLUX.1 activation would be noise to the eye.
    """
    count, width = decoder.shape
    shown = min(shown, width)
    figure, axes = new_figure(11.0, 0.9 + 1.45 * count, count)
    panels = np.atleast_1d(axes)
    for ax, feature, reads, writes in zip(
        panels, feature_ids, unit_rows(encoder), unit_rows(decoder), strict=True
    ):
        top = np.argsort(-np.abs(writes), kind="stable")[:shown]
        place = np.arange(shown)
        ax.bar(place, writes[top], color=COLOURS[0], alpha=0.8, width=0.78, label="decoder")
        ax.plot(place, reads[top], "o", color=COLOURS[1], ms=3.6, label="encoder")
        ax.axhline(0, color="#9EA5B0", lw=0.8)
        ax.set_xticks(place, [str(dimension) for dimension in top], rotation=90, fontsize=6.5)
        ax.set_xlim(-0.8, shown - 0.2)
        ax.spines["bottom"].set_visible(False)
        ax.grid(axis="x", visible=False)
        ax.tick_params(axis="x", length=0, pad=2)
        ax.tick_params(axis="y", labelsize=8)
        ax.set_ylabel(f"{feature}", rotation=0, ha="right", va="center", fontweight="bold", labelpad=10)
        held = float((writes[top] ** 2).sum())
        note = f"cosine {reads @ writes:.2f}\n{held:.0%} of the\ndecoder's norm²"
        ax.text(1.01, 0.5, note, transform=ax.transAxes, va="center", fontsize=8.5, color="#4B5260")
    panels[0].set_title(f"The {shown} of {width:,} dimensions that each feature writes most")
    handles = panels[0].get_legend_handles_labels()
    panels[0].legend(
        *handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=9, borderaxespad=0.3
    )
    panels[-1].set_xlabel("dimension of the activation (vectors at unit length)")
    return figure


@styled
def similarity_matrix(
    cosine: Float[np.ndarray, "m n"],
    row_ids: Sequence[int] | np.ndarray,
    column_ids: Sequence[int] | np.ndarray | None = None,
    title: str = "Cosines between decoder directions",
    label: str = "cosine",
) -> Figure:
    """Draw cosines or correlations (-1 to 1) as an annotated map."""
    rows, columns = cosine.shape
    side = min(max(0.62 * max(rows, columns), 4.4), 14.0)
    figure, ax = new_figure(side + 1.4, side * rows / max(rows, columns) + 1.1)
    shown = ax.imshow(cosine, cmap="RdBu_r", vmin=-1, vmax=1)
    ax.set_title(title)
    ax.set_xticks(
        range(columns), [str(i) for i in (row_ids if column_ids is None else column_ids)], rotation=45
    )
    ax.set_yticks(range(rows), [str(i) for i in row_ids])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    if max(rows, columns) <= 24:
        for (i, j), value in np.ndenumerate(cosine):
            ink = "white" if abs(value) > 0.6 else "#1C2028"
            ax.text(j, i, f"{round(value, 2) + 0.0:.2f}", ha="center", va="center", fontsize=8, color=ink)
    bar = figure.colorbar(shown, ax=ax, shrink=0.8, label=label)
    bar.outline.set_visible(False)
    return figure


@styled
def frequency_comparison(
    frequencies: Mapping[str, Float[np.ndarray, " f"]],
    n_images: int,
    title: str = "How often do the features of each layer fire?",
) -> Figure:
    """Draw how several layers' frequencies are spread, as outlines on one logarithmic scale."""
    figure, ax = new_figure(8.0, 4.2)
    bins = frequency_bins(n_images)
    for (name, frequency), colour in zip(frequencies.items(), COLOURS, strict=False):
        alive = frequency[frequency > 0]
        share = np.full(len(alive), 1 / max(len(frequency), 1))
        label = f"{name}: {len(alive):,} alive, {len(frequency) - len(alive):,} dead"
        ax.hist(alive, bins, weights=share, histtype="stepfilled", color=colour, alpha=0.18)
        ax.hist(alive, bins, weights=share, histtype="step", color=colour, lw=2, label=label)
    frequency_axis(ax, bins)
    percent_axis(ax.yaxis)
    ax.set_ylabel("share of the layer's features")
    head(ax, title, legend=True)
    return figure


@styled
def l0_comparison(
    l0: Mapping[str, Float[np.ndarray, " n"] | Int[np.ndarray, " n"]],
    unit: str = "image",
    title: str = "How many features are active at once?",
) -> Figure:
    """Draw the number of active features per image (or token) for several layers, as outlines."""
    from matplotlib.ticker import MaxNLocator

    figure, ax = new_figure(8.0, 4.2)
    low = min(float(values.min()) for values in l0.values())
    high = max(float(values.max()) for values in l0.values())
    most = max(len(values) for values in l0.values())
    bars = int(np.clip(2 * np.sqrt(most), 4, min(40, high - low + 1) if high > low + 3 else 4))
    bins = np.linspace(low - 0.5, high + 0.5, bars + 1)
    for (name, values), colour in zip(l0.items(), COLOURS, strict=False):
        label = f"{name}: {values.mean():.1f} ± {values.std():.1f}"
        ax.hist(values, bins, histtype="stepfilled", color=colour, alpha=0.18)
        ax.hist(values, bins, histtype="step", color=colour, lw=2, label=label)
        ax.axvline(values.mean(), color=colour, lw=1.5, ls=(0, (4, 3)))
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel(f"active features per {unit} (L0; dashed: means)")
    ax.set_ylabel(f"{unit}s")
    head(ax, title, legend=True)
    return figure


def unit_rows(rows: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m d"]:
    unit: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit


def head(ax: Axes, title: str, subtitle: str = "", legend: bool = False) -> None:
    """Set the title, and between it and the plot, where nothing can be covered, a line or the legend."""
    rows = -(-len(ax.get_legend_handles_labels()[1]) // 2) if legend else 1
    ax.set_title(title, pad=12 + 18 * rows)
    ax.text(0, 1.04, subtitle, transform=ax.transAxes, va="bottom", color="#6A7280")
    if legend:
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2, handlelength=1.4)


def frequency_bins(n_images: int) -> Float[np.ndarray, " bins"]:
    """Edges between whole numbers of images, about evenly spaced in their logarithm: no bin is empty only
    because no frequency can fall into it."""
    counts = np.unique(np.rint(np.geomspace(1, max(n_images, 2), 40)))
    return (np.append(counts, counts[-1] + 1) - 0.5) / max(n_images, 1)


def frequency_axis(ax: Axes, bins: Float[np.ndarray, " bins"]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    ax.set_xscale("log")
    ax.set_xlim(bins[0], bins[-1])
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    ax.set_xlabel("share of images on which the feature is active")


def percent_axis(axis: Any) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1))  # with as many decimals as the ticks need
