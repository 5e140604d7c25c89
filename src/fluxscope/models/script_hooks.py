"""Plain forward hooks for scripts that own their denoising loop: `register_forward_hook(hook.hook_fn)`.

Such a hook is told nothing but that its module was called. It learns the denoising step from the timestep
that the transformer around it was given: a new value is a new step, the same one again is a second forward
of that step (true classifier-free guidance). Where there is no transformer around the module, as when it is
called alone, it counts calls. Call `reset()` between pictures. Every row of a batch is steered, and edits
are made by difference, so that a scale of 1 changes nothing. Within fluxscope itself `models.edits` is used:
its steps are told.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fluxscope.errors import FluxscopeError
from fluxscope.models.edits import Change, Scope, check_feature, columns_of, delta_of
from fluxscope.models.sites import parse_site
from fluxscope.sae import LinearSae


class _StepCounter:
    """The denoising step of the current call, for a hook that learns of calls alone."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.step = -1
        self._timestep: float | None = None

    def tick(self) -> int:
        """The step that this call belongs to, counted from 0."""
        timestep = _current_timestep()
        if timestep is None or timestep != self._timestep:
            self.step += 1
        self._timestep = timestep
        return self.step


def _current_timestep() -> float | None:
    """The timestep that the transformer around the current call was given; None where there is none.

    A plain hook is told of its own module alone, but the transformer's forward is on the stack above it.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and hasattr(owner, "transformer_blocks"):
            timestep = frame.f_locals.get("timestep")
            if isinstance(timestep, Tensor):
                return float(timestep.reshape(-1)[0])
        frame = frame.f_back
    return None


class StepActivationCatcher:
    """Keeps what passes at one denoising step, on the CPU.

    Attributes:
        captured: the module's output at that step (the image tokens' part, where it is a tuple), or None.
    """

    def __init__(self, target_step_index: int) -> None:
        self.target_step_index = target_step_index
        self._counter = _StepCounter()
        self.captured: Tensor | None = None

    def reset(self) -> None:
        self._counter.reset()
        self.captured = None

    def hook_fn(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._counter.tick() == self.target_step_index and self.captured is None:
            x = output[_image_item(module)] if isinstance(output, tuple) else output
            self.captured = x.detach().cpu().clone()


class _SteeringHook:
    """Changes of features at the image tokens that leave a module."""

    def __init__(
        self, sae: LinearSae, changes: list[Change], step_range: tuple[int, int], n_image_tokens: int
    ) -> None:
        first, last = step_range
        if first > last:
            raise FluxscopeError(f"step_range {step_range} is empty", "Give (first, last), both included.")
        self.step_range = (first, last)
        self.n_image_tokens = n_image_tokens
        self._sae = sae
        self._changes = changes
        self._counter = _StepCounter()
        # A scope without a region: what it says of site and steps is not used here.
        self._scope = Scope(parse_site("double.0.ff"), range(first, last + 1))
        columns_of(sae, [changes])  # raises for a feature that there is not

    def reset(self) -> None:
        self._counter.reset()

    def hook_fn(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        first, last = self.step_range
        if not first <= self._counter.tick() <= last:
            return None
        if not isinstance(output, tuple):
            return self._steered(output)
        item = _image_item(module)
        return (*output[:item], self._steered(output[item]), *output[item + 1 :])

    @torch.no_grad()
    def _steered(self, output: Float[Tensor, "b tokens d"]) -> Float[Tensor, "b tokens d"]:
        n = self.n_image_tokens
        if output.shape[1] < n:
            raise FluxscopeError(
                f"{output.shape[1]} tokens pass, the image has {n}",
                "n_image_tokens is (height / 16) x (width / 16): use the picture's size.",
            )
        x = output[:, -n:]  # in a joint sequence the text comes first
        delta = delta_of(self._sae, x, columns_of(self._sae, [self._changes] * len(x)), self._scope)
        if delta is None:
            return output
        return torch.cat([output[:, :-n], (x.float() + delta).to(output.dtype)], dim=1)


def _image_item(module: nn.Module) -> int:
    """Which item of a module's output tuple holds the image's tokens: blocks give (text, image), attention
    (image, text)."""
    return 0 if "Attention" in type(module).__name__ else 1


class FeatureSteeringHook(_SteeringHook):
    """Adds `strength` along a feature's decoder direction.

    Args:
        step_range: (first, last) denoising step, counted from 0, both included.
        normalize_direction: give the direction unit norm; otherwise the decoder's column is taken as it is.
    """

    def __init__(
        self,
        sae: LinearSae,
        feature_id: int,
        strength: float,
        step_range: tuple[int, int],
        n_image_tokens: int,
        normalize_direction: bool = True,
    ) -> None:
        changes = [_added(sae, feature_id, strength, normalize_direction)]
        super().__init__(sae, changes, step_range, n_image_tokens)


class MultiFeatureSteeringHook(_SteeringHook):
    """Adds along the decoder directions of several features: {feature_id: strength}."""

    def __init__(
        self,
        sae: LinearSae,
        feature_strengths: Mapping[int, float],
        step_range: tuple[int, int],
        n_image_tokens: int,
        normalize_direction: bool = True,
    ) -> None:
        changes = [_added(sae, f, s, normalize_direction) for f, s in feature_strengths.items()]
        super().__init__(sae, changes, step_range, n_image_tokens)


class EncodeDecodeSteeringHook(_SteeringHook):
    """Multiplies a feature's code by `scale`, keeping the SAE's error: a scale of 1 changes nothing."""

    def __init__(
        self,
        sae: LinearSae,
        feature_id: int,
        scale: float,
        step_range: tuple[int, int],
        n_image_tokens: int,
    ) -> None:
        changes = [Change("scale", float(scale), feature_id)]
        super().__init__(sae, changes, step_range, n_image_tokens)


def _added(sae: LinearSae, feature_id: int, strength: float, normalize: bool) -> Change:
    check_feature(sae, feature_id)
    norm = 1.0 if normalize else float(sae.decoder.weight[:, feature_id].norm())
    return Change("add", float(strength) * norm, feature_id)
