"""Denoising only to listen: batch after batch of activations, and no pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from diffusers import FluxPipeline
from jaxtyping import Float
from torch import Tensor

from fluxscope.models.capture import Capture, StepClock
from fluxscope.models.flux import PromptEmbedding
from fluxscope.models.sample import PictureSpec, denoise
from fluxscope.models.sites import Site

Activations = dict[tuple[str, int], Float[Tensor, "b t d"]]
"""What passed in one batch, by site name and step (counted from 0), in the model's precision."""


def listen(
    pipe: FluxPipeline,
    embeddings: Sequence[PromptEmbedding],
    seeds: Sequence[int],
    spec: PictureSpec,
    sites: Sequence[Site],
    steps: Sequence[int],
    batch_size: int,
) -> Iterator[tuple[int, Activations]]:
    """Denoise pictures no farther than the last wanted step and give what passes the sites.

    Args:
        embeddings, seeds: one a picture.
        steps: counted from 0.

    Yields:
        the number of the batch's first picture, and its activations.
    """
    for first in range(0, len(seeds), batch_size):
        heard: Activations = {}

        def receive(site: Site, step: int, x: Tensor, heard: Activations = heard) -> None:
            heard[site.name, step] = x.clone()

        clock = StepClock()
        rows = slice(first, first + batch_size)
        with Capture(pipe.transformer, clock, sites, steps, receive):
            denoise(pipe, embeddings[rows], seeds[rows], spec, clock, stop_after=max(steps))
        yield first, heard
