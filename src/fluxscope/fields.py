"""A setting: a dataclass field with its meaning and bounds, and the one check that a value fits it.

Settings of a run, of training and of a command's options all go through here, so that a number means the same
wherever it is written: no NaN, no infinity, no 1.5 for a whole number, nothing absurdly large.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar

from fluxscope.errors import ConfigError, brief

Number = TypeVar("Number", int, float)
Option = TypeVar("Option", int, float, str)

LARGEST_WHOLE, LARGEST_REAL = 2**31 - 1, 1e9
"""Bounds of every number that has no narrower ones of its own, both ways."""

MOST_ITEMS, LONGEST_TEXT = 1000, 4096
"""Items of a list, characters of a text."""

_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_REAL = re.compile(r"[+-]?([0-9]{1,30}(\.[0-9]{0,30})?|\.[0-9]{1,30})([eE][+-]?[0-9]{1,3})?")


def setting(default: Any, help: str, **bounds: Any) -> Any:
    """A field with its meaning and unit, and the bounds that hold for it, or for each item of a list.

    Bounds: `low` and `high` (inclusive), `above` (exclusive), `multiple_of`, `choices`; `least` items, or
    characters; `form`, a regular expression with the words that explain it; `inside`: a folder in out_dir.
    """
    return field(default=default, metadata={"help": help, **bounds})


@dataclass(frozen=True)
class Checked:
    """A dataclass whose fields are checked, and brought to their types, when it is made.

    A subclass with checks of its own calls `super().__post_init__()` first.

    Raises:
        ConfigError: a value is of another type, or out of bounds.
    """

    def __post_init__(self) -> None:
        kind: type = type(self)
        for name, each in declared(kind).items():
            object.__setattr__(self, name, checked(each, getattr(self, name)))


@dataclass(frozen=True)
class Declared:
    """A setting as the package declares it.

    Attributes:
        kind: int, float, bool, str, Path, tuple or dict.
        item: the type of a tuple's items or a dict's values; None of another setting.
    """

    name: str
    kind: type
    optional: bool
    item: type | None
    default: Any
    metadata: Mapping[str, Any]

    @property
    def help(self) -> str:
        return str(self.metadata.get("help", ""))


@functools.cache
def declared(kind: type) -> dict[str, Declared]:
    """The settings of a dataclass by name, each as it was first declared: subclasses change defaults only."""
    found: dict[str, Declared] = {}
    for base in reversed(kind.__mro__):
        own = vars(base).get("__annotations__", {})
        if not dataclasses.is_dataclass(base) or not own.keys() - found.keys():
            continue
        hints = typing.get_type_hints(base)
        for each in dataclasses.fields(base):
            if each.name in own and each.name not in found:
                found[each.name] = _declared(each, hints[each.name])
    return found


def _declared(each: dataclasses.Field[Any], hint: Any) -> Declared:
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)  # an option may say Optional[int]
    parts = typing.get_args(hint) if union else (hint,)
    inner = next(part for part in parts if part is not type(None))
    if typing.get_origin(inner) is typing.Literal:
        inner = type(typing.get_args(inner)[0])
    items = typing.get_args(inner)
    item = (items[-1] if typing.get_origin(inner) is dict else items[0]) if items else None
    outer = typing.get_origin(inner) or inner
    return Declared(each.name, outer, len(parts) > 1, item, each.default, each.metadata)


def checked(each: Declared, value: Any) -> Any:
    """The value in its setting's type.

    Raises:
        ConfigError: it is of another type, or out of bounds.
    """
    if value is None and each.optional:
        return None
    if issubclass(each.kind, Checked) and isinstance(value, each.kind):
        return value  # its own settings were checked when it was made
    if each.kind is Path and isinstance(value, Path):
        _check_text(each.name, str(value))
        return value
    if isinstance(value, Path):
        value = str(value)
    if each.kind is tuple:
        return _items(each, value)
    if each.kind is dict:
        return _table(each, value)
    if each.kind is bool or isinstance(value, str):
        right = isinstance(value, each.kind)
    else:
        right = isinstance(value, numbers.Real) and not isinstance(value, bool)
        right = right and not (each.kind is int and not isinstance(value, numbers.Integral))
        right = right and each.kind in (int, float)
    if not right:
        raise ConfigError(f"{each.name} must be {each.kind.__name__}, not {brief(value)}", each.help)
    if each.kind is not bool and each.kind is not str:
        try:
            value = to_number(value, each.kind)
        except ValueError:
            raise ConfigError(f"{each.name} must be a finite number, not {brief(value)}", each.help) from None
    _check_bounds(each, value)
    return value


def to_number(value: object, kind: type[Number]) -> Number:
    """The number that a value or a text is: the one parser of numbers.

    Raises:
        ValueError: it is none of this kind, or not finite.
    """
    if isinstance(value, str):
        if not (_WHOLE if kind is int else _REAL).fullmatch(value.strip()):
            raise ValueError(f"{brief(value)} is no number")
        number = kind(value.strip())
    elif isinstance(value, bool) or not isinstance(value, numbers.Integral if kind is int else numbers.Real):
        raise ValueError(f"{brief(value)} is no number")
    else:
        try:
            number = kind(typing.cast(Any, value))
        except OverflowError:
            raise ValueError(f"{brief(value)} is too large") from None
    if kind is float and not math.isfinite(number):
        raise ValueError(f"{number} is not finite")
    return number


def to_range(text: str) -> range:
    """The whole numbers of "3", or of "0-5", both ends included.

    Raises:
        ValueError: it is neither, or ends before it begins.
    """
    first, dash, last = text.partition("-")
    begin = to_number(first, int)
    end = to_number(last, int) if dash else begin
    if end < begin:
        raise ValueError(f"{brief(text)} ends before it begins")
    return range(begin, end + 1)


def to_numbers(name: str, text: str, kind: type[Number], **bounds: Any) -> tuple[Number, ...]:
    """The numbers of a list such as "16,32", checked as a setting of that name and those bounds would be.

    Raises:
        ConfigError: it is no such list, holds nothing, or a number is out of bounds.
    """
    found: tuple[Number, ...] = checked(
        Declared(name, tuple, False, kind, (), {"least": 1, "help": "", **bounds}), text
    )
    return found


def to_option(name: str, value: Any, kind: type[Option], **bounds: Any) -> Option:
    """The value of an option that is no setting, checked as a setting of that name and those bounds would be.

    Raises:
        ConfigError: it is of another type, or out of bounds.
    """
    found: Option = checked(Declared(name, kind, False, None, None, {"help": "", **bounds}), value)
    return found


def _items(each: Declared, value: Any) -> tuple[Any, ...]:
    """The items of a list such as "3,13,19", or of a tuple, in the setting's type."""
    if isinstance(value, str):
        _check_text(each.name, value)
        value = [part.strip() for part in value.split(",") if part.strip()]
    kind = each.item
    assert kind is not None
    what, example = {
        int: ("whole numbers", "3,13,19"),
        float: ("finite numbers", "0,0.5,1"),
        str: ("names", "single.1,double.3"),
    }[kind]
    if not isinstance(value, list | tuple) or not _all_of(kind, value):
        raise ConfigError(f"{each.name} cannot be {brief(_plain(value))}", f"Give {what}, such as {example}.")
    if len(value) > MOST_ITEMS:
        raise ConfigError(f"{each.name} has {len(value)} items", f"Give at most {MOST_ITEMS}.")
    if len(value) < each.metadata.get("least", 0):
        raise ConfigError(f"{each.name} is empty", f"Give {what}, such as {example}.")
    items = tuple(str(part) if kind is str else to_number(part, kind) for part in value)
    item = dataclasses.replace(each, kind=kind, metadata={**each.metadata, "least": 0})
    for part in items:
        _check_bounds(item, part)
    return items


def _plain(value: Any) -> Any:
    """A list in the form that flags have, where that is shorter to read."""
    return ",".join(value) if isinstance(value, list) and all(isinstance(v, str) for v in value) else value


def _all_of(kind: type, values: Iterable[Any]) -> bool:
    if kind is str:
        return all(isinstance(value, str | Path) for value in values)
    try:
        for value in values:
            to_number(value, kind)
    except ValueError:
        return False
    return True


def _table(each: Declared, value: Any) -> dict[str, str]:
    """A table of texts, or the same as "key=value" with commas between."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        value = _pairs(each.name, [part for text in value for part in _split_pairs(text)])
    if not isinstance(value, Mapping) or not all(
        isinstance(part, str | Path) for pair in value.items() for part in pair
    ):
        raise ConfigError(
            f"{each.name} cannot be {brief(value)}",
            f'Give a table of names in quotes and paths, such as {{"double.7.attn" = "path"}}. {each.help}',
        )
    if len(value) > MOST_ITEMS:
        raise ConfigError(f"{each.name} has {len(value)} entries", f"Give at most {MOST_ITEMS}.")
    for key, text in value.items():
        _check_text(each.name, str(key))
        _check_text(f"{each.name} of {key}", str(text))
        if not str(key) or not str(text):
            raise ConfigError(f"{each.name} has an empty entry", "Give each a name and a path.")
    return {str(key): str(text) for key, text in value.items()}


def _split_pairs(text: str) -> list[str]:
    """The parts of "a.1=path,b.2=path"; a comma inside a path stays, since no name and "=" follow it."""
    return [part.strip() for part in re.split(r",(?=\s*[a-z]+\.[0-9][a-z0-9._]*=)", text) if part.strip()]


def _pairs(name: str, parts: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in parts:
        key, equals, text = part.partition("=")
        if not equals:
            raise ConfigError(
                f"{name} cannot be {brief(part)}", "Give NAME=PATH, such as double.7.attn=path."
            )
        if key.strip() in found:
            raise ConfigError(f"{name} names {brief(key.strip())} twice", "Name each once.")
        found[key.strip()] = text.strip()
    return found


def _check_bounds(each: Declared, value: Any) -> None:
    bounds = each.metadata
    if isinstance(value, str):
        _check_text(each.name, value)
        _check_form(each, value)
    if "choices" in bounds and value not in bounds["choices"]:
        allowed = ", ".join(str(choice) for choice in bounds["choices"])
        raise ConfigError(f"{each.name} cannot be {brief(value)}", f"Choose one of: {allowed}.")
    if isinstance(value, int | float) and not isinstance(value, bool):
        _check_range(each, value)


def _check_range(each: Declared, value: float) -> None:
    bounds = each.metadata
    largest = LARGEST_WHOLE if isinstance(value, int) else LARGEST_REAL
    low, high = bounds.get("low", -largest), bounds.get("high", largest)
    if value < low:
        raise ConfigError(f"{each.name} is {brief(value)}, but must be at least {low}", each.help)
    if value > high:
        raise ConfigError(f"{each.name} is {brief(value)}, but must be at most {high}", each.help)
    if "above" in bounds and not value > bounds["above"]:
        raise ConfigError(f"{each.name} is {brief(value)}, but must be above {bounds['above']}", each.help)
    unit = bounds.get("multiple_of")
    if unit and value % unit:
        below, over = value // unit * unit, (value // unit + 1) * unit
        raise ConfigError(
            f"{each.name} is {value}, but must be a multiple of {unit}",
            f"Use {over}." if below == 0 else f"Use {below} or {over}.",
        )


def _check_form(each: Declared, value: str) -> None:
    bounds = each.metadata
    if len(value) < bounds.get("least", 0):
        raise ConfigError(f"{each.name} is empty", each.help)
    if "form" in bounds:
        pattern, words = bounds["form"]
        if not re.fullmatch(pattern, value):
            raise ConfigError(f"{each.name} cannot be {brief(value)}", f"Give {words}.")
    if bounds.get("inside"):
        path = PurePosixPath(value)
        inside = path.parts and not path.is_absolute() and ".." not in path.parts
        if not inside or "\\" in value or PureWindowsPath(value).drive:
            raise ConfigError(
                f"{each.name} cannot be {brief(value)}: it must lie inside out_dir",
                "Give a name, such as pictures.",
            )


def _check_text(name: str, text: str) -> None:
    if len(text) > LONGEST_TEXT:
        raise ConfigError(f"{name} has {len(text)} characters", f"Give at most {LONGEST_TEXT}.")
    if any(character < " " or character == "\x7f" or "\ud800" <= character <= "\udfff" for character in text):
        raise ConfigError(f"{name} cannot be {brief(text)}", "Give plain text, without control characters.")
