"""Values out of a checkpoint's config, which anyone may have written: checked before they are used."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fluxscope.errors import CheckpointError, clean

MOST_VALUES = 100_000
"""Values of a config that are kept; nested lists that share their parts may stand for far more."""
DEEPEST = 20

_SHORT = reprlib.Repr()
_SHORT.maxdict = _SHORT.maxlist = _SHORT.maxtuple = 40
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 4, 200, 200


def shown(value: Any) -> str:
    """A value in few words fit for a terminal, however long or deep it is."""
    try:
        return clean(value if isinstance(value, str) else _SHORT.repr(value))
    except (ValueError, RecursionError):  # an integer of thousands of digits
        return "a value too long to show"


def plain_config(stored: Any, source: object) -> dict[str, Any]:
    """A checkpoint's config as plain values; empty where there is none.

    Tensors of one number become that number; what is not plain is kept as its description.

    Raises:
        CheckpointError: it holds more values than any config, or is nested too deeply.
    """
    budget = [MOST_VALUES]

    def plain(value: Any, depth: int) -> Any:
        budget[0] -= 1
        if budget[0] < 0 or depth > DEEPEST:
            raise CheckpointError(f"the config in {source} is too large", "It is not an SAE's checkpoint.")
        if isinstance(value, Mapping):
            return {
                name if isinstance(name, str) else shown(name): plain(each, depth + 1)
                for name, each in value.items()
            }
        if isinstance(value, list | tuple | set):
            return [plain(each, depth + 1) for each in value]
        value = _plain(value)
        return value if value is None or isinstance(value, bool | int | float | str) else shown(value)

    return plain(stored, 0) if isinstance(stored, Mapping) else {}


def section(config: Mapping[str, Any], name: str, source: object = "the config") -> Mapping[str, Any]:
    """A config inside a config; empty where it is silent.

    Raises:
        CheckpointError: it is something else.
    """
    value = config.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise _wrong(value, name, source)
    return value


def word(config: Mapping[str, Any], name: str, source: object = "the config") -> str | None:
    """A name; None where the config is silent.

    Raises:
        CheckpointError: it is no text.
    """
    value = config.get(name)
    if value is not None and not isinstance(value, str):
        raise _wrong(value, name, source)
    return value


def flag(config: Mapping[str, Any], name: str, default: bool, source: object = "the config") -> bool:
    """Whether something holds; the default where the config is silent.

    Raises:
        CheckpointError: it is neither true nor false.
    """
    value = config.get(name)
    if value is not None and not isinstance(value, bool):
        raise _wrong(value, name, source)
    return default if value is None else value


def optional_count(config: Mapping[str, Any], name: str, source: object = "the config") -> int | None:
    """A positive integer; None where the config is silent.

    Raises:
        CheckpointError: it is something else.
    """
    value = config.get(name)
    return None if value is None else positive_integer(value, name, source)


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
    return CheckpointError(
        f"{source} says {name} = {shown(value)}", f"Set {name} to the one it was trained with."
    )
