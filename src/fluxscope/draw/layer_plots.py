"""Plots of several layers or denoising steps: one message each, in the style of `plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from fluxscope.draw.plots import COLOURS, head, new_figure, percent_axis, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def partner_histogram(
    similarity: Mapping[str, Float[np.ndarray, " f"]],
    chance: Mapping[str, Float[np.ndarray, " f"]],
    title: str = "How similar is each feature's best partner in the other layer?",
) -> Figure:
    """Draw how many features have a partner at least as similar as x, a curve for each measure.

    Args:
        similarity: for each measure (correlation of S, of token maps, cosine of decoders), the best
            partner's similarity for every feature; NaN is left out.
        chance: the same where the two layers can have nothing in common, drawn dashed.
    """
    figure, ax = new_figure(8.4, 4.8)
    colours = dict(zip(similarity, COLOURS, strict=False))
    for name, values in similarity.items():
        _share_above(ax, values, name, color=colours[name], lw=2)
    for name, values in chance.items():  # after all measures: the legend's second column
        _share_above(ax, values, f"{name}, by chance", color=colours[name], lw=1.3, ls=(0, (3, 2)))
    every = (*similarity.values(), *chance.values())
    ax.set_xlim(1, min(0.0, *(np.nanmin(values, initial=0.0) for values in every)))
    ax.set_ylim(0, 1.02)
    percent_axis(ax.yaxis)
    ax.set_xlabel("similarity of the best partner (1: the same)")
    ax.set_ylabel("features with such a partner")
    head(ax, title, legend=True)
    return figure


def _share_above(ax: Axes, values: Float[np.ndarray, " f"], name: str, **style: Any) -> None:
    """One curve: the share of the values that are x or more, named with the median."""
    known = np.sort(values[np.isfinite(values)])[::-1]
    share = np.arange(1, len(known) + 1) / max(len(known), 1)
    middle = f"median {np.median(known):.2f}" if len(known) else "none"
    ax.step(known, share, where="pre", label=f"{name}: {middle}", **style)


@styled
def steps_profile(
    steps: Int[np.ndarray, " s"],
    activity: Float[np.ndarray, "m s"],
    feature_ids: Sequence[int] | np.ndarray,
    explained: Float[np.ndarray, " s"],
    n_steps: int,
    target: int,
    title: str = "When along denoising are the features active?",
) -> Figure:
    """Draw features' activity over denoising steps, and the SAE's explained variance above it.

    Args:
        steps: numbers of steps, counted from 1, ascending.
        activity: each feature's mean activity at each step; every curve is drawn relative to its own peak.
        n_steps: how many steps a run has.
        target: the step that the features were selected at, counted from 1.
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
    lower.set_xlabel(f"denoising step, 1 to {n_steps} (noise at the left; dotted: the run's target step)")
    lower.legend(title="feature", loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9, handlelength=3)
    for ax in (upper, lower):
        ax.axvline(target, color="#9EA5B0", lw=1.2, ls=(0, (1, 2)), zorder=1)
        _step_axis(ax, n_steps)
    return figure


def _step_axis(ax: Axes, n_steps: int) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.set_xlim(0.5, n_steps + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
