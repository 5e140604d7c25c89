"""Intervening: activations changed at a site while the model denoises, each row of a batch in its own way.

Every change is made by a difference, x + weight * delta, so that what isn't changed stays as it was, bit
for bit, and so does everything the SAE failed to reconstruct:

    add    delta = amount * u_f                  u_f: the feature's unit decoder direction
    scale  delta = (amount - 1) * z_f * W_dec_f  decode(z') - decode(z), as the decoder is linear; 0 ablates
    clamp  delta = (amount - z_f) * W_dec_f      the code set to a value

z is the code of the activation as it passes. The weight is the schedule's factor for the step, 0 outside the
region, and 0 where the feature is silent when only active tokens are meant. Where norms are kept, each token
is brought back to the norm that it had. Edits over several sites at once: `editing.py` and `methods/`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor, nn

from fluxscope.errors import ConfigError
from fluxscope.models.hooks import Hook
from fluxscope.models.sites import Site
from fluxscope.sae import LinearSae, SparseCodes, encode_sparse

KINDS = ("add", "scale", "clamp")
SCHEDULES = ("constant", "fade_out", "fade_in")


@dataclass(frozen=True)
class Change:
    """One change of one row of a batch.

    Attributes:
        kind: add, scale or clamp.
        amount: what is added along the direction, what the code is multiplied by, or what it is set to.
        feature: the feature; None to add along a direction of its own.
        direction: what to add along where there is no feature; it is given unit norm.

    Raises:
        ConfigError: the amount is not finite.
    """

    kind: str
    amount: float
    feature: int | None = None
    direction: Float[Tensor, " d"] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        assert self.kind in KINDS, f"unknown kind of change: {self.kind}"
        assert (self.feature is None) != (self.direction is None), "a feature or a direction, one of the two"
        assert self.feature is not None or self.kind == "add", "a direction can only be added along"
        if not math.isfinite(self.amount):
            raise ConfigError(f"a feature cannot be steered by {self.amount}", "Give a finite number.")


Row = Sequence[Change]
"""The changes of one picture of a batch; none for the baseline."""


@dataclass(frozen=True)
class Scope:
    """Where and when changes act.

    Attributes:
        site: the place in the model.
        steps: the denoising steps, counted from 0.
        factors: what a change is multiplied by at each of these steps; None for 1 at all.
        region: the tokens that may change; None for all.
        only_active: change a token only where the feature is active on it.
        keep_norm: bring each token back to the norm that it had.
    """

    site: Site
    steps: Sequence[int]
    factors: tuple[float, ...] | None = None
    region: Bool[Tensor, " t"] | None = None
    only_active: bool = False
    keep_norm: bool = False

    def __post_init__(self) -> None:
        assert self.factors is None or len(self.factors) == len(self.steps)
        if self.region is not None and self.site.kind.stream != "image":
            raise ConfigError(
                f"a region of the picture means nothing at {self.site.name}, where text tokens pass",
                "Leave the region out, or steer at a site of the image stream.",
            )

    def factor(self, step: int) -> float:
        return 1.0 if self.factors is None else self.factors[self.steps.index(step)]


def schedule(name: str, steps: range) -> tuple[float, ...]:
    """The factor of each step: 1 throughout, falling from 1 towards 0, or rising to 1."""
    n = len(steps)
    if name == "fade_out":
        return tuple((n - i) / n for i in range(n))
    if name == "fade_in":
        return tuple((i + 1) / n for i in range(n))
    assert name == "constant", f"unknown schedule: {name}"
    return (1.0,) * n


def box_to_tokens(
    box: tuple[int, int, int, int], height: int, width: int, patch: int = 16
) -> Bool[Tensor, " t"]:
    """The image tokens that a box in pixels (x0, y0, x1, y1; ends exclusive) touches, as a mask (t).

    Raises:
        ConfigError: the box is empty or lies outside the picture.
    """
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ConfigError(
            f"the region {x0},{y0},{x1},{y1} is no box inside a picture of {width} x {height} pixels",
            "Give x0,y0,x1,y1 with x0 < x1 and y0 < y1, in pixels from the upper left corner.",
        )
    mask = torch.zeros(height // patch, width // patch, dtype=torch.bool)
    mask[y0 // patch : -(-y1 // patch), x0 // patch : -(-x1 // patch)] = True
    return mask.flatten()  # rows x columns -> t


@final
class Edit(Hook):
    """Changes the rows of a batch: `model.sample(prompts, seeds, Edit(sae, rows, scope))`.

    Args:
        sae: whose features they are, on any device.
        rows: the changes of each row of the batch.

    Raises:
        ConfigError: a feature that there is not.
    """

    def __init__(self, sae: LinearSae, rows: Sequence[Row], scope: Scope) -> None:
        super().__init__([scope.site], scope.steps)
        self._sae = sae
        self._scope = scope
        self._columns = columns_of(sae, rows)
        self._n_rows = len(rows)

    def act(self, site: Site, step: int, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"] | None:
        assert len(x) == self._n_rows, f"{len(x)} rows pass, {self._n_rows} are to be changed"
        delta = delta_of(self._sae, x, self._columns, self._scope, self._scope.factor(step))
        return None if delta is None else moved(x, delta, self._scope.keep_norm)


def moved(
    x: Float[Tensor, "b t d"], delta: Float32[Tensor, "b t d"], keep_norm: bool = False
) -> Float[Tensor, "b t d"]:
    """x + delta in x's precision; with `keep_norm` each token has the norm that it had in x.

    Where delta is 0 no bit changes, as the ratio of norms is then exactly 1.
    """
    changed = x.float() + delta
    if keep_norm:
        old, new = x.float().norm(dim=-1, keepdim=True), changed.norm(dim=-1, keepdim=True)  # b t 1
        changed = changed * (old / new.clamp_min(torch.finfo(new.dtype).tiny))
    return changed.to(x.dtype)


@dataclass(frozen=True)
class Column:
    """One kind of change of one feature or direction, for all rows: NaN where a row has none of it.

    Attributes:
        direction: what delta is a multiple of: unit norm to add, the decoder's column to scale or clamp.
    """

    kind: str
    feature: int | None
    direction: Float32[Tensor, " d"]
    amounts: Float32[Tensor, " b"]


def columns_of(sae: LinearSae, rows: Sequence[Row]) -> list[Column]:
    """The rows' changes, gathered by kind and feature or direction."""
    columns: dict[tuple[Any, ...], Column] = {}
    for number, row in enumerate(rows):
        for change in row:
            key = (change.kind, change.feature, None if change.direction is None else id(change.direction))
            if key not in columns:
                unchanged = torch.full((len(rows),), math.nan)
                columns[key] = Column(change.kind, change.feature, direction_of(sae, change), unchanged)
            assert columns[key].amounts[number].isnan(), "a row makes the same kind of change once a feature"
            columns[key].amounts[number] = change.amount
    return list(columns.values())


def direction_of(sae: LinearSae, change: Change) -> Float32[Tensor, " d"]:
    """What a change moves along.

    Raises:
        ConfigError: there is no such feature, or a direction of another width than the SAE's.
    """
    if change.direction is not None:
        assert change.direction.shape == (sae.input_dim,)
        return nn.functional.normalize(change.direction.float(), dim=0)
    check_feature(sae, change.feature)
    column = sae.decoder.weight[:, change.feature].detach().float()
    return nn.functional.normalize(column, dim=0) if change.kind == "add" else column


def check_feature(sae: LinearSae, feature: int | None) -> None:
    """Raise ConfigError unless the SAE has this feature."""
    if feature is None or not 0 <= feature < sae.hidden_dim:
        raise ConfigError(
            f"there is no feature {feature}", f"This SAE's features are 0 to {sae.hidden_dim - 1}."
        )


def delta_of(
    sae: LinearSae, x: Float[Tensor, "b t d"], columns: Sequence[Column], scope: Scope, factor: float = 1.0
) -> Float32[Tensor, "b t d"] | None:
    """The sum of all changes of an activation; None when there are none."""
    if not columns:
        return None
    codes = None
    if any(_reads_code(column, scope) for column in columns):
        codes = encode_sparse(sae, x.to(sae.pre_bias.device))
    along = torch.stack([_along(column, codes, x, scope) for column in columns], dim=-1)  # b t c
    total = along @ torch.stack([column.direction for column in columns]).to(x.device)  # c d
    if scope.region is not None:
        total *= scope.region.to(x.device)[:, None]  # t 1
    return total * factor


def _reads_code(column: Column, scope: Scope) -> bool:
    return column.kind != "add" or (scope.only_active and column.feature is not None)


def _along(
    column: Column, codes: SparseCodes | None, x: Float[Tensor, "b t d"], scope: Scope
) -> Float32[Tensor, "b t"]:
    """How far one column moves each token along its direction."""
    z = x.new_zeros(1, dtype=torch.float32)
    if _reads_code(column, scope):
        assert codes is not None and column.feature is not None
        z = codes.column(column.feature).to(x.device).view(x.shape[:2])  # b*t -> b t
    amounts = column.amounts.to(x.device)[:, None]  # b 1
    along = AMOUNT_TO_STEP[column.kind](amounts, z).nan_to_num(0.0).expand(x.shape[:2])  # b t
    if scope.only_active and column.feature is not None:
        along = along * (z > 0)
    return along


AMOUNT_TO_STEP: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda amount, z: amount,
    "scale": lambda amount, z: (amount - 1) * z,
    "clamp": lambda amount, z: amount - z,
}
"""How far each kind of change goes along its direction, from its amount (b 1) and the code (b t)."""
