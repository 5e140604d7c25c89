"""JSON, strict: NaN and Infinity are refused where they arise; lists of records, one a line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fluxscope.errors import FluxscopeError, machine_fault
from fluxscope.files.writing import explain_os_error, write_text


def write_json(path: Path | str, value: Any) -> None:
    """Write strict JSON, indented. NumPy scalars and arrays are written as numbers and lists.

    Raises:
        ValueError: for NaN or Infinity, which JSON does not have.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def read_json(path: Path | str) -> Any:
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FluxscopeError(f"{path} is not there", "Run the step that makes it.") from None
    except OSError as error:
        told = FluxscopeError(f"{path} cannot be read ({error.strerror})", "See to its rights.")
        raise machine_fault(error, path, "read") or told from None
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, thousands of digits or brackets
        raise FluxscopeError(f"{path} is not valid JSON ({error})", "Delete it and make it again.") from None


def append_jsonl(path: Path | str, records: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
    """Append one record, or several, one line each, flushed to the disk before returning."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [records] if isinstance(records, Mapping) else records
    try:
        with path.open("ab") as file:
            file.write(_lines(rows).encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise explain_os_error(error, path) from error


def write_jsonl(path: Path | str, records: Sequence[Mapping[str, Any]]) -> None:
    """Write all the records of a file, one line each: the whole file or nothing."""
    write_text(path, _lines(records))


def _lines(records: Sequence[Mapping[str, Any]]) -> str:
    return "".join(
        json.dumps(record, ensure_ascii=False, allow_nan=False, default=_plain) + "\n" for record in records
    )


def read_jsonl(path: Path | str) -> list[dict[str, Any]]:
    """Read one record a line. A last line without its end, left by a killed writer, is not a record."""
    return [record for _, record in numbered_jsonl(path)]


def numbered_jsonl(path: Path | str) -> Iterator[tuple[int, Any]]:
    """The records of `read_jsonl`, each with its line, counted from 1."""
    for number, line in enumerate(Path(path).read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError):
            raise FluxscopeError(
                f"line {number} of {path} is not valid JSON", "Restore the file, or start in a new folder."
            ) from None
