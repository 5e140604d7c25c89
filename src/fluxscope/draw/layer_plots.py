"""Plots of several layers or denoising steps: one message each, in the style of `plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from fluxscope.draw.plots import COLOURS, head, new_figure, percent_axis, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def partner_histogram(
    similarity: Mapping[str, Float[np.ndarray, " f"]],
    title: str = "How similar is each feature's best partner in the other layer?",
) -> Figure:
    """Draw how many features have a partner at least as similar as x, a curve for each measure.

    Args:
        similarity: for each measure (correlation of S, of token maps, cosine of decoders, a random control),
            the best partner's similarity for every feature; NaN is left out.
    """
    figure, ax = new_figure(8.0, 4.4)
    for (name, values), colour in zip(similarity.items(), COLOURS, strict=False):
        known = np.sort(values[np.isfinite(values)])[::-1]
        share = np.arange(1, len(known) + 1) / max(len(known), 1)
        middle = f"median {np.median(known):.2f}" if len(known) else "none"
        ax.step(known, share, where="pre", color=colour, lw=2, label=f"{name}: {middle}")
    ax.set_xlim(1, min(0.0, *(np.nanmin(v, initial=0.0) for v in similarity.values())))
    ax.set_ylim(0, 1.02)
    percent_axis(ax.yaxis)
    ax.set_xlabel("similarity of the best partner (1: the same)")
    ax.set_ylabel("features with such a partner")
    head(ax, title, legend=True)
    return figure


@styled
def cka_matrix(
    cka: Float[np.ndarray, "m n"],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str = "How alike are the layers' representations?",
) -> Figure:
    """Draw linear CKA between layers (or steps), 0 to 1, as an annotated map."""
    count = max(cka.shape)
    side = float(min(max(0.9 * count, 4.0), 13.0))
    figure, ax = new_figure(side + 2.2, side * cka.shape[0] / count + 1.5)
    shown = ax.imshow(cka, cmap="Blues", vmin=0, vmax=1)
    ax.set_title(title)
    ax.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    ax.set_yticks(range(len(rows)), rows)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    for (i, j), value in np.ndenumerate(cka):
        ink = "white" if value > 0.55 else "#1C2028"
        ax.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=9, color=ink)
    figure.colorbar(shown, ax=ax, shrink=0.8, label="linear CKA").outline.set_visible(False)
    return figure


@styled
def steps_profile(
    steps: Int[np.ndarray, " s"],
    activity: Float[np.ndarray, "m s"],
    feature_ids: Sequence[int] | np.ndarray,
    explained: Float[np.ndarray, " s"],
    n_steps: int,
    title: str = "When along denoising are the features active?",
) -> Figure:
    """Draw features' activity over denoising steps, and the SAE's explained variance above it.

    Args:
        steps: 0-based step indices, ascending.
        activity: each feature's mean activity at each step; every curve is drawn relative to its own peak.
        n_steps: how many steps a run has.
    """
    figure, (upper, lower) = new_figure(9.0, 6.4, 2)
    lower.get_subplotspec().get_gridspec().set_height_ratios((1, 2.6))
    upper.plot(steps, explained, color="#4B5260", lw=2, marker="o", ms=4)
    upper.set_ylim(min(0.0, float(explained.min())), 1.02)
    percent_axis(upper.yaxis)
    upper.set_ylabel("variance\nexplained")
    upper.set_title(title)
    share = activity / np.where(activity.max(1) > 0, activity.max(1), 1)[:, None]
    for number, (feature, curve) in enumerate(zip(feature_ids, share, strict=True)):
        style = ("-", (0, (4, 2)), (0, (1, 1.5)))[number // len(COLOURS) % 3]
        colour = COLOURS[number % len(COLOURS)]
        lower.plot(steps, curve, color=colour, ls=style, lw=1.8, marker="o", ms=3.5, label=str(feature))
    lower.set_ylim(0, 1.05)
    percent_axis(lower.yaxis)
    lower.set_ylabel("mean activity, share of the\nfeature's own peak")
    lower.set_xlabel(f"denoising step (0 to {n_steps - 1}; noise at the left)")
    lower.legend(title="feature", loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
    for ax in (upper, lower):
        _step_axis(ax, n_steps)
    return figure


def _step_axis(ax: Axes, n_steps: int) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.set_xlim(-0.5, n_steps - 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
