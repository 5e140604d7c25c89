"""Training settings against numbers that none may take. Values of other types: tests/test_fields.py."""

import math

import pytest

from fluxscope.errors import ConfigError
from fluxscope.fields import declared
from fluxscope.sae.train_config import TrainConfig

HOSTILE = {int: (-1, 10**30, -(10**30)), float: (math.nan, math.inf, -math.inf, -1.0, 1e300)}


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, each in declared(TrainConfig).items() for value in HOSTILE.get(each.kind, ())],
)
def test_no_number_takes_a_hostile_value(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^{name} "):
        TrainConfig(**{name: value})


@pytest.mark.parametrize(
    "wrong",
    [
        *({name: 0} for name in ("hidden_dim", "k", "steps", "batch_size", "log_every", "resample_every")),
        *({"decay_share": share} for share in (-0.1, 1.1)),
        {"sparsity_warmup_share": 1.5},
        {"warmup_steps": -5},
        {"lr": 0.0},
        {"clip_norm": 0.0},
        {"levels": (0, 8)},
    ],
)
def test_what_is_out_of_bounds_is_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        TrainConfig(**wrong)


def test_what_may_be_none_or_nothing_may() -> None:
    config = TrainConfig(lr=None, warmup_steps=0, decay_share=0.0, aux_coeff=0.0, levels=(), l1_coeff=0.0)
    assert (config.lr, config.warmup_steps, config.levels) == (None, 0, ())
