"""Reading a run's prompts and manifest, by the names that existing scripts import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fluxscope.errors import MissingInputError, RunDirError
from fluxscope.files import append_jsonl, read_json, read_jsonl, write_json

__all__ = [
    "append_jsonl",
    "count_manifest_rows",
    "ensure_dir",
    "load_manifest",
    "read_json",
    "read_jsonl",
    "read_prompts",
    "write_json",
]


def ensure_dir(path: Path | str) -> Path:
    """Make a folder, and those above it, unless it is there."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    return path


def read_prompts(path: Path | str) -> list[str]:
    """Read prompts, one a line; blank lines are skipped.

    Raises:
        MissingInputError: the file is missing, holds no prompt, or is no text.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingInputError(
            f"prompts file not found: {path}", "Set prompts_path to a file, one prompt a line."
        )
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise MissingInputError(
            f"{path} is not UTF-8 text", "Save the prompts as plain UTF-8 text."
        ) from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise MissingInputError(f"{path} holds no prompts", "Write at least one prompt, one a line.")
    return prompts


def load_manifest(
    manifest_path: Path | str, out_dir: Path | str
) -> tuple[list[dict[str, Any]], dict[int, dict[str, Any]]]:
    """Read the manifest: its records in order, and the same records by image_id.

    Args:
        out_dir: the folder that the paths in the manifest are relative to; in the records returned they
            are joined to it.

    Raises:
        MissingInputError: the manifest is missing or lists nothing.
        RunDirError: an image is listed twice.
    """
    manifest_path, out_dir = Path(manifest_path), Path(out_dir)
    if not manifest_path.is_file():
        raise MissingInputError(f"{manifest_path} is not there", "Run step 1 first: fluxscope collect")
    records = [{**row, "image_path": str(out_dir / row["image_path"])} for row in read_jsonl(manifest_path)]
    if not records:
        raise MissingInputError(f"{manifest_path} lists no images", "Run step 1 first: fluxscope collect")
    by_id = {int(row["image_id"]): row for row in records}
    if len(by_id) != len(records):
        raise RunDirError(
            f"{manifest_path} lists an image twice", "Start in a new folder, or give --force to collect anew."
        )
    return records, by_id


def count_manifest_rows(manifest_path: Path | str) -> int:
    """How many finished images a manifest lists; 0 when there is none."""
    path = Path(manifest_path)
    return len(read_jsonl(path)) if path.is_file() else 0
