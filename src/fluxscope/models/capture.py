"""Listening: activations at any sites and steps, handed over as they pass.

    with Capture(transformer, sites, steps, receive) as capture:
        ...  # denoise with `capture.clock` ticking

`receive(site, step, x)` gets the activation itself (not a copy), in the model's precision. Nothing is kept
here: whoever receives decides. When the block ends, every site must have been heard once at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from fluxscope.errors import FluxscopeError
from fluxscope.models.sites import Site

Receive = Callable[[Site, int, Float[Tensor, "b t d"]], None]


class StepClock:
    """Which denoising step (counted from 0) the model is in; whoever denoises ticks it.

    Hooks must not count calls to know the step: with a negative prompt there are two forwards a step.
    """

    def __init__(self) -> None:
        self.step = 0


class Capture:
    """Hooks at sites that hand each activation at the wanted steps to `receive`.

    Raises:
        ConfigError: the model lacks one of the sites (on entering).
        FluxscopeError: a site was not heard at a wanted step (on leaving).
    """

    def __init__(
        self,
        transformer: nn.Module,
        clock: StepClock,
        sites: Iterable[Site],
        steps: Iterable[int],
        receive: Receive,
    ) -> None:
        self._clock = clock
        self._receive = receive
        self._sites = tuple(sites)
        self._steps = frozenset(steps)
        self._modules = [site.module(transformer) for site in self._sites]
        self._handles: list[Any] = []
        self._heard: set[tuple[str, int]] = set()

    def __enter__(self) -> Capture:
        for site, module in zip(self._sites, self._modules, strict=True):
            self._handles.append(module.register_forward_hook(self._hook(site)))
        return self

    def _hook(self, site: Site) -> Callable[[nn.Module, Any, Any], None]:
        def listen(module: nn.Module, inputs: Any, output: Any) -> None:
            step = self._clock.step
            if step in self._steps and (site.name, step) not in self._heard:
                self._heard.add((site.name, step))
                self._receive(site, step, site.get(output))

        return listen

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        for handle in self._handles:
            handle.remove()
        missed = {(site.name, step) for site in self._sites for step in self._steps} - self._heard
        if missed and kind is None:
            name, step = min(missed)
            raise FluxscopeError(
                f"nothing was heard at {name} in step {step + 1} ({len(missed)} such places)",
                "Turn off compilation and block caches of the model: they bypass hooks.",
            )
