"""detector: features say where, the model says how.

    v = v(source) + w m (v(target) - v(source))

v(target) is what the model, told of the wish, would do with the same latents in the same step; m is 1 on the
tokens where the features' map of the unchanged picture lies above a level, or within a region. Both
velocities are computed in one batch (mixing inside a mask: DiffEdit and Blended Diffusion, arXiv 2210.11427
and 2111.14818; here features give the mask). In the first step nothing is decided that features could be
read from; sizes and many shapes are by 0.8, so that what begins there comes too late for them.

The map adds up the features' codes in their natural sizes, and is smoothed over the 3 x 3 tokens around each.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import final

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor, nn

from fluxscope.errors import ConfigError
from fluxscope.models.cells import Window
from fluxscope.models.editing import Rows
from fluxscope.models.edits import check_feature
from fluxscope.models.hooks import Hook
from fluxscope.models.methods.transport import columns
from fluxscope.models.sites import VELOCITY, Site
from fluxscope.sae import LinearSae, encode_sparse

DECIDED = Window(0.95, 0.0)
"""From here on features say where things are (docs/studies/steering.md)."""

LEVEL = 0.1
"""From this height of the map on a token is meant: neighbours of one where a feature has its natural size."""


@dataclass(frozen=True)
class Seen:
    """Where a coalition of features fires.

    Attributes:
        naturals: each feature's natural size.
        level: a token belongs to the mask from this height of the smoothed map on.
        grid: rows and columns of tokens.

    Raises:
        ConfigError: there is no such feature, or text tokens pass there.
    """

    site: Site
    sae: LinearSae = field(compare=False)
    features: tuple[int, ...]
    naturals: tuple[float, ...]
    grid: tuple[int, int]
    level: float = LEVEL

    def __post_init__(self) -> None:
        assert len(self.features) == len(self.naturals)
        for feature in self.features:
            check_feature(self.sae, feature)
        if self.site.kind.stream != "image":
            raise ConfigError(
                f"features of {self.site.name} are of text tokens: they have no place in the picture",
                "Name features of a site of the image stream.",
            )

    def map(self, x: Float[Tensor, "t d"]) -> Float32[Tensor, " t"]:
        """The coalition's smoothed map; outside the picture it goes on as at its edge."""
        codes = columns(encode_sparse(self.sae, x.to(self.sae.pre_bias.device)), self.features)
        flat = (codes / torch.tensor(self.naturals, device=codes.device)).sum(-1)
        padded = nn.functional.pad(flat.view(1, 1, *self.grid), (1, 1, 1, 1), mode="replicate")
        return nn.functional.avg_pool2d(padded, 3, stride=1).flatten()

    def mask(self, x: Float[Tensor, "t d"]) -> Bool[Tensor, " t"]:
        return self.map(x) >= self.level


@dataclass(frozen=True)
class Blended:
    """The velocity of another prompt, mixed in where features fire or within a region.

    Attributes:
        prompt: what is wished for.
        where: features, or the tokens themselves, row-major on the grid.
        weight: how much of the other velocity: 1 is all of it.
        displaced: a control: rows and columns by which the mask is moved, over the picture's edges.
    """

    prompt: str
    where: Seen | Bool[Tensor, " t"]
    grid: tuple[int, int]
    weight: float = 1.0
    window: Window = DECIDED
    displaced: tuple[int, int] = (0, 0)

    donors: tuple[str, ...] = ()

    @property
    def followers(self) -> tuple[str, ...]:
        return (self.prompt,)

    def hooks(self, rows: Rows) -> list[Hook]:
        return [Blend(self, rows.steps(self.window), rows.followers[self.prompt], rows.edited)]

    def dosed(self, dose: float) -> Blended:
        """The same with another weight."""
        return replace(self, weight=self.weight * dose)


@final
class Blend(Hook):
    """Mixes one row's velocity into another's.

    Attributes:
        masks: where, in each step of the last run.
    """

    def __init__(self, what: Blended, steps: tuple[int, ...], source: int, into: int) -> None:
        reading = [what.where.site] if isinstance(what.where, Seen) else []
        super().__init__([*reading, VELOCITY], steps)
        self._what, self._source, self._into = what, source, into
        self.masks: dict[int, Bool[Tensor, " t"]] = {}

    def act(self, site: Site, step: int, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"] | None:
        where = self._what.where
        if site is not VELOCITY:
            assert isinstance(where, Seen)
            self.masks[step] = where.mask(x[0])  # of the baseline: the unchanged picture
            return None
        if not isinstance(where, Seen):
            self.masks[step] = where
        mask = self.masks[step].to(x.device).view(self._what.grid)
        mask = mask.roll(self._what.displaced, (0, 1)).flatten()[:, None]  # t 1
        own, other = x[self._into].float(), x[self._source].float()
        changed = x.clone()
        changed[self._into] = (own + self._what.weight * mask * (other - own)).to(x.dtype)
        return changed
