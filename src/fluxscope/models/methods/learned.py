"""learned: a few features moved so that the model, told of the source, does what it would, told of the wish.

    a = argmin of sum over x of |v(source, x; a) - u(x)|^2
    u(x) = m v(target, x) + (1 - m) v(source, x),    x = (1 - sigma) x_0 + sigma noise

v(source, x; a) is the velocity while features of several sites are moved by a natural sizes on the tokens of
m, the region that shall change; each token's norm is kept. x_0 is the source's picture, and in a second round
also what the amounts make of it (as the edited run will see: DAgger, arXiv 1011.0686); noise, and sigma, a
step of the schedule, are drawn. Single steps are fitted, by Adam, and nothing is followed back through
sampling (the loss of Concept Sliders, arXiv 2311.12092, which fit weights). The other prompt's picture is
never made.

Which features: first those with the largest gradient x natural size; these are fitted, the k that move
farthest kept, and fitted on. A feature has an amount for each of four windows of noise, as in `shift`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from fluxscope.errors import ConfigError
from fluxscope.models.attribution import forward
from fluxscope.models.cells import Window
from fluxscope.models.editing import sample_edited
from fluxscope.models.edits import moved
from fluxscope.models.hooks import Hook
from fluxscope.models.methods.drawn import Draw, Drawn, changing_region
from fluxscope.models.methods.push import Push, Pushed, SiteEdit
from fluxscope.models.methods.shift import WINDOWS, both
from fluxscope.models.model import Model
from fluxscope.models.sites import Site, parse_site
from fluxscope.models.spec import Embedding, PictureSpec
from fluxscope.sae import LinearSae

Amounts = dict[str, Float32[Tensor, "w _"]]
"""By site: of every window and feature, in natural sizes."""

BEGUN = 4
"""So many times the wanted number of features are fitted first."""


@dataclass(frozen=True)
class Fitting:
    """How amounts are fitted.

    Attributes:
        iterations: of Adam, for the features begun with, and for those that are kept.
        rate: Adam's, in natural sizes; it falls to 0 over the second half.
        bound: no amount is larger, in natural sizes.
        batch: single denoising steps in an iteration, and noises drawn for each step of the schedule.
        seed: of what is drawn.
    """

    iterations: tuple[int, int] = (60, 140)
    rate: float = 0.2
    bound: float = 12.0
    batch: int = 8
    seed: int = 0


USUAL = Fitting()


@dataclass(frozen=True, eq=False)
class Learned:
    """What was fitted.

    Attributes:
        edits: the moves, by site and window.
        region: the tokens that they act on.
        left: the share of the velocities' squared difference that they leave, over all that was drawn.
        live: by site, the features that were active.
    """

    edits: tuple[SiteEdit, ...]
    region: Bool[Tensor, " t"]
    left: float
    live: dict[str, list[int]]

    @property
    def largest(self) -> float:
        """The largest amount, in natural sizes."""
        return max(abs(push.amount) for edit in self.edits for push in edit.pushes)


@torch.inference_mode(False)
def learn(
    model: Model,
    source: Embedding,
    target: Embedding,
    seed: int,
    spec: PictureSpec,
    saes: Mapping[str, LinearSae],
    within: Window,
    k: int | None = 16,
    region: Bool[Tensor, " t"] | None = None,
    fitting: Fitting | None = None,
) -> Learned:
    """Choose features over all sites and fit their amounts, for the picture of one seed.

    Args:
        saes: by the name of the site; sites of the image stream.
        within: the noise levels outside of which nothing is moved.
        k: how many features may be moved; None for all.
        region: the tokens that shall change; None for those on which the prompts' velocities differ.

    Raises:
        ConfigError: the prompts' velocities nowhere differ, no feature matters to them, or a site is of text
            tokens.
    """
    fitting = fitting or USUAL
    for site in map(parse_site, saes):
        if site.kind.stream != "image":
            raise ConfigError(
                f"amounts are fitted on tokens of the picture; at {site.name} pass those of the text",
                "Name sites of the image stream.",
            )
    draw = Draw(model, source, target, seed, spec, saes, within, fitting.batch)
    picture = model.sample([source], [seed], spec=spec)
    drawn = draw.of(picture)
    naturals = draw.naturals()
    region = changing_region(drawn.wished - drawn.own) if region is None else region
    fit = _Fit(model, saes, naturals, region, fitting)
    chosen = largest(fit.slopes(drawn), None if k is None else BEGUN * k)
    if not any(each.any() for each in chosen.values()):
        raise ConfigError("no feature of these sites moves what the prompts differ in", "Name other sites.")
    amounts = fit.fitted(fit.nothing(), chosen, drawn, fitting.iterations[0])
    chosen = largest(fit.lengths(amounts), k)
    for iterations in fitting.iterations[1:]:
        made = moved_picture(model, source, seed, spec, saes, edits_of(amounts, naturals, within), region)
        drawn = draw.of(torch.cat([picture, made]))
        amounts = fit.fitted(amounts, chosen, drawn, iterations)
    live = {name: each.nonzero().flatten().tolist() for name, each in naturals.items()}
    return Learned(edits_of(amounts, naturals, within), region, fit.left(amounts, drawn), live)


def edits_of(
    amounts: Amounts, naturals: Mapping[str, Float32[Tensor, " _"]], within: Window
) -> tuple[SiteEdit, ...]:
    """Amounts as moves of the features that have any."""
    return tuple(
        SiteEdit(parse_site(name), pushes, shared)
        for name, each in amounts.items()
        for row, window in zip(each, WINDOWS, strict=True)
        if (pushes := _pushes(row, naturals[name])) and (shared := both(window, within))
    )


def moved_picture(
    model: Model,
    source: Embedding,
    seed: int,
    spec: PictureSpec,
    saes: Mapping[str, LinearSae],
    edits: tuple[SiteEdit, ...],
    region: Bool[Tensor, " t"],
) -> Float[Tensor, "1 t c"]:
    """The picture that the moves make, as packed latents."""
    method = Pushed(saes, edits, region=region, keep_norm=True)
    return sample_edited(model, {"": source}, spec, "", seed, [[method]])[1:]


def largest(scores: Amounts, k: int | None) -> dict[str, Bool[Tensor, " _"]]:
    """The k features with the largest scores over sites and windows; None for all with any."""
    by_site = {name: each.abs().sum(0) for name, each in scores.items()}
    every = torch.cat(list(by_site.values()))
    least = every.topk(min(k, len(every))).values[-1] if k is not None else every.min()
    return {name: (each >= least) & (each > 0) for name, each in by_site.items()}


class _Fit:
    """What amounts do in the steps that were drawn, and how they come to do what is wished."""

    def __init__(
        self,
        model: Model,
        saes: Mapping[str, LinearSae],
        naturals: Mapping[str, Float32[Tensor, " _"]],
        region: Bool[Tensor, " t"],
        fitting: Fitting,
    ) -> None:
        self._model, self._fitting = model, fitting
        self._sites = {name: parse_site(name) for name in saes}
        self._region = region.to(model.device)
        self._columns = {  # f d: a natural size of each feature
            name: (sae.decoder.weight.detach().float().cpu() * naturals[name]).T.to(model.device)
            for name, sae in saes.items()
        }

    def nothing(self) -> Amounts:
        shape = {name: (len(WINDOWS), len(each)) for name, each in self._columns.items()}
        return {name: torch.zeros(each, device=self._region.device) for name, each in shape.items()}

    def lengths(self, amounts: Amounts) -> Amounts:
        """How far each feature moves."""
        return {name: each.abs() * self._columns[name].norm(dim=-1) for name, each in amounts.items()}

    def slopes(self, drawn: Drawn) -> Amounts:
        """The loss's gradient at amounts of 0, over all that was drawn."""
        total = self.nothing()
        for some in self._parts(drawn):
            for name, slope in self._loss(drawn, self.nothing(), some)[1].items():
                total[name] += slope
        return total

    def fitted(
        self, amounts: Amounts, chosen: Mapping[str, Bool[Tensor, " _"]], drawn: Drawn, iterations: int
    ) -> Amounts:
        """The chosen features' amounts after so many iterations of Adam; all others are left out."""
        fitting = self._fitting
        rng = torch.Generator().manual_seed(fitting.seed)
        found = {name: amounts[name] * each for name, each in chosen.items() if each.any()}
        adam = torch.optim.Adam(found.values(), betas=(0.9, 0.99))
        for iteration in range(iterations):
            adam.param_groups[0]["lr"] = fitting.rate * min(1, 2 * (1 - iteration / iterations))
            some = torch.randperm(len(drawn.own), generator=rng)[: fitting.batch]
            slopes = self._loss(drawn, found, some)[1]
            for name, each in found.items():
                each.grad = slopes[name] * chosen[name]
            adam.step()
            for each in found.values():
                each.clamp_(-fitting.bound, fitting.bound)
        return found

    def left(self, amounts: Amounts, drawn: Drawn) -> float:
        """The loss over all that was drawn, by that of no amounts."""
        losses, none = 0.0, 0.0
        for some in self._parts(drawn):
            losses += float(self._loss(drawn, amounts, some)[0])
            none += float((self._goal(drawn, some) - drawn.own[some]).float().square().sum())
        return losses / none

    def _parts(self, drawn: Drawn) -> tuple[Tensor, ...]:
        parts: tuple[Tensor, ...] = torch.arange(len(drawn.own)).split(self._fitting.batch)
        return parts

    def _goal(self, drawn: Drawn, some: Int[Tensor, " b"]) -> Float[Tensor, "b t c"]:
        return torch.where(self._region[:, None], drawn.wished[some], drawn.own[some])

    def _loss(self, drawn: Drawn, amounts: Amounts, some: Int[Tensor, " b"]) -> tuple[Tensor, Amounts]:
        """The squared error in some of the steps, and its gradient."""
        with torch.enable_grad():
            free = {name: each.clone().requires_grad_() for name, each in amounts.items()}
            directions = {self._sites[name]: each @ self._columns[name] for name, each in free.items()}
            move = _Move(directions, drawn.window[some], self._region, drawn.call.step)
            velocity = forward(self._model, drawn.given(some), move)
            error = (velocity - self._goal(drawn, some)).float().square().sum()
            slopes = torch.autograd.grad(error, list(free.values()))
        return error.detach(), dict(zip(free, slopes, strict=True))


@final
class _Move(Hook):
    """Moves every row as its window says, on the region's tokens; norms are kept.

    Args:
        directions: by site, what is added in each window (w d).
    """

    def __init__(
        self,
        directions: Mapping[Site, Float32[Tensor, "w d"]],
        window: Int[Tensor, " b"],
        region: Bool[Tensor, " t"],
        step: int,
    ) -> None:
        super().__init__(directions, [step])
        self._directions, self._window, self._region = directions, window, region

    def act(self, site: Site, step: int, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        along = self._directions[site][self._window][:, None]  # b 1 d
        return moved(x, along * self._region[:, None], keep_norm=True)


def _pushes(amounts: Float32[Tensor, " f"], naturals: Float32[Tensor, " f"]) -> tuple[Push, ...]:
    moving = amounts.nonzero().flatten().tolist()
    return tuple(Push(f, float(amounts[f]), float(naturals[f])) for f in moving)
