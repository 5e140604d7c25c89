"""Copying in: what passes named sites in a donor's run takes the place of what passes there in another run.

The donor has the same seed and another prompt. Both runs may stand in one batch, so that no activation needs
keeping; or the donor ran before, and its activations were kept (`capture.listen`). How often the copy brings
about what the donor's prompt asked for is the site's donor score: no edit of natural size can do more there.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from fluxscope.errors import FluxscopeError
from fluxscope.models.capture import Activations
from fluxscope.models.hooks import Hook
from fluxscope.models.sites import Site


@final
class Donor(Hook):
    """Copies activations of donor rows into other rows of a batch.

    Args:
        rows: by each row that is changed, the row that is copied: of the same batch, or of `kept`.
        kept: what passed in a run before; None for a donor in the same batch.
        noise: a seed. Then nothing is copied: each token is moved as far as the donor's is away, in a random
            direction. The control for a change that comes of disturbance alone.

    Raises:
        FluxscopeError: while it acts, a donor that was kept lacks a step, a row or tokens.
    """

    def __init__(
        self,
        sites: Iterable[Site],
        steps: Iterable[int],
        rows: Mapping[int, int],
        kept: Activations | None = None,
        noise: int | None = None,
    ) -> None:
        super().__init__(sites, steps)
        self._rows, self._kept, self._noise = dict(rows), kept, noise

    def act(self, site: Site, step: int, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        into, source = list(self._rows), list(self._rows.values())
        given = self._given(site, step, x)[source].to(x)
        if self._noise is not None:
            given = x[into] + self._disturbance(site, step, given - x[into])
        changed = x.clone()
        changed[into] = given
        return changed

    def _given(self, site: Site, step: int, x: Float[Tensor, "b t d"]) -> Float[Tensor, "n t d"]:
        """What the donor's rows are taken from."""
        if self._kept is None:
            return x
        if (site.name, step) not in self._kept:
            raise FluxscopeError(
                f"the donor was not heard at {site.name} in step {step + 1}",
                "Give both runs the same number of steps, and keep the donor at every site and step.",
            )
        kept = self._kept[site.name, step]
        if kept.shape[1:] != x.shape[1:] or max(self._rows.values()) >= len(kept):
            raise FluxscopeError(
                f"the donor has {len(kept)} rows of {kept.shape[1]} tokens of width {kept.shape[2]} at "
                f"{site.name}, this run has {x.shape[1]} tokens of width {x.shape[2]}",
                "Give both runs the same size of picture and the same number of text tokens.",
            )
        return kept

    def _disturbance(self, site: Site, step: int, way: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        """Random directions of the lengths of `way`; they depend on the seed, the site and the step alone."""
        seed = zlib.crc32(f"{self._noise} {site.name} {step}".encode())
        drawn = torch.randn(way.shape, generator=torch.Generator().manual_seed(seed)).to(way)
        moved: Tensor = drawn * (way.norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True))
        return moved
