"""The control of an edit: as much of a change that has nothing to do with the wish.

push, transport  each feature's move is made along another feature's direction, drawn from those that are
                 active at that site; a token moves as far as it did (of several pushes: their sum)
detector         the same mask elsewhere: moved by a quarter at least, over the picture's edges
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from fluxscope.models.editing import Method
from fluxscope.models.methods.detector import Blended
from fluxscope.models.methods.push import Push, Pushed, SiteEdit
from fluxscope.models.methods.transport import Carried, Transported
from fluxscope.sae import LinearSae


def control_of(method: Method, live: Mapping[str, Sequence[int]], seed: int) -> Method:
    """A method's control.

    Args:
        live: by site, the features to draw from.
        seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    if isinstance(method, Blended):
        rows, columns = (int(rng.integers(n // 4, n - n // 4 + 1)) for n in method.grid)
        return replace(method, displaced=(rows, columns))
    if isinstance(method, Transported):
        return replace(method, carried=tuple(_other_carried(each, live, rng) for each in method.carried))
    assert isinstance(method, Pushed), f"no control of a {type(method).__name__}"
    return replace(method, edits=tuple(_other_pushes(each, method.saes, live, rng) for each in method.edits))


def drawn(taken: Sequence[int], live: Sequence[int], n_features: int, rng: np.random.Generator) -> list[int]:
    """As many live features as are taken, none of them; of all features where too few are live."""
    free = sorted(set(live) - set(taken))
    if len(free) < len(taken):
        free = sorted(set(range(n_features)) - set(taken))
    return [int(f) for f in rng.choice(free, len(taken), replace=len(free) < len(taken))]


def _other_carried(carried: Carried, live: Mapping[str, Sequence[int]], rng: np.random.Generator) -> Carried:
    assert carried.sae is not None, "the control of a whole copy is a donor's noise"
    here = live.get(carried.site.name, ())
    features = tuple(here) if carried.features is None else carried.features
    others = drawn(features, here, carried.sae.hidden_dim, rng)
    return replace(carried, features=features, stand_ins=tuple(others))


def _other_pushes(
    edit: SiteEdit,
    saes: Mapping[str, LinearSae],
    live: Mapping[str, Sequence[int]],
    rng: np.random.Generator,
) -> SiteEdit:
    """The same amounts of other features, all scaled so that their sum is as long."""
    sae = saes[edit.site.name]
    own = [push.feature for push in edit.pushes]
    others = drawn(own, live.get(edit.site.name, ()), sae.hidden_dim, rng)
    pushes = [replace(push, feature=f) for push, f in zip(edit.pushes, others, strict=True)]
    far, went = (_sum_of(sae, each) for each in (edit.pushes, pushes))
    ratio = float(far / went) if went > 0 else 1.0
    return replace(
        edit, pushes=tuple(replace(p, natural=p.natural * ratio) if p.kind == "add" else p for p in pushes)
    )


def _sum_of(sae: LinearSae, pushes: Sequence[Push]) -> torch.Tensor:
    """The length of what is added."""
    directions = sae.decoder.weight.detach().float()
    total = torch.zeros(sae.input_dim, device=directions.device)
    for push in pushes:
        if push.kind == "add":
            total += push.amount * push.natural * directions[:, push.feature]
    length: torch.Tensor = total.norm()
    return length
