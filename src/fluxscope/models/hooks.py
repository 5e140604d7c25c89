"""Hooks: what listens or acts at places of a model while it denoises.

A hook says at which sites and in which steps it acts. `Model.sample` registers it before the first step and
takes it away after the last one, whatever happens between. Where a step runs the model twice (true
classifier-free guidance), the hook acts on the first run, the one with the prompt. In the end it must have
acted once at every site in every planned step: compilation and block caches can bypass hooks silently.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from fluxscope.errors import FluxscopeError
from fluxscope.models.sites import Site


@dataclass
class Clock:
    """Where denoising is; whoever denoises keeps it.

    Hooks must not count calls to know the step: with true guidance there are two a step.

    Attributes:
        step: counted from 0.
        text_tokens: of a prompt, which a joint sequence begins with.
    """

    step: int
    text_tokens: int


class Hook(ABC):
    """Something that acts at sites in steps.

    Attributes:
        sites: where it acts.
        steps: when, counted from 0.
        fired: how often it acted at each site in each step of the last run.
    """

    def __init__(self, sites: Iterable[Site], steps: Iterable[int]) -> None:
        self.sites = tuple(sites)
        self.steps = frozenset(steps)
        self.fired: dict[tuple[str, int], int] = {}

    @abstractmethod
    def act(self, site: Site, step: int, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"] | None:
        """See what passes a site, and give what shall pass in its place; None leaves it as it is.

        Args:
            x: the activation itself, not a copy, in the model's precision.
        """

    @contextmanager
    def attached(self, transformer: nn.Module, clock: Clock) -> Iterator[None]:
        """While the block runs, act on what passes in `transformer`.

        Raises:
            ConfigError: the model lacks one of the sites.
            FluxscopeError: at the end, when it did not act where and when it was to.
        """
        modules = [site.module(transformer) for site in self.sites]
        self.fired = {(site.name, step): 0 for site in self.sites for step in self.steps}
        handles = []
        try:
            for site, module in zip(self.sites, modules, strict=True):
                handles.append(module.register_forward_hook(self._forward_hook(site, clock)))
            yield
        finally:
            for handle in handles:
                handle.remove()
        self._check()

    def _forward_hook(self, site: Site, clock: Clock) -> Any:
        def on_forward(module: nn.Module, inputs: Any, output: Any) -> Any:
            place = site.name, clock.step
            if self.fired.get(place) != 0:
                return None
            self.fired[place] = 1
            replacement = self.act(site, clock.step, site.get(output, clock.text_tokens))
            return None if replacement is None else site.put(output, replacement, clock.text_tokens)

        return on_forward

    def _check(self) -> None:
        missed = [place for place, times in self.fired.items() if not times]
        if missed:
            name, step = min(missed)
            raise FluxscopeError(
                f"nothing passed {name} in step {step + 1} ({len(missed)} of {len(self.fired)} planned)",
                "Turn off compilation and block caches of the model: they bypass hooks.",
            )
