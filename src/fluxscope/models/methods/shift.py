"""shift: amounts from prompts alone: what mean codes have where the wish is told over those where it is not.

    a_f n_f = mean of z_f told of the wish - mean of z_f told of the present value

Both prompts are run from several seeds, none of them the picture's own; means are over the tokens on which
the two runs of a seed want to go different ways (their velocities differ by at least half of the largest
difference), by window of noise. It is the mean-difference steering of Rimsky et al. (arXiv 2312.06681) in the
features of several sites, where it can be cut down to the k features that it moves most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from fluxscope.errors import ConfigError
from fluxscope.models.cells import Window
from fluxscope.models.hooks import Hook
from fluxscope.models.methods.push import Push, SiteEdit
from fluxscope.models.model import Model
from fluxscope.models.sites import VELOCITY, Site, parse_site
from fluxscope.models.spec import Embedding, PictureSpec
from fluxscope.sae import LinearSae, encode_sparse

WINDOWS = (Window(1.0, 0.875), Window(0.875, 0.725), Window(0.725, 0.375), Window(0.375, 0.0))
"""Windows with amounts of their own: what features mean changes as the picture comes about."""

CHANGING = 0.5
"""A token changes where the velocities differ by this share of the largest difference."""


@dataclass
class Sums:
    """Codes added up over tokens, for both prompts: row 0 the present value's, row 1 the wished one's."""

    codes: Float32[Tensor, "2 f"]
    active: Float32[Tensor, "2 f"]
    tokens: int = 0

    @classmethod
    def none(cls, n_features: int) -> Sums:
        return cls(torch.zeros(2, n_features), torch.zeros(2, n_features))

    def add(self, codes: Float32[Tensor, "2 t f"]) -> None:
        self.codes += codes.sum(1)
        self.active += (codes > 0).sum(1)
        self.tokens += codes.shape[1]

    @property
    def difference(self) -> Float32[Tensor, " f"]:
        """Wished mean less present mean."""
        return (self.codes[1] - self.codes[0]) / max(self.tokens, 1)

    @property
    def natural(self) -> Float32[Tensor, " f"]:
        """Mean code where active: on the wished side for features that rise, on the other for the rest."""
        means = self.codes / self.active.clamp_min(1)
        return torch.where(self.difference > 0, means[1], means[0])


@final
class Compare(Hook):
    """Adds up both rows' codes at sites, over the tokens where the rows want to go different ways."""

    def __init__(
        self, saes: Mapping[str, LinearSae], steps: Mapping[int, int], sums: Mapping[tuple[str, int], Sums]
    ) -> None:
        super().__init__([*map(parse_site, saes), VELOCITY], steps)
        self._saes, self._windows, self._sums = saes, steps, sums
        self._passed: dict[str, Tensor] = {}

    def act(self, site: Site, step: int, x: Float[Tensor, "b t d"]) -> None:
        if site is not VELOCITY:
            self._passed[site.name] = x.clone()
            return
        changing = changing_tokens(x)
        for name, passed in self._passed.items():
            sae = self._saes[name]
            tokens = passed[:, changing]
            codes = encode_sparse(sae, tokens.to(sae.pre_bias.device)).to_dense().cpu()
            self._sums[name, self._windows[step]].add(codes.view(2, -1, sae.hidden_dim))
        self._passed.clear()


def changing_tokens(velocity: Float[Tensor, "2 t c"]) -> Bool[Tensor, " t"]:
    """Where two rows want to go different ways."""
    far = (velocity[1].float() - velocity[0].float()).norm(dim=-1)
    changing: Tensor = far >= CHANGING * far.max()
    return changing


@dataclass(frozen=True, eq=False)
class Shift:
    """What mean codes differ by, by site and number of the window.

    Attributes:
        within: the noise levels outside of which nothing is moved.
    """

    saes: Mapping[str, LinearSae]
    sums: Mapping[tuple[str, int], Sums]
    within: Window

    @property
    def live(self) -> dict[str, list[int]]:
        """By site, the features that were active at all."""
        found = {name: torch.zeros(sae.hidden_dim, dtype=torch.bool) for name, sae in self.saes.items()}
        for (name, _), each in self.sums.items():
            found[name] |= (each.active > 0).any(0)
        return {name: each.nonzero().flatten().tolist() for name, each in found.items()}

    def edits(self, k: int | None) -> tuple[SiteEdit, ...]:
        """Amounts for the k features that move most over all sites; None for all that move."""
        chosen = _chosen(self.saes, self.sums, k)
        return tuple(
            SiteEdit(parse_site(name), pushes, both(WINDOWS[n], self.within))
            for (name, n), each in self.sums.items()
            if (pushes := _pushes(each, chosen.get(name, [])))
        )


def shift(
    model: Model,
    present: Embedding,
    wished: Embedding,
    seeds: Sequence[int],
    spec: PictureSpec,
    saes: Mapping[str, LinearSae],
    within: Window,
) -> Shift:
    """Run both prompts from every seed and compare their mean codes.

    Args:
        saes: by the name of the site; sites of the image stream.
        within: the noise levels outside of which nothing is moved.

    Raises:
        ConfigError: a site is of text tokens.
    """
    for site in map(parse_site, saes):
        if site.kind.stream != "image":
            raise ConfigError(
                f"means are taken over tokens of the picture; at {site.name} pass those of the text",
                "Name sites of the image stream.",
            )
    sigmas = model.family.sigmas(model.pipe.scheduler, spec)
    inside = within.steps_on(sigmas)
    steps = {s: n for n, window in enumerate(WINDOWS) for s in window.steps(sigmas) if s in inside}
    sums = {(name, n): Sums.none(sae.hidden_dim) for name, sae in saes.items() for n in set(steps.values())}
    for seed in seeds:
        compare = Compare(saes, steps, sums)
        model.sample([present, wished], [seed, seed], compare, spec=spec, stop_after=max(steps))
    return Shift(saes, sums, within)


def both(one: Window, other: Window) -> Window:
    """The noise levels that lie in both."""
    return Window(min(one.high, other.high), max(one.low, other.low))


def _chosen(
    saes: Mapping[str, LinearSae], sums: Mapping[tuple[str, int], Sums], k: int | None
) -> dict[str, list[int]]:
    """The features that are moved farthest, by site."""
    scored: list[tuple[float, str, int]] = []
    for name, sae in saes.items():
        moved = torch.stack([each.difference.abs() for (site, _), each in sums.items() if site == name])
        score = moved.sum(0) * sae.decoder.weight.detach().float().norm(dim=0).cpu()
        scored += [(value, name, f) for f, value in enumerate(score.tolist()) if value > 0]
    found: dict[str, list[int]] = {}
    for _, name, feature in sorted(scored, reverse=True)[:k]:
        found.setdefault(name, []).append(feature)
    return found


def _pushes(sums: Sums, features: Sequence[int]) -> tuple[Push, ...]:
    difference, natural = sums.difference, sums.natural
    return tuple(
        Push(f, float(difference[f] / natural[f]), float(natural[f]))
        for f in features
        if natural[f] > 0 and difference[f] != 0
    )
