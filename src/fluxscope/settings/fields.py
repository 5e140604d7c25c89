"""What a setting is: a dataclass field with its meaning and bounds, and the check that a value fits it."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import field
from pathlib import Path
from typing import Any

from fluxscope.errors import ConfigError


def setting(default: Any, help: str, **bounds: Any) -> Any:
    """A field of Config with its meaning and unit, and the bounds that hold for it.

    Bounds: `low` and `high` (inclusive), `multiple_of`, `choices`.
    """
    return field(default=default, metadata={"help": help, **bounds})


def type_of(hint: Any) -> tuple[type, bool]:
    """The type that a field's annotation stands for, and whether None is allowed."""
    if isinstance(hint, types.UnionType):
        inner = next(part for part in typing.get_args(hint) if part is not type(None))
        return typing.get_origin(inner) or inner, True
    return typing.get_origin(hint) or hint, False


def checked(each: dataclasses.Field, hint: Any, value: Any) -> Any:
    """The value in its setting's type.

    Args:
        hint: the field's annotation, evaluated.

    Raises:
        ConfigError: it is of another type, or out of bounds.
    """
    wanted, optional = type_of(hint)
    if value is None and optional:
        return None
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if wanted is str and isinstance(value, Path):
        value = str(value)
    if wanted is tuple and isinstance(value, str | list | tuple):
        value = _items(each.name, hint, value)
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise ConfigError(f"{each.name} must be {wanted.__name__}, not {value!r}", each.metadata["help"])
    _check_bounds(each, value)
    return value


def _items(name: str, hint: Any, values: str | list[Any] | tuple[Any, ...]) -> tuple[Any, ...]:
    """The items of a list such as "3,13,19", or of a tuple, in the setting's type; numbers are finite."""
    kind = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else int
    parts = (
        [part.strip() for part in values.split(",") if part.strip()] if isinstance(values, str) else values
    )
    try:
        items = tuple(kind(part) for part in parts)
        if kind is str or all(math.isfinite(item) for item in items):
            return items
    except (TypeError, ValueError):
        pass
    what, example = ("whole numbers", "3,13,19") if kind is int else ("finite numbers", "0,0.5,1")
    raise ConfigError(f"{name} cannot be {values!r}", f"Give {what}, such as {example}.")


def _check_bounds(each: dataclasses.Field, value: Any) -> None:
    bounds = each.metadata
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{each.name} must be a finite number, not {value}", bounds["help"])
    if "choices" in bounds and value not in bounds["choices"]:
        allowed = ", ".join(str(choice) for choice in bounds["choices"])
        raise ConfigError(f"{each.name} cannot be {value!r}", f"Choose one of: {allowed}.")
    if "low" in bounds and value < bounds["low"]:
        raise ConfigError(f"{each.name} is {value}, but must be at least {bounds['low']}", bounds["help"])
    if "high" in bounds and value > bounds["high"]:
        raise ConfigError(f"{each.name} is {value}, but must be at most {bounds['high']}", bounds["help"])
    unit = bounds.get("multiple_of")
    if unit and value % unit:
        below, above = value // unit * unit, (value // unit + 1) * unit
        raise ConfigError(
            f"{each.name} is {value}, but must be a multiple of {unit}",
            f"Use {above}." if below == 0 else f"Use {below} or {above}.",
        )
