"""push: features of any sites are moved by fixed amounts, in their natural sizes.

    add    x' = x + a n W_dec_f           n: the feature's natural size, a: how many of them
    scale  x' = x + (a - 1) z_f W_dec_f   a multiplies the code; 1 changes no bit, 0 takes the feature out
    clamp  x' = x + (a n - z_f) W_dec_f   the code is set to so many natural sizes

The natural size is the feature's mean code where it is active on the side that is wished for: at 1 it is as
strong as the model itself makes it. Amounts far above leave what the model knows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from jaxtyping import Bool
from torch import Tensor

from fluxscope.errors import ConfigError
from fluxscope.models.cells import WHOLE, Window
from fluxscope.models.editing import Rows
from fluxscope.models.edits import Change, Edit, Scope, check_feature
from fluxscope.models.hooks import Hook
from fluxscope.models.sites import Site
from fluxscope.sae import LinearSae

Kind = Literal["add", "scale", "clamp"]


@dataclass(frozen=True)
class Push:
    """One feature's move.

    Attributes:
        amount: how many natural sizes are added or set, or what the code is multiplied by.
        natural: the feature's natural size, in units of its code.

    Raises:
        ConfigError: a number is not finite, or the natural size is not above 0.
    """

    feature: int
    amount: float
    natural: float = 1.0
    kind: Kind = "add"

    def __post_init__(self) -> None:
        if not math.isfinite(self.amount):
            raise ConfigError(f"a feature cannot be moved by {self.amount}", "Give a finite number.")
        if not (math.isfinite(self.natural) and self.natural > 0):
            raise ConfigError(
                f"the natural size of feature {self.feature} is {self.natural}", "It is a number above 0."
            )

    def change(self, sae: LinearSae) -> Change:
        """The same as a change of an SAE's feature; what is added is told by its length."""
        unit = 1.0 if self.kind == "scale" else self.natural
        if self.kind == "add":
            unit *= float(sae.decoder.weight[:, self.feature].norm())
        return Change(self.kind, self.amount * unit, self.feature)

    def dosed(self, dose: float) -> Push:
        """The same with another dose: 0 does nothing, 1 is the move itself."""
        at_rest = 1.0 if self.kind == "scale" else 0.0
        return replace(self, amount=at_rest + dose * (self.amount - at_rest))


@dataclass(frozen=True)
class SiteEdit:
    """What is moved at one site, and when.

    Attributes:
        window: the noise levels between which it acts.
    """

    site: Site
    pushes: tuple[Push, ...]
    window: Window = WHOLE


@dataclass(frozen=True)
class Pushed:
    """Features of several sites, moved by fixed amounts.

    Attributes:
        saes: the SAE of every site, by the site's name.
        edits: in any order; a site may occur with several windows.
        region: the tokens that may change, row-major on the grid; None for all.
        only_active: move a feature only on tokens where it is active.
        keep_norm: bring each token back to the norm that it had.

    Raises:
        ConfigError: there is no such feature.
    """

    saes: Mapping[str, LinearSae]
    edits: tuple[SiteEdit, ...]
    region: Bool[Tensor, " t"] | None = None
    only_active: bool = False
    keep_norm: bool = False

    donors: tuple[str, ...] = ()
    followers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for edit in self.edits:
            for push in edit.pushes:
                check_feature(self.saes[edit.site.name], push.feature)

    def hooks(self, rows: Rows) -> list[Hook]:
        return [self._hook(edit, rows) for edit in self.edits]

    def _hook(self, edit: SiteEdit, rows: Rows) -> Hook:
        sae = self.saes[edit.site.name]
        changes: list[list[Change]] = [[] for _ in range(rows.n)]
        changes[rows.edited] = [push.change(sae) for push in edit.pushes]
        scope = Scope(
            edit.site,
            rows.steps(edit.window),
            region=self.region,
            only_active=self.only_active,
            keep_norm=self.keep_norm,
        )
        return Edit(sae, changes, scope)

    def dosed(self, dose: float) -> Pushed:
        """The same with every move multiplied."""
        edits = (replace(edit, pushes=tuple(push.dosed(dose) for push in edit.pushes)) for edit in self.edits)
        return replace(self, edits=tuple(edits))
