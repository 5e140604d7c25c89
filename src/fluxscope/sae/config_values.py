"""Values out of a checkpoint's config, which anyone may have written: checked before they are used."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fluxscope.errors import CheckpointError


def positive_integer(value: Any, name: str, source: object = "the config") -> int:
    """Raises CheckpointError unless a value counts something.

    Args:
        source: what said so, for the message.
    """
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _wrong(value, name, source)
    return value


def coefficient(config: Mapping[str, Any], name: str) -> float:
    """The weight of a penalty, which only training needs: 0 where the config is silent.

    Raises:
        CheckpointError: it is no finite number, or below 0.
    """
    value = _plain(config.get(name))
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise _wrong(value, name, "the config")
    return float(value)


def sizes(config: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """A list of positive integers; empty where the config is silent.

    Raises:
        CheckpointError: it is no such list.
    """
    value = config.get(name)
    if value is None:
        return ()
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise _wrong(value, name, "the config")
    return tuple(positive_integer(each, name) for each in value)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value


def _wrong(value: Any, name: str, source: object) -> CheckpointError:
    return CheckpointError(f"{source} says {name} = {value}", f"Set {name} to the one it was trained with.")
