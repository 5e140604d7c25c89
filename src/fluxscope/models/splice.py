"""Does the model still behave when an SAE's reconstruction takes the activation's place?

At one site and step the activation x is replaced: by its reconstruction, by zero, by the mean activation,
by a random dictionary's reconstruction. Each replacement errs in the velocity of that step and in the final
latents; what the SAE recovers is 1 - (its squared error) / (the squared error of a replacement that knows
nothing). The other steps run as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FluxPipeline
from jaxtyping import Float
from torch import Tensor, nn

from fluxscope.models.capture import StepClock
from fluxscope.models.flux import PromptEmbedding
from fluxscope.models.sample import PictureSpec, denoise
from fluxscope.models.sites import Site
from fluxscope.sae import LinearSae

Replacement = Callable[[Float[Tensor, "b t d"]], Float[Tensor, "b t d"]]


@dataclass(frozen=True)
class Errors:
    """Squared errors against the undisturbed run, summed over everything and divided by its own size.

    Attributes:
        velocity: of the model's output in the spliced step.
        latents: of the final latents.
    """

    velocity: float
    latents: float


@dataclass(frozen=True)
class SplicedScores:
    """How much of the model's behaviour is left; 1 is all, 0 what the replacement in the name leaves.

    Attributes:
        velocity_vs_zero, velocity_vs_mean: recovered in the step's velocity, against zero and mean ablation.
        latents_vs_zero, latents_vs_mean: the same in the final latents.
        random_velocity_vs_zero, random_velocity_vs_mean: the control: a dictionary of random directions of
            the same size and architecture, reading activations of the same mean and scale.
        n_images: pictures that this was measured on.
    """

    velocity_vs_zero: float
    velocity_vs_mean: float
    latents_vs_zero: float
    latents_vs_mean: float
    random_velocity_vs_zero: float
    random_velocity_vs_mean: float
    n_images: int


class Splice:
    """A hook that replaces what passes a site at one step, and keeps the model's output of that step."""

    def __init__(
        self, transformer: nn.Module, clock: StepClock, site: Site, step: int, replace: Replacement | None
    ) -> None:
        self._transformer, self._module = transformer, site.module(transformer)
        self._clock, self._site, self._step, self._replace = clock, site, step, replace
        self._handles: list[Any] = []
        self.velocity: Tensor | None = None

    def __enter__(self) -> Splice:
        self._handles = [
            self._module.register_forward_hook(self._swap),
            self._transformer.register_forward_hook(self._note),
        ]
        return self

    def _swap(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        if self._clock.step != self._step or self._replace is None:
            return None
        x = self._site.get(output)
        return self._site.put(output, self._replace(x).to(x))

    def _note(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._clock.step == self._step:
            self.velocity = output[0].float()

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()


@torch.no_grad()
def spliced_scores(
    pipe: FluxPipeline,
    embeddings: Sequence[PromptEmbedding],
    seeds: Sequence[int],
    spec: PictureSpec,
    site: Site,
    step: int,
    sae: LinearSae,
    batch_size: int = 16,
) -> SplicedScores:
    """Measure an SAE by the model's own behaviour, on pictures that it was not trained on.

    Args:
        embeddings, seeds: one a picture.
        step: counted from 0.
    """
    mean, twin = sae.pre_bias, random_twin(sae)  # training begins with the mean in pre_bias
    replacements: dict[str, Replacement] = {
        "sae": lambda x: sae(x.to(sae.pre_bias))[0],
        "zero": torch.zeros_like,
        "mean": lambda x: mean.to(x).expand_as(x),
        "random": lambda x: twin(x.to(sae.pre_bias))[0],
    }
    size, errors = [0.0, 0.0], {name: [0.0, 0.0] for name in replacements}
    for first in range(0, len(seeds), batch_size):
        rows = slice(first, first + batch_size)
        true = run_once(pipe, embeddings[rows], seeds[rows], spec, site, step, None)
        for place, tensor in enumerate(true):
            size[place] += float(tensor.square().sum())
        for name, replace in replacements.items():
            made = run_once(pipe, embeddings[rows], seeds[rows], spec, site, step, replace)
            for place, (a, b) in enumerate(zip(made, true, strict=True)):
                errors[name][place] += float((a - b).square().sum())
    found = {name: Errors(v / size[0], z / size[1]) for name, (v, z) in errors.items()}
    return SplicedScores(
        1 - found["sae"].velocity / found["zero"].velocity,
        1 - found["sae"].velocity / found["mean"].velocity,
        1 - found["sae"].latents / found["zero"].latents,
        1 - found["sae"].latents / found["mean"].latents,
        1 - found["random"].velocity / found["zero"].velocity,
        1 - found["random"].velocity / found["mean"].velocity,
        len(seeds),
    )


def run_once(
    pipe: FluxPipeline,
    embeddings: Sequence[PromptEmbedding],
    seeds: Sequence[int],
    spec: PictureSpec,
    site: Site,
    step: int,
    replace: Replacement | None,
) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b t c"]]:
    """The velocity of the step and the final latents of one batch."""
    clock = StepClock()
    with Splice(pipe.transformer, clock, site, step, replace) as splice:
        latents = denoise(pipe, embeddings, seeds, spec, clock).float()
    assert splice.velocity is not None
    return splice.velocity, latents


def random_twin(sae: LinearSae, seed: int = 0) -> LinearSae:
    """An SAE of the same kind and place with random directions: what a dictionary gives untrained."""
    twin = type(sae).from_config(sae.input_dim, sae.hidden_dim, sae.config())
    twin.reset_parameters(torch.Generator().manual_seed(seed))
    twin.pre_bias.data.copy_(sae.pre_bias)
    return twin.to(sae.pre_bias.device).eval()
