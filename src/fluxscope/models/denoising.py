"""How a model denoises, known without its weights: the noise level of every step, and its forwards."""

from __future__ import annotations

from dataclasses import dataclass

from fluxscope.models.model import Model
from fluxscope.models.spec import PictureSpec
from fluxscope.shapes.shipped import resolve


@dataclass(frozen=True)
class Denoising:
    """The schedule of one picture.

    Attributes:
        sigmas: the noise level before each step, from 1 downwards.
        passes: how often the transformer runs in a step.
    """

    sigmas: tuple[float, ...]
    passes: int

    @property
    def calls(self) -> int:
        """Runs of the transformer for a batch."""
        return len(self.sigmas) * self.passes


def denoising_of(model: Model, spec: PictureSpec) -> Denoising:
    """A model's schedule for such pictures; of the model only its scheduler is loaded."""
    family = model.family
    pipe = family.load_scheduler(resolve(model.model_id), model.dtype, model.pipeline)
    passes = 2 if family.needs_nothing(pipe, spec.guidance) else 1
    return Denoising(family.sigmas(pipe.scheduler, spec), passes)
