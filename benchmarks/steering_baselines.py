"""Edits without features, for the steering study: what other ways of moving activations do at the same sites.

dense mean difference  x' = x + m(target) - m(source)
affine                 x' = w x + b by dimension: the map of equal quantiles (Linear-AcT, Rodriguez et al.
                       2024, arXiv 2410.23054)
PCA k                  of all sites the k principal components that differ most take the donor's values:
                       transport with components in the place of features

The first two are found as `shift` is: from runs of both prompts with other seeds, on the tokens on which
their velocities differ, by window of noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from fluxscope.models.capture import Capture
from fluxscope.models.cells import WHOLE, Window
from fluxscope.models.editing import Rows
from fluxscope.models.edits import moved
from fluxscope.models.hooks import Hook
from fluxscope.models.methods.shift import WINDOWS, changing_tokens
from fluxscope.models.model import Model
from fluxscope.models.sites import VELOCITY, Site, parse_site
from fluxscope.models.spec import Embedding

Map = Callable[[Tensor, Tensor | None], Tensor]
"""What is added to a row's activation (t d), given the donor's where there is one."""


@dataclass(frozen=True)
class Mapped:
    """Activations of sites changed by maps.

    Attributes:
        maps: by site and window.
        prompt: the donor's, where the maps read one.
    """

    maps: Mapping[tuple[str, Window], Map]
    prompt: str = ""
    region: Tensor | None = None
    keep_norm: bool = False

    followers: tuple[str, ...] = ()

    @property
    def donors(self) -> tuple[str, ...]:
        return (self.prompt,) if self.prompt else ()

    def hooks(self, rows: Rows) -> list[Hook]:
        donor = rows.donors.get(self.prompt)
        return [
            _Mapping(self, each, parse_site(site), rows.steps(window), donor, rows.edited)
            for (site, window), each in self.maps.items()
        ]

    def all_tokens(self) -> Mapped:
        return replace(self, region=None)


@final
class _Mapping(Hook):
    def __init__(
        self, what: Mapped, each: Map, site: Site, steps: tuple[int, ...], donor: int | None, into: int
    ) -> None:
        super().__init__([site], steps)
        self._what, self._map, self._donor, self._into = what, each, donor, into

    def act(self, site: Site, step: int, x: Tensor) -> Tensor:
        own = x[self._into]
        delta = self._map(own.float(), None if self._donor is None else x[self._donor].float())
        if self._what.region is not None:
            delta = delta * self._what.region[:, None]
        changed = x.clone()
        changed[self._into] = moved(own[None], delta[None], self._what.keep_norm)[0]
        return changed


def from_prompts(
    model: Model,
    own: Embedding,
    wished: Embedding,
    seeds: Sequence[int],
    sites: Sequence[str],
    region: Tensor | None,
) -> tuple[Mapped, Mapped]:
    """The dense mean difference and the affine map."""
    heard = changing(model, own, wished, seeds, sites)
    means, affine = {}, {}
    for (site, number), rows in heard.items():
        source, target = (torch.cat(each) for each in rows)
        means[site, WINDOWS[number]] = adding(target.mean(0) - source.mean(0))
        affine[site, WINDOWS[number]] = affine_map(source, target)
    return Mapped(means, region=region, keep_norm=True), Mapped(affine, region=region)


def adding(direction: Tensor) -> Map:
    return lambda x, _: direction.expand(x.shape)


def affine_map(source: Tensor, target: Tensor) -> Map:
    """By dimension, the line that takes the sorted source's values nearest to the sorted target's."""
    a, b = source.sort(0).values, target.sort(0).values
    middle, goal = a.mean(0), b.mean(0)
    slope = ((a - middle) * (b - goal)).sum(0) / (a - middle).square().sum(0).clamp_min(1e-12)
    return lambda x, _: slope * (x - middle) + goal - x


def changing(
    model: Model, own: Embedding, wished: Embedding, seeds: Sequence[int], sites: Sequence[str]
) -> dict[tuple[str, int], tuple[list[Tensor], list[Tensor]]]:
    """Both prompts' activations on the changing tokens, by site and number of the window."""
    sigmas = model.family.sigmas(model.pipe.scheduler, model.defaults)
    windows = {step: n for n, window in enumerate(WINDOWS) for step in window.steps(sigmas)}
    found: dict[tuple[str, int], tuple[list[Tensor], list[Tensor]]] = {}
    passed: dict[str, Tensor] = {}

    def receive(site: Site, step: int, x: Tensor) -> None:
        if site is not VELOCITY:
            passed[site.name] = x.float().clone()
            return
        here = changing_tokens(x)
        for name, both in passed.items():
            rows = found.setdefault((name, windows[step]), ([], []))
            for kept, each in zip(rows, both, strict=True):
                kept.append(each[here])

    for seed in seeds:
        capture = Capture([*map(parse_site, sites), VELOCITY], range(len(sigmas)), receive)
        model.sample([own, wished], [seed, seed], capture)
    return found


def components(
    model: Model, own: Embedding, donor: Embedding, prompt: str, seed: int, sites: Sequence[str], k: int
) -> Mapped:
    """The k principal components of all sites that differ most between both runs take the donor's values."""
    heard: dict[str, list[Tensor]] = {site: [] for site in sites}
    steps = range(model.defaults.steps)
    capture = Capture(
        map(parse_site, sites), steps, lambda site, _, x: heard[site.name].append(x.float().clone())
    )
    model.sample([own, donor], [seed, seed], capture)
    ranked: list[tuple[float, str, Tensor]] = []
    for site, parts in heard.items():
        both = torch.stack(parts)  # s 2 t d
        flat = both.flatten(0, 2)
        axes = torch.linalg.svd(flat - flat.mean(0), full_matrices=False).Vh
        far = ((both[:, 1] - both[:, 0]) @ axes.T).abs().sum((0, 1))
        ranked += [(float(each), site, axis) for each, axis in zip(far, axes, strict=True)]
    chosen: dict[str, list[Tensor]] = {}
    for _, site, axis in sorted(ranked, key=lambda each: -each[0])[:k]:
        chosen.setdefault(site, []).append(axis)
    return Mapped({(site, WHOLE): within(torch.stack(axes)) for site, axes in chosen.items()}, prompt)


def within(axes: Tensor) -> Map:
    """The way to the donor, within a subspace of orthonormal axes (k d)."""

    def delta(x: Tensor, given: Tensor | None) -> Tensor:
        assert given is not None
        return (given - x) @ axes.T @ axes

    return delta
