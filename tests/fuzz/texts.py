"""Hostile texts: settings files, flags and prompts."""

from __future__ import annotations

import random
from pathlib import Path

from fluxscope.settings.config import settings_table

NAMES = sorted(settings_table())
VALUES = (
    *(
        "0",
        "-1",
        "1",
        "10**30",
        "1e999",
        "nan",
        "inf",
        "-inf",
        "True",
        "none",
        "''",
        '""',
        "' '",
        "'../../x'",
    ),
    *(
        "'/etc/passwd'",
        "'\\x00'",
        "'\\x1b[31mred'",
        "'\\u202e'",
        "[]",
        "[[]]",
        "[1, 'a']",
        "{}",
        "(1,)",
        "()",
    ),
    *("1_000_000_000_000", "0x10", "'²'", "'5-3'", "'1,2,,3'", "'1e3'", "3.7", "'x' * 3", "b'x'", "99" * 500),
)
FLAGS = (
    *("", "-", "--", "²", "5-3", "1,,2", "nan", "inf", "-inf", "1e999", "0x10", "1_0", "٣", "10" * 20, "-8"),
    *("../..", "/etc/passwd", "\x1b[31mred", "\u202e", "a=b=c", "=", "double.99.ff", "double.5", "1,2,3,nan"),
    *("0,0,1,1", "nan,0,1,1", "9,9,1,1", "all", "0-0", "-1--2", "x" * 3000, "{}", "[1]", "none", "True"),
)
COMMANDS: dict[str, tuple[str, ...]] = {
    "run": ("--steps", "--layer", "--clip-percentile", "--top-features", "--rank-by", "--images-subdir"),
    "analyze": ("--eps-alive", "--top-m-per-feature", "--active-site", "--out-dir"),
    "select": ("--rank-by", "--min-prompts", "--top-features", "--top-examples-per-feature"),
    "steer": ("--feature", "--strength", "--scale", "--region", "--denoise-steps", "--prompt", "--seed"),
    "train": ("--k", "--l1", "--learning-rate", "--steps", "--sites", "--warmup-steps", "--pictures"),
    "site-map": ("--kinds", "--blocks", "--windows", "--cells", "--pairs", "--pair-count"),
    "truth": ("--sites", "--pictures", "--sae", "--features"),
    "doctor": ("--model-id", "--clip-model-id", "--sae", "--out-dir"),
    "sae-info": ("/etc/passwd", "/dev/null", ".", "\x1b[31m", "hf://x/y", "nothing"),
}


def hostile_settings(draw: random.Random) -> tuple[str, bytes]:
    """A settings file, TOML or Python, by its name and contents."""
    name = draw.choice(NAMES) if draw.random() < 0.9 else "unknown\x1b[31m"
    value = draw.choice(VALUES)
    if draw.random() < 0.5:
        text = draw.choice(
            (f"{name} = {value}\n", f"[table]\n{name} = {value}\n", f"{name} = {value}\n" * 2, "[[[[", "\0")
        )
        return "hostile.toml", text.encode()
    text = draw.choice(
        (
            f"class Config:\n    {name}: object = {value}\n",
            f"class Config:\n    {name} = {value}\n",
            f"{name} = {value}\n",
            "class Config:\n    pass\nraise ValueError('\\x1b[31m')\n",
            "class Config(\n",
            f"from dataclasses import dataclass\n@dataclass\nclass Config:\n    {name}: int = {value}\n",
        )
    )
    return "hostile.py", text.encode()


def hostile_flags(draw: random.Random, run: Path) -> tuple[str, ...]:
    """A command with one or two hostile values; none of them is a complete order to compute."""
    command = draw.choice(sorted(COMMANDS))
    if command == "sae-info":
        return command, draw.choice(COMMANDS[command])
    flags = draw.sample(COMMANDS[command], draw.choice((1, 2)))
    given = [f"{flag}={draw.choice(FLAGS)}" for flag in flags]
    place = [] if "--out-dir" in flags else [f"--out-dir={run}"]
    if command in ("site-map", "train", "truth", "steer"):  # what is asked for in earnest would take long
        place.append("--model-id=no/such-model")
    return (command, *given, *place)


def hostile_prompts(draw: random.Random) -> bytes:
    return draw.choice(
        (
            *(b"", b"\n\n", b"# only a comment\n", b"\xff\xfe\x00", b"\xef\xbb\xbfa red circle\n", b"\0\n"),
            *(
                b"a red circle\r\na blue star\r",
                "\x1b[31ma red circle\u202e\n".encode(),
                b"a " * 3000 + b"\n",
            ),
            *(b"a red circle\n" * 3, ("ä" * 500 + "\n").encode(), "🟥 ⭐\n".encode()),
        )
    )
