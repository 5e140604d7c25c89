"""Plots of SAE training: how a run went, how often its features fire, and what sparsity costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from fluxscope.draw.plots import COLOURS, head, new_figure, percent_axis, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DENSE = 0.1
"""A feature on more than this share of the tokens is dense: it rarely stands for one thing."""
_PANELS = (
    ("explained_variance", "Explained variance", True),
    ("l0", "Active features a token (L0)", False),
    ("dead_share", "Dead features", True),
    ("loss", "Loss", False),
)
_HELD_OUT = {"explained_variance": "explained_variance", "l0": "l0", "dead_share": "dead"}
"""What the held-out scores call the same thing; they have no loss."""


@styled
def training_curves(log: Sequence[Mapping[str, Any]], title: str = "How did the training go?") -> Figure:
    """Draw explained variance, L0, dead share and loss over the optimiser's steps, a panel each.

    Args:
        log: records of a run's log.jsonl: `step` with `explained_variance`, `l0`, `dead_share` and `loss` of
            a training batch, or with `held_out`, the scores on held-out tokens.
    """
    batches = [record for record in log if "loss" in record]
    scored = [record for record in log if "held_out" in record]
    figure, axes = new_figure(10.0, 6.4, 2, 2)
    for ax, (key, name, is_share) in zip(axes.flat, _PANELS, strict=True):
        steps, seen = [record["step"] for record in batches], [record[key] for record in batches]
        ax.plot(steps, seen, color=COLOURS[0], lw=1.8, label="training batches")
        if key in _HELD_OUT:
            kept = [record["held_out"][_HELD_OUT[key]] for record in scored]
            at = [record["step"] for record in scored]
            ax.plot(at, kept, color=COLOURS[1], lw=1.8, marker="o", ms=5, label="held-out tokens")
            ax.set_ylim(*_range(key, [*seen, *kept]))
            seen = kept or seen
        if is_share:
            percent_axis(ax.yaxis)
        last = (f"{seen[-1]:.1%}" if is_share else f"{seen[-1]:.3g}") if seen else "none yet"
        ax.set_title(f"{name}: {last}", fontsize=11)
    _plain_log_axis(axes[1, 1])
    for ax in axes[1]:
        ax.set_xlabel("optimiser steps")
    figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return figure


def _range(key: str, values: Sequence[float]) -> tuple[float, float]:
    """Limits that show shares against what they can be, and the first steps' noise no more than needed."""
    if key == "explained_variance":
        return max(min([0.9, *values]), -0.05), 1.0
    return 0.0, max(1.15 * max(values, default=0.0), 0.02 if key == "dead_share" else 1.0)


def _plain_log_axis(ax: Axes) -> None:
    """A logarithmic vertical axis with plain numbers at 1, 2 and 5."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


@styled
def feature_density(
    frequency: Float[np.ndarray, " f"],
    n_tokens: int,
    title: str = "On how many tokens does each feature fire?",
) -> Figure:
    """Draw a histogram of log10 of the features' frequencies; dead and dense ones are marked and counted.

    Args:
        frequency: share of tokens on which each feature fires.
        n_tokens: how many tokens that was measured on; rarer features cannot be told from dead ones.
    """
    figure, ax = new_figure(8.6, 4.4)
    alive = np.log10(frequency[frequency > 0].astype(np.float64))
    n_dead, n_dense = int((frequency == 0).sum()), int((frequency > _DENSE).sum())
    rarest = np.log10(1 / max(n_tokens, 10))
    bins = np.linspace(rarest, 0, 41)
    ax.hist(alive.clip(rarest), bins, color=COLOURS[0], alpha=0.85, edgecolor="white", lw=0.6)
    width = bins[1] - bins[0]
    place = rarest - 3 * width
    ax.bar(place, n_dead, 2 * width, color=COLOURS[1])
    ax.annotate(
        f"{n_dead:,} dead", (place, n_dead), (0, 4), textcoords="offset points", ha="center", color=COLOURS[1]
    )
    ax.axvspan(np.log10(_DENSE), 0, color=COLOURS[4], alpha=0.18, lw=0)
    ax.text(
        np.log10(_DENSE) / 2,
        0.98,
        f"{n_dense:,} dense\n(over 10%)",
        transform=ax.get_xaxis_transform(),
        ha="center",
        va="top",
        fontsize=9,
        color="#8A5A00",
    )
    ax.set_xlim(place - 2 * width, 0)
    ax.margins(y=0.14)
    _frequency_ticks(ax, rarest)
    ax.set_ylabel("features")
    share = n_dead / max(len(frequency), 1)
    head(
        ax,
        title,
        f"{len(frequency):,} features on {n_tokens:,} held-out tokens: {n_dead:,} dead ({share:.1%}), "
        f"L0 {float(frequency.sum()):.1f}",
    )
    return figure


def _frequency_ticks(ax: Axes, rarest: float) -> None:
    """Whole powers of ten, as shares; the axis itself is log10."""
    powers = np.arange(np.ceil(rarest), 1)
    ax.set_xticks(powers, [f"{100 * 10.0**power:g}%" for power in powers])
    ax.set_xlabel("share of tokens on which the feature fires (logarithmic)")


@dataclass(frozen=True)
class Frontier:
    """What each sparsity of one site costs; one entry a trained SAE.

    Attributes:
        labels: what to write beside the points, such as "L1 0.1"; "" where L0 says it all.
        l0: active features a token.
        explained: explained variance, held out.
        recovered: share of the model's velocity that is left with the reconstruction spliced in; empty
            where it was not measured.
        random_explained, random_recovered: the same for as many random directions, at equal L0.
    """

    labels: Sequence[str]
    l0: Sequence[float]
    explained: Sequence[float]
    recovered: Sequence[float]
    random_explained: Sequence[float]
    random_recovered: Sequence[float]


@styled
def sparsity_frontier(frontiers: Mapping[str, Frontier], title: str = "What does sparsity cost?") -> Figure:
    """Draw explained variance and recovered behaviour over L0: a colour a site, random directions dashed."""
    figure, (left, right) = new_figure(11.0, 5.0, 1, 2)
    for number, (name, each) in enumerate(frontiers.items()):
        colour, above = COLOURS[number % len(COLOURS)], number > 0
        _frontier_curves(left, name, each, each.explained, each.random_explained, colour, above)
        _frontier_curves(right, name, each, each.recovered, each.random_recovered, colour, above)
    left.set_title("Variance explained", fontsize=11)
    right.set_title("Model's velocity recovered, reconstruction spliced in", fontsize=11)
    for ax in (left, right):
        _l0_axis(ax, [value for each in frontiers.values() for value in each.l0])
    figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(frontiers))
    return figure


def _frontier_curves(
    ax: Axes,
    name: str,
    frontier: Frontier,
    ours: Sequence[float],
    random: Sequence[float],
    colour: str,
    above: bool,
) -> None:
    """One site's SAEs, and its random directions, in one panel; nothing where nothing was measured."""
    order = np.argsort(frontier.l0[: len(ours)], kind="stable")
    x = np.asarray(frontier.l0)[order]
    ax.plot(x, np.asarray(ours)[order], color=colour, lw=2, marker="o", ms=6, label=name)
    label = f"{name}, random directions"
    ax.plot(x, np.asarray(random)[order], color=colour, lw=1.3, ls=(0, (3, 2)), marker="o", ms=3, label=label)
    style: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": 8.5, "color": colour}
    for i in order:
        ax.annotate(frontier.labels[i], (frontier.l0[i], ours[i]), (0, 8 if above else -16), **style)


def _l0_axis(ax: Axes, values: Sequence[float]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    ax.set_xscale("log", base=2)
    ax.set_xlim(min(values) / 1.35, max(values) * 1.35)
    ax.xaxis.set_major_locator(LogLocator(2))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    # Random directions can do far worse than nothing: what lies below -25% says no more than that.
    ax.set_ylim(max(min(ax.get_ylim()[0], 0.0), -0.25), 1.05)
    percent_axis(ax.yaxis)
    ax.set_xlabel("active features a token (L0, logarithmic)")
