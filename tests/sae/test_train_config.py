"""Training settings against numbers that none may take. Values of other types: tests/test_fields.py."""

import math

import pytest

from fluxscope.errors import ConfigError
from fluxscope.fields import Checked, declared
from fluxscope.sae.matryoshka import Matryoshka
from fluxscope.sae.relu import ReLU
from fluxscope.sae.table import ARCHITECTURES
from fluxscope.sae.topk import TopK
from fluxscope.sae.train_config import TrainConfig

HOSTILE = {int: (-1, 10**30, -(10**30)), float: (math.nan, math.inf, -math.inf, -1.0, 1e300)}


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (kind, name, value)
        for kind in (TrainConfig, *(entry.load() for entry in ARCHITECTURES))
        for name, each in declared(kind).items()
        for value in HOSTILE.get(each.kind, ())
    ],
)
def test_no_number_takes_a_hostile_value(kind: type[Checked], name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^{name} "):
        kind(**{name: value})


@pytest.mark.parametrize(
    "wrong",
    [
        *((TrainConfig, {name: 0}) for name in ("hidden_dim", "steps", "batch_size", "log_every")),
        (TopK, {"k": 0}),
        (ReLU, {"resample_every": 0}),
        *((TrainConfig, {"decay_share": share}) for share in (-0.1, 1.1)),
        (ReLU, {"sparsity_warmup_share": 1.5}),
        (TrainConfig, {"warmup_steps": -5}),
        (TrainConfig, {"lr": 0.0}),
        (TrainConfig, {"clip_norm": 0.0}),
        (Matryoshka, {"levels": (0, 8)}),
    ],
)
def test_what_is_out_of_bounds_is_refused(wrong: tuple[type[Checked], dict]) -> None:
    kind, settings = wrong
    with pytest.raises(ConfigError):
        kind(**settings)


def test_what_may_be_none_or_nothing_may() -> None:
    nested = Matryoshka(aux_coeff=0.0, levels=())
    config = TrainConfig(nested, lr=None, warmup_steps=0, decay_share=0.0)
    assert (config.lr, config.warmup_steps, nested.levels) == (None, 0, ())
    assert ReLU(l1_coeff=0.0).l1_coeff == 0
