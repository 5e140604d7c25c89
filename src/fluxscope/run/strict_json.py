"""Dataclasses that are JSON files of a run: read with every value's type checked, written in their order.

Nothing that stands in a file is trusted. Numbers are finite, whole numbers are at least 0 (every id, count,
step and seed here is), texts can be written again, and paths stay inside the output folder. What is wrong is
refused with the file, the line and the key. Keys that a record doesn't know are passed over.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, cast

from fluxscope.errors import RecordError
from fluxscope.files import inside, numbered_jsonl, read_json, write_json

Number = int | float
"""A number as JSON has it: what was written as 3 stays 3."""

Kind = TypeVar("Kind", bound="Record")

LARGEST = 2**63 - 1
"""The largest whole number that arrays and seeds hold."""

MEND = "Restore the file, or delete it and run the step that makes it."


def part(meaning: str, *, path: bool = False) -> Any:
    """A key that every such file has.

    Args:
        meaning: one line, for docs/disk-format.md.
        path: it is a path inside the output folder.
    """
    return dataclasses.field(metadata={"meaning": meaning, "path": path})


def ours(meaning: str, *, null: bool = False, path: bool = False) -> Any:
    """A key of ours, which files of other programs need not have: it is then None.

    Args:
        null: None is written as null; else the key is left out.
    """
    metadata = {"meaning": meaning, "path": path, "ours": True, "null": null}
    return dataclasses.field(default=None, metadata=metadata)


def others(meaning: str) -> Any:
    """All keys that no other field stands for; they are written where this field stands."""
    return dataclasses.field(default_factory=dict, metadata={"meaning": meaning, "others": True})


@dataclass(frozen=True)
class Place:
    """Where a value was read.

    Attributes:
        root: the output folder that paths are relative to; None: no path is looked at.
        line: of a JSONL file, from 1; 0 in other files.
        key: such as features[2].feature_id.
    """

    file: Path
    root: Path | None = None
    line: int = 0
    key: str = ""

    def at(self, key: str | int) -> Place:
        """A value inside this one."""
        inner = f"[{key}]" if isinstance(key, int) else f".{key}" if self.key else key
        return dataclasses.replace(self, key=self.key + inner)

    def refuse(self, complaint: str) -> NoReturn:
        line = f", line {self.line}" if self.line else ""
        raise RecordError(f"{self.file}{line}: {self.key or 'the whole'} {complaint}", MEND)


Reader = Callable[[Any, Place], Any]
"""Checks a value and gives it back as the field's type."""


@dataclass(frozen=True)
class Part:
    """A field of a record, as reading, writing and the documentation need it."""

    name: str
    kind: Any
    meaning: str
    read: Reader
    path: bool = False
    ours: bool = False
    null: bool = False
    others: bool = False


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one JSON object holds; a record is a frozen dataclass of `part`s, in the order of its keys."""

    @classmethod
    def from_json(cls: type[Kind], value: Any, place: Place) -> Kind:
        """Check an object that was read.

        Raises:
            RecordError: a key is missing, or its value is of another type.
        """
        if not isinstance(value, dict):
            place.refuse(f"is {in_words(value)}, not an object")
        found = {}
        for each in parts(cls):
            if each.others:
                own = {other.name for other in parts(cls)}
                found[each.name] = each.read({k: v for k, v in value.items() if k not in own}, place)
            elif value.get(each.name) is None and each.ours:
                found[each.name] = None
            elif each.name not in value:
                place.at(each.name).refuse("is missing")
            else:
                found[each.name] = each.read(value[each.name], place.at(each.name))
        return cls(**found)

    def to_json(self) -> dict[str, Any]:
        """The object to write, its keys in the order of the fields."""
        found: dict[str, Any] = {}
        for each in parts(type(self)):
            value = plain(getattr(self, each.name))
            if each.others:
                found |= value
            elif value is not None or each.null or not each.ours:
                found[each.name] = value
        return found

    @classmethod
    def read(cls: type[Kind], path: Path, root: Path | None = None) -> Kind:
        """Read a file that holds one such object.

        Args:
            root: the output folder: paths in the file must lie inside it.

        Raises:
            FluxscopeError: the file is missing, no JSON, or holds something else.
        """
        return cls.from_json(read_json(path), Place(path, root))

    @classmethod
    def read_lines(cls: type[Kind], path: Path, root: Path | None = None) -> Iterator[Kind]:
        """Read a file that holds one such object a line."""
        for line, value in numbered_jsonl(path):
            yield cls.from_json(value, Place(path, root, line))

    def write(self, path: Path) -> None:
        write_json(path, self.to_json())


def parts(kind: type[Record]) -> tuple[Part, ...]:
    """A record's fields, in order."""
    return _parts(cast(Hashable, kind))


@functools.cache
def _parts(kind: Any) -> tuple[Part, ...]:
    hints = typing.get_type_hints(kind)
    return tuple(_part(each, hints[each.name]) for each in dataclasses.fields(kind))


def _part(field: dataclasses.Field[Any], hint: Any) -> Part:
    read = _path if field.metadata.get("path") else reader(hint)
    return Part(field.name, hint, read=read, **field.metadata)


def plain(value: Any) -> Any:
    """A value as JSON writes it."""
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    return value


def in_words(value: Any) -> str:
    """A value that was found, short."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return "null" if value is None else repr(value)[:80]


def without_none(kind: Any) -> tuple[Any, bool]:
    """A type without its None, and whether it had one."""
    union = typing.get_origin(kind) in (types.UnionType, typing.Union)  # a Literal makes the latter
    choices = typing.get_args(kind) if union else (kind,)
    left = [choice for choice in choices if choice is not type(None)]
    return functools.reduce(lambda a, b: a | b, left), len(left) < len(choices)


@functools.cache
def reader(kind: Any) -> Reader:
    """What reads values of a type."""
    kind, nullable = without_none(kind)
    if nullable:
        read = reader(kind)
        return lambda value, place: None if value is None else read(value, place)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return functools.partial(_list, reader(arguments[0]))
    if origin is dict:
        return functools.partial(_object, reader(arguments[1]))
    if origin is Literal:
        return functools.partial(_one_of, arguments)
    return _PLAIN[kind] if kind in _PLAIN else cast(type[Record], kind).from_json


def _int(value: Any, place: Place) -> int:
    if type(value) is not int or not 0 <= value <= LARGEST:
        place.refuse(f"is {in_words(value)}, not a whole number of 0 or more")
    return value


def is_number(value: Any) -> bool:
    """Whether it is a finite number that arrays hold."""
    if type(value) is int:
        return abs(value) <= LARGEST
    return type(value) is float and math.isfinite(value)


def _number(value: Any, place: Place) -> Number:
    if not is_number(value):
        place.refuse(f"is {in_words(value)}, not a finite number")
    return cast(Number, value)


def _text(value: Any, place: Place) -> str:
    if not isinstance(value, str):
        place.refuse(f"is {in_words(value)}, not a text")
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        place.refuse(f"is {in_words(value)}, which is no text that can be written")
    return value


def _bool(value: Any, place: Place) -> bool:
    if not isinstance(value, bool):
        place.refuse(f"is {in_words(value)}, not true or false")
    return value


def _anything(value: Any, place: Place) -> Any:
    return value


_PLAIN: dict[Any, Reader] = {int: _int, Number: _number, str: _text, bool: _bool, Any: _anything}


def _path(value: Any, place: Place) -> str | None:
    """A path inside the output folder, links followed."""
    text = _text(value, place)
    if place.root is not None:
        try:
            inside(place.root, text)
        except ValueError as error:
            place.refuse(f"is {in_words(text)}, {error}")
    return text


def _one_of(choices: tuple[str, ...], value: Any, place: Place) -> str:
    if value not in choices:
        place.refuse(f"is {in_words(value)}, not one of {', '.join(choices)}")
    return cast(str, value)


def _list(read: Reader, value: Any, place: Place) -> list[Any]:
    if not isinstance(value, list):
        place.refuse(f"is {in_words(value)}, not a list")
    return [read(each, place.at(i)) for i, each in enumerate(value)]


def _object(read: Reader, value: Any, place: Place) -> dict[str, Any]:
    if not isinstance(value, dict):
        place.refuse(f"is {in_words(value)}, not an object")
    return {key: read(each, place.at(key)) for key, each in value.items()}
