"""Ways to damage a file: its bytes, and what it says as JSON, an array, a picture or a checkpoint."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

HOSTILE_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, -(10**30), 0.5, 1e308, -0.0),
    *(
        "",
        " ",
        ".",
        "..",
        "../../stranger.txt",
        "/etc/passwd",
        "C:\\x",
        "a/../../b",
        "x" * 5000,
        "\0",
        "\ud800",
    ),
    *("\x1b[31mred\x1b]0;title\x07", "\u202egnp.exe", "<script>alert(1)</script>", "nan", "1e999", "\n\n"),
    *([], {}, [[]], [None], [0] * 1000, {"a": {"b": {}}}, [[[[[[[[]]]]]]]], ["../x"], {"": ""}),
)
BAD_JSON = (
    *(b"", b"null", b"[]", b"{}", b"NaN", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"[" * 100_000, b'"\\ud800"'),
    *(b"\xef\xbb\xbf{}", b"\xff\xfe{\x00}\x00", b"1" * 10_000, b'{"a": 1e999}', b"{} {}", b"\x00" * 64),
)
CANARY = "stranger.txt"
"""A file beside the folder; nothing may touch it."""


def damaged(path: Path, draw: random.Random) -> str:
    """Damage a file, or put something else in its place; returns what was done, in words."""
    ways: list[Callable[[Path, random.Random], str]] = [flipped, cut, doubled, zeroed, emptied, replaced]
    kind = path.suffix
    if kind in (".json", ".jsonl"):
        ways += [json_changed] * 8 + [json_replaced]
    elif kind in (".npy", ".npz"):
        ways += [npy_header] * 3
    elif kind == ".png":
        ways += [picture_of_another_size] * 2
    elif kind == ".safetensors":
        ways += [safetensors_header] * 3
    return draw.choice(ways)(path, draw)


# --- bytes ---
def flipped(path: Path, draw: random.Random) -> str:
    data = bytearray(path.read_bytes() or b"\0")
    for _ in range(draw.choice((1, 1, 3, 50))):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)
    return "bits flipped"


def cut(path: Path, draw: random.Random) -> str:
    data = path.read_bytes()
    path.write_bytes(data[: draw.randrange(len(data) + 1)])
    return "cut short"


def doubled(path: Path, draw: random.Random) -> str:
    data = path.read_bytes()
    at = draw.randrange(len(data) + 1)
    path.write_bytes(data[:at] + data[draw.randrange(at + 1) :])
    return "a part doubled"


def zeroed(path: Path, draw: random.Random) -> str:
    data = bytearray(path.read_bytes())
    first = draw.randrange(len(data) + 1)
    last = min(len(data), first + draw.choice((1, 16, 4096)))
    data[first:last] = bytes([draw.choice((0, 255))]) * (last - first)
    path.write_bytes(data)
    return "a part blanked"


def emptied(path: Path, draw: random.Random) -> str:
    path.write_bytes(b"")
    return "emptied"


def replaced(path: Path, draw: random.Random) -> str:
    """Gone, a folder, a link out, a link to itself, or another file of the same kind."""
    way = draw.choice(("gone", "folder", "link out", "circle", "other"))
    others = [each for each in path.parent.iterdir() if each.suffix == path.suffix and each != path]
    content = draw.choice(sorted(others)).read_bytes() if others else b"other"
    path.unlink()
    if way == "folder":
        path.mkdir()
    elif way == "link out":
        path.symlink_to(Path(os.environ["FUZZ_PLACE"]) / CANARY)
    elif way == "circle":
        path.symlink_to(path.name)
    elif way == "other":
        path.write_bytes(content)
    return f"replaced: {way}"


# --- JSON ---
def json_replaced(path: Path, draw: random.Random) -> str:
    path.write_bytes(draw.choice(BAD_JSON))
    return "other JSON, or none"


def json_changed(path: Path, draw: random.Random) -> str:
    """One value, key or line changed."""
    lines = path.read_bytes().splitlines() if path.suffix == ".jsonl" else [path.read_bytes()]
    number = draw.randrange(len(lines)) if lines else 0
    try:
        value = json.loads(lines[number])
    except (ValueError, IndexError):
        return json_replaced(path, draw)
    value, words = changed(value, draw)
    lines[number] = json.dumps(value).encode()
    if path.suffix == ".jsonl" and draw.random() < 0.2:
        draw.shuffle(lines)
        words += ", lines shuffled"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return words


def changed(value: Any, draw: random.Random) -> tuple[Any, str]:
    """A copy with one thing in it changed, at a depth that the draw says."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(sorted(value))
        way = draw.random()
        if way < 0.1:
            return {k: v for k, v in value.items() if k != key}, f"without {key}"
        if way < 0.15:
            return {**value, "unknown": draw.choice(HOSTILE_VALUES)}, "a key added"
        inner, words = changed(value[key], draw)
        return {**value, key: inner}, f"{key}: {words}"
    if isinstance(value, list) and value and draw.random() < 0.9:
        place = draw.randrange(len(value))
        way = draw.random()
        if way < 0.1:
            return value[:place] + value[place + 1 :], "an entry less"
        if way < 0.2:
            return [*value[: place + 1], *value[place:]], "an entry twice"
        inner, words = changed(value[place], draw)
        return [*value[:place], inner, *value[place + 1 :]], f"[{place}]: {words}"
    new = draw.choice(HOSTILE_VALUES)
    return new, f"now {str(new)[:40]!r}"


# --- arrays, pictures, checkpoints ---
def npy_header(path: Path, draw: random.Random) -> str:
    """Another shape or type, in a header of the same length."""
    data = path.read_bytes()
    start, end = data.find(b"{"), data.find(b"}")
    if start < 0 or end < 0:
        return flipped(path, draw)
    shapes = ("(1000000000000,)", "(0,)", "(0, 0)", "(-1,)", "()", "(3,)", "(2, 2, 2)", "(1, 1)")
    kinds = ("<f4", "<f8", "|O", ">f4", "<i8", "|S100000", "<c16", "|b1")
    said = f"{{'descr': '{draw.choice(kinds)}', 'fortran_order': False, 'shape': {draw.choice(shapes)}, "
    path.write_bytes(data[:start] + said.encode()[: end - start].ljust(end - start) + data[end:])
    return f"header {said}"


def picture_of_another_size(path: Path, draw: random.Random) -> str:
    """A PNG whose header, with a right checksum, speaks of another size."""
    data = path.read_bytes()
    width, height = draw.choice(((0, 0), (1, 1), (100_000, 100_000), (2**31 - 1, 1), (64, 128)))
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    path.write_bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])
    return f"a header of {width} x {height}"


def safetensors_header(path: Path, draw: random.Random) -> str:
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
    if draw.random() < 0.3 or length > len(data):
        path.write_bytes(struct.pack("<Q", draw.choice((0, 1, 2**40, 2**63, len(data)))) + data[8:])
        return "another length of the header"
    try:
        header, words = changed(json.loads(data[8 : 8 + length]), draw)
    except ValueError:
        return flipped(path, draw)
    new = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(new)) + new + data[8 + length :])
    return f"header {words}"


def fresh_copy(source: Path, target: Path) -> None:
    """A copy of a folder in place of whatever lies there."""
    if target.is_symlink() or target.is_file():
        target.unlink()
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)
