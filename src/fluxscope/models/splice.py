"""Does the model still behave when an SAE's reconstruction takes the activation's place?

At one site and step the activation x is replaced: by its reconstruction, by zero, by the mean activation,
by a random dictionary's reconstruction. Each replacement errs in the velocity of that step and in the final
latents; what the SAE recovers is 1 - (its squared error) / (the squared error of a replacement that knows
nothing). The other steps run as they are; those before are taken once for all replacements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from fluxscope.models.hooks import Hook
from fluxscope.models.model import Model
from fluxscope.models.sites import VELOCITY, Site
from fluxscope.models.spec import Embedding, PictureSpec, ResumePoint
from fluxscope.sae.base import LinearSae
from fluxscope.sae.topk import TopKSparseAutoencoder

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
        random_velocity_vs_zero, random_velocity_vs_mean: the control: as many random directions around the
            same mean, as many of them active on a token.
        n_images: pictures that this was measured on.
    """

    velocity_vs_zero: float
    velocity_vs_mean: float
    latents_vs_zero: float
    latents_vs_mean: float
    random_velocity_vs_zero: float
    random_velocity_vs_mean: float
    n_images: int


@final
class Splice(Hook):
    """Replaces what passes a site at one step, and keeps the model's output of that step.

    Attributes:
        velocity: (b, t, c), what the transformer gave in that step, in float32.
    """

    def __init__(self, site: Site, step: int, replace: Replacement) -> None:
        super().__init__([site, VELOCITY], [step])
        self._replace = replace
        self.velocity: Tensor | None = None

    def act(self, site: Site, step: int, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"] | None:
        if site is VELOCITY:
            self.velocity = x.float()
            return None
        return self._replace(x).to(x)


@torch.no_grad()
def spliced_scores(
    model: Model,
    embeddings: Sequence[Embedding],
    seeds: Sequence[int],
    spec: PictureSpec,
    site: Site,
    step: int,
    saes: Sequence[LinearSae],
    batch_size: int = 16,
) -> list[SplicedScores]:
    """Measure SAEs of one site by the model's own behaviour, on pictures that they were not trained on.

    What they have in common runs once.

    Args:
        embeddings, seeds: one a picture.
        step: counted from 0.

    Returns:
        One a SAE.
    """
    true = Undisturbed(model, embeddings, seeds, spec, site, step, batch_size)
    zero = true.errors(torch.zeros_like)
    mean = true.errors(lambda x: true.mean.to(x).expand_as(x))
    return [_scores(true, sae, zero, mean) for sae in saes]


def _scores(true: Undisturbed, sae: LinearSae, zero: Errors, mean: Errors) -> SplicedScores:
    active: list[float] = []

    def reconstruct(x: Tensor) -> Tensor:
        code = sae.encode(x.to(sae.pre_bias))
        active.append(float((code > 0).sum(-1).float().mean()))
        return sae.decode(code)

    ours = true.errors(reconstruct)
    twin = random_twin(sae, round(sum(active) / len(active)), true.mean)
    random = true.errors(lambda x: twin(x.to(sae.pre_bias))[0])
    return SplicedScores(
        1 - ours.velocity / zero.velocity,
        1 - ours.velocity / mean.velocity,
        1 - ours.latents / zero.latents,
        1 - ours.latents / mean.latents,
        1 - random.velocity / zero.velocity,
        1 - random.velocity / mean.velocity,
        true.n_images,
    )


class Undisturbed:
    """The runs that replacements are held against: what each batch's step and end gave, and the mean there.

    Where denoising can be gone on with from the middle, each replacement begins at its step.

    Args:
        embeddings, seeds: one a picture.
        step: counted from 0.

    Attributes:
        mean: (d), of the activation at the site and step, over all tokens.
    """

    def __init__(
        self,
        model: Model,
        embeddings: Sequence[Embedding],
        seeds: Sequence[int],
        spec: PictureSpec,
        site: Site,
        step: int,
        batch_size: int,
    ) -> None:
        self._where = model, spec, site, step
        self.n_images = len(seeds)
        self._batches = []
        passed: list[Tensor] = []

        def note(x: Tensor) -> Tensor:
            passed.append(x.double().mean((0, 1)) * len(x) / len(seeds))
            return x

        for first in range(0, len(seeds), batch_size):
            rows = embeddings[first : first + batch_size], seeds[first : first + batch_size]
            start = None
            if step and model.can_resume:
                start = ResumePoint(model.sample(*rows, spec=spec, stop_after=step - 1), step)
            self._batches.append((rows, start, run_once(model, *rows, spec, site, step, note, start)))
        self.mean = torch.stack(passed).sum(0).float()

    def errors(self, replace: Replacement) -> Errors:
        """What a replacement does."""
        model, spec, site, step = self._where
        size, error = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        for rows, start, true in self._batches:
            made = run_once(model, *rows, spec, site, step, replace, start)
            for place, (a, b) in enumerate(zip(made, true, strict=True)):
                error[place] += float((a - b).square().sum())
                size[place] += float(b.square().sum())
        return Errors(*(error / size).tolist())


def run_once(
    model: Model,
    embeddings: Sequence[Embedding],
    seeds: Sequence[int],
    spec: PictureSpec,
    site: Site,
    step: int,
    replace: Replacement,
    start: ResumePoint | None = None,
) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b t c"]]:
    """The velocity of the step and the final latents of one batch."""
    splice = Splice(site, step, replace)
    latents = model.sample(embeddings, seeds, splice, spec=spec, start=start).float()
    assert splice.velocity is not None
    return splice.velocity, latents


def random_twin(
    sae: LinearSae, k: int, mean: Float[Tensor, " d"] | None = None, seed: int = 0
) -> TopKSparseAutoencoder:
    """What a dictionary gives untrained: as many random unit directions, the k strongest of them active.

    TopK whatever the SAE is, so that both have the same L0: a random ReLU dictionary has half of all latents
    active, and a random threshold means nothing. Such controls come closer to trained SAEs than one thinks
    (arXiv 2602.14111).

    Args:
        k: active latents, at most the SAE's width; none is taken as one.
        mean: of the activations; None for the SAE's own bias, where training began with it.
    """
    twin = TopKSparseAutoencoder(sae.input_dim, sae.hidden_dim, min(max(k, 1), sae.hidden_dim))
    twin.reset_parameters(torch.Generator().manual_seed(seed))
    twin.pre_bias.data.copy_(sae.pre_bias if mean is None else mean)
    return twin.to(sae.pre_bias.device).eval()
