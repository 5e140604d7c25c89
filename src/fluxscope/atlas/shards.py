"""Data for a page without a build step: classic scripts that hand over one value each.

A page opened from a folder may not fetch; it may load `<script src>`. A shard is such a script.
"""

from __future__ import annotations

import base64
import json
import unicodedata
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from fluxscope.errors import JOINERS

LONGEST_TEXT = 2000
EFFORT = 7
"""Of deflate: higher levels take twice the time for one hundredth less."""


def write_shard(folder: Path, name: str, value: Any) -> None:
    """Write `data/{name}.js`, which calls `fluxscopeShard(name, text)`: JSON, deflated, in base64."""
    path = folder / "data" / f"{name}.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")
    coded = base64.b64encode(zlib.compress(text, EFFORT)).decode("ascii")
    path.write_text(f"fluxscopeShard({json.dumps(name)},{json.dumps(coded)});\n", encoding="ascii")


def rounded(value: Any, digits: int = 4) -> float | None:
    """A number for the page; None where it was not measured."""
    return None if value is None or not np.isfinite(value) else float(f"{float(value):.{digits}g}")


def shown(text: str) -> str:
    """A text of a file, with what would turn or hide its neighbours replaced, and an end."""
    harmless = "".join(
        "\ufffd" if unicodedata.category(letter) in ("Cc", "Cf", "Cs") and letter not in JOINERS else letter
        for letter in text[:LONGEST_TEXT]
    )
    return harmless + ("..." if len(text) > LONGEST_TEXT else "")
