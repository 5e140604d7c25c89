"""Listening: activations at any sites and steps, handed over as they pass.

    model.sample(prompts, seeds, Capture(sites, steps, receive))

`receive(site, step, x)` gets the activation itself (not a copy), in the model's precision. Nothing is kept
here: whoever receives decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import final

from jaxtyping import Float
from torch import Tensor

from fluxscope.models.hooks import Hook
from fluxscope.models.model import Model
from fluxscope.models.sites import Site
from fluxscope.models.spec import Embedding, PictureSpec

Receive = Callable[[Site, int, Float[Tensor, "b t d"]], None]

Activations = dict[tuple[str, int], Float[Tensor, "b t d"]]
"""What passed in one batch, by site name and step (counted from 0), in the model's precision."""


@final
class Capture(Hook):
    """Hands each activation at the wanted sites and steps to `receive`."""

    def __init__(self, sites: Iterable[Site], steps: Iterable[int], receive: Receive) -> None:
        super().__init__(sites, steps)
        self._receive = receive

    def act(self, site: Site, step: int, x: Float[Tensor, "b t d"]) -> None:
        self._receive(site, step, x)


def listen(
    model: Model,
    embeddings: Mapping[str, Embedding],
    prompts: Sequence[str],
    seeds: Sequence[int],
    spec: PictureSpec,
    sites: Sequence[Site],
    steps: Sequence[int],
    batch_size: int,
) -> Iterator[tuple[int, Activations]]:
    """Denoise pictures no farther than the last wanted step and give what passes the sites.

    Args:
        embeddings: of all prompts; those of a batch are asked for when it is made.
        prompts, seeds: one a picture.
        steps: counted from 0.

    Yields:
        the number of the batch's first picture, and its activations.
    """
    for first in range(0, len(seeds), batch_size):
        heard: Activations = {}

        def receive(site: Site, step: int, x: Tensor, heard: Activations = heard) -> None:
            heard[site.name, step] = x.clone()

        rows = slice(first, first + batch_size)
        capture = Capture(sites, steps, receive)
        batch = [embeddings[prompt] for prompt in prompts[rows]]
        model.sample(batch, seeds[rows], capture, spec=spec, stop_after=max(steps))
        yield first, heard
