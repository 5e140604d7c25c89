"""transport: features take the codes that they have in a donor's run of the same seed and another prompt.

    x' = x + a sum_f (z_f(donor) - z_f(x)) W_dec_f       f: the features that are carried over

With all features and what the SAE leaves unexplained this is a copy of the donor's activation (activation
patching: Meng et al. 2022, arXiv 2202.05262). How much of the copy's effect is left when only the k features
with the largest differences are carried over says in how few features the control lies.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import final

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from fluxscope.models.cells import WHOLE, Window
from fluxscope.models.editing import Rows
from fluxscope.models.edits import check_feature, moved
from fluxscope.models.hooks import Hook
from fluxscope.models.sites import Site
from fluxscope.sae import LinearSae, SparseCodes, encode_sparse


@dataclass(frozen=True)
class Carried:
    """What is carried over at one site.

    Attributes:
        sae: whose features they are; None to carry over the activation itself.
        features: which; None for all, without what the SAE leaves unexplained.
        stand_ins: a control: features along whose directions those moves are made instead, each token as far
            as it would have moved.

    Raises:
        ConfigError: there is no such feature.
    """

    site: Site
    sae: LinearSae | None = field(default=None, compare=False)
    features: tuple[int, ...] | None = None
    window: Window = WHOLE
    stand_ins: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        assert self.sae is not None or self.features is None, "features are an SAE's"
        assert self.stand_ins is None or len(self.stand_ins) == len(self.features or ())
        if self.sae is not None:
            for feature in (*(self.features or ()), *(self.stand_ins or ())):
                check_feature(self.sae, feature)

    def delta(self, own: Float[Tensor, "t d"], given: Float[Tensor, "t d"]) -> Float32[Tensor, "t d"]:
        """How far each token goes from its own activation towards the donor's."""
        if self.sae is None:
            return given.float() - own.float()
        codes = encode_sparse(self.sae, torch.stack([own, given]).to(self.sae.pre_bias.device))
        if self.features is None:
            return self._all(codes).to(own.device)
        mine, theirs = columns(codes, self.features).chunk(2)  # t k
        directions = self.sae.decoder.weight.detach().float()  # d f
        delta = (theirs - mine) @ directions[:, list(self.features)].T
        if self.stand_ins is not None:
            other = (theirs - mine) @ directions[:, list(self.stand_ins)].T
            far, went = delta.norm(dim=-1, keepdim=True), other.norm(dim=-1, keepdim=True)
            delta = other * (far / went.clamp_min(torch.finfo(went.dtype).tiny))
        return delta.to(own.device)

    def _all(self, codes: SparseCodes) -> Float32[Tensor, "t d"]:
        """The difference of the reconstructions, a few tokens' dense codes at a time."""
        assert self.sae is not None
        half, parts = codes.n_tokens // 2, []
        for first in range(0, half, 256):
            last = min(first + 256, half)
            mine, theirs = (codes.rows(slice(first + at, last + at)).to_dense() for at in (0, half))
            parts.append((theirs - mine) @ self.sae.decoder.weight.detach().float().T)
        return torch.cat(parts)


def columns(codes: SparseCodes, features: tuple[int, ...]) -> Float32[Tensor, "t k"]:
    """The codes of some features at every token, dense."""
    place = codes.feature.new_full((codes.n_features,), -1, dtype=torch.long)
    place[list(features)] = torch.arange(len(features), device=place.device)
    column = place[codes.feature.long()]
    wanted = column >= 0
    dense = codes.value.new_zeros(codes.n_tokens, len(features))
    dense[codes.token()[wanted], column[wanted]] = codes.value[wanted]
    return dense


@dataclass(frozen=True)
class Transported:
    """Codes of a donor's run, carried over at several sites.

    Attributes:
        prompt: the donor's.
        carried: what, at which sites and when.
        share: how far towards the donor's codes: 1 is all the way.
        region: the tokens that may change, row-major on the grid; None for all.
        keep_norm: bring each token back to the norm that it had.
    """

    prompt: str
    carried: tuple[Carried, ...]
    share: float = 1.0
    region: Bool[Tensor, " t"] | None = None
    keep_norm: bool = False

    followers: tuple[str, ...] = ()

    @property
    def donors(self) -> tuple[str, ...]:
        return (self.prompt,)

    def hooks(self, rows: Rows) -> list[Hook]:
        return [
            Transport(self, each, rows.steps(each.window), rows.donors[self.prompt], rows.edited)
            for each in self.carried
        ]

    def dosed(self, dose: float) -> Transported:
        """The same going only a share of the way."""
        return replace(self, share=self.share * dose)


@final
class Transport(Hook):
    """Carries codes at one site from one row of a batch into another."""

    def __init__(self, what: Transported, carried: Carried, steps: tuple[int, ...], source: int, into: int):
        super().__init__([carried.site], steps)
        self._what, self._carried, self._source, self._into = what, carried, source, into

    def act(self, site: Site, step: int, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        own = x[self._into]
        delta = self._carried.delta(own, x[self._source]) * self._what.share
        if self._what.region is not None:
            delta = delta * self._what.region.to(x.device)[:, None]  # t 1
        changed = x.clone()
        changed[self._into] = moved(own[None], delta[None], self._what.keep_norm)[0]
        return changed
