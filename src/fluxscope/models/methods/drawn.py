"""Single denoising steps of noised pictures, and what the model does in them told of either of two prompts.

    x = (1 - sigma) x_0 + sigma noise

A model learns from such steps, so that it can be asked in them without running up to there. `learned` fits
amounts on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from fluxscope.errors import ConfigError
from fluxscope.models.attribution import Call, calls_of, velocity
from fluxscope.models.capture import Capture
from fluxscope.models.cells import Window
from fluxscope.models.methods.shift import WINDOWS
from fluxscope.models.model import Model
from fluxscope.models.sites import Site, parse_site
from fluxscope.models.spec import Embedding, PictureSpec
from fluxscope.sae import LinearSae, encode_sparse

CHANGING = 0.3
"""A token shall change where the prompts' velocities differ by this share of the largest difference."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """What was drawn.

    Attributes:
        call: a call of the transformer told of the source, whose latents and noise levels take turns.
        latents, timesteps, window: of every step; windows of `shift`, by number.
        own, wished: the velocities told of either prompt.
    """

    call: Call
    latents: Float[Tensor, "n t c"]
    timesteps: Float[Tensor, " n"]
    window: Int[Tensor, " n"]
    own: Float[Tensor, "n t c"]
    wished: Float[Tensor, "n t c"]

    def given(self, some: Int[Tensor, " b"]) -> Call:
        """A call of some of the steps: as many as there are noises."""
        return _given(self.call, self.latents[some], self.timesteps[some])


@final
class Draw:
    """Draws steps of one seed's pictures.

    Args:
        saes: whose codes are added up meanwhile, by the name of the site.
        within: the noise levels of the steps.
        n: noises for each of them; the first one is the seed's own.
    """

    def __init__(
        self,
        model: Model,
        source: Embedding,
        target: Embedding,
        seed: int,
        spec: PictureSpec,
        saes: Mapping[str, LinearSae],
        within: Window,
        n: int,
    ) -> None:
        self._model, self._sigmas = model, model.family.sigmas(model.pipe.scheduler, spec)
        self.steps = within.steps_on(self._sigmas)
        both = ([text] * n for text in (source, target))
        at = sorted({0, *self.steps})
        self._own, self._other = (calls_of(model, rows, [seed] * n, at, spec=spec) for rows in both)
        first = self._own[0].keywords["hidden_states"]
        rng = torch.Generator().manual_seed(seed)
        self._noise = torch.randn(first.shape, generator=rng).to(first)
        self._noise[0] = first[0]
        self.codes = _Codes(saes), _Codes(saes)

    def of(self, pictures: Float[Tensor, "p t c"]) -> Drawn:
        """Every step with every noise; the pictures, as packed latents, take turns."""
        found: list[tuple[Tensor, ...]] = []
        n = len(self._noise)
        for step in self.steps:
            times = self._own[step].keywords["timestep"]
            clear = pictures.clone()[torch.arange(n) % len(pictures)]
            latents = clear + self._sigmas[step] * (self._noise - clear)
            calls = (_given(each[step], latents, times) for each in (self._own, self._other))
            velocities = (
                velocity(self._model, call, codes.at(step))
                for call, codes in zip(calls, self.codes, strict=True)
            )
            window = next(i for i, each in enumerate(WINDOWS) if step in each.steps(self._sigmas))
            found.append((latents, times, torch.full((n,), window), *velocities))
        return Drawn(self._own[self.steps[0]], *(torch.cat(each) for each in zip(*found, strict=True)))

    def naturals(self) -> dict[str, Float32[Tensor, " _"]]:
        """By site, every feature's mean code where it is active: told of the wish, or of the source where it
        is silent then; 0 for those that never are.
        """
        own, wished = (codes.means() for codes in self.codes)
        return {name: torch.where(wished[name] > 0, wished[name], own[name]) for name in own}


def changing_region(difference: Float[Tensor, "n t c"]) -> Bool[Tensor, " t"]:
    """The tokens on which two prompts' velocities differ, on the mean over what was drawn.

    Raises:
        ConfigError: they differ nowhere.
    """
    far = difference.float().norm(dim=-1).mean(0)  # t
    if not far.max() > 0:
        raise ConfigError("the model makes no difference between the two prompts", "Wish for something else.")
    region: Tensor = far >= CHANGING * far.max()
    return region.cpu()


class _Codes:
    """Adds up codes that pass sites."""

    def __init__(self, saes: Mapping[str, LinearSae]) -> None:
        self._saes = saes
        self._sums = {name: torch.zeros(2, sae.hidden_dim) for name, sae in saes.items()}

    def at(self, step: int) -> Capture:
        return Capture(map(parse_site, self._saes), [step], self._receive)

    def means(self) -> dict[str, Float32[Tensor, " _"]]:
        """By site, of every feature where it is active; 0 where it never is."""
        return {name: total / count.clamp_min(1) for name, (total, count) in self._sums.items()}

    def _receive(self, site: Site, step: int, x: Float[Tensor, "b t d"]) -> None:
        sae = self._saes[site.name]
        codes = encode_sparse(sae, x.to(sae.pre_bias.device)).to("cpu")
        total, count = self._sums[site.name]
        total.index_add_(0, codes.feature.long(), codes.value)
        count.index_add_(0, codes.feature.long(), torch.ones_like(codes.value))


def _given(call: Call, latents: Float[Tensor, "b t c"], timesteps: Float[Tensor, " b"]) -> Call:
    return replace(call, keywords={**call.keywords, "hidden_states": latents, "timestep": timesteps})
