"""Reading a run's prompts and manifest: typed for the steps, and by the names that scripts import."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from fluxscope.errors import MissingInputError, RunDirError
from fluxscope.files import append_jsonl, numbered_jsonl, read_json, read_jsonl, write_json, write_jsonl
from fluxscope.run.strict_json import Number, Place, Record, ours, part

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


@dataclass(frozen=True, kw_only=True)
class ListedPicture(Record):
    """What every line of a manifest has at least."""

    image_id: int = part("Its number, from 0.")
    image_path: str = part("The picture's file.", path=True)


@dataclass(frozen=True, kw_only=True)
class ManifestRow(Record):
    """A line of manifest.jsonl: one finished picture."""

    image_id: int = part("Its number, from 0.")
    prompt_idx: int = part("Its prompt's number, from 0.")
    rep_idx: int = part("Which picture of the prompt it is, from 0.")
    seed: int = part("base_seed + reps_per_prompt x prompt_idx + rep_idx.")
    prompt: str = part("Its prompt.")
    image_path: str = part("The picture's file.", path=True)
    height: int = part("In pixels.")
    width: int = part("In pixels.")
    site: str | None = ours("Where in the model the SAE listened.")
    step: int | None = ours("The denoising step that was looked at, from 0.")
    layer_index: int = part("The double block that was looked at, from 0.")
    target_step_number: int = part("The denoising step, from 1.")
    activation_shape: list[int] = part("Image tokens, and the site's width.")
    generation_time: Number = part("Seconds that it took.")


@dataclass(frozen=True)
class Manifest:
    """The pictures of a run.

    Attributes:
        root: the output folder.
        rows: in order: the place of a picture here is its row in every array.
    """

    root: Path
    rows: Sequence[ManifestRow]

    @classmethod
    def read(cls, path: Path, root: Path) -> Manifest:
        """Read a manifest.

        Raises:
            MissingInputError: it is missing or lists nothing.
            RecordError: a line is none of a manifest, or its picture lies outside the folder.
            RunDirError: an image is listed twice.
        """
        check_there(path)
        rows = list(ManifestRow.read_lines(path, root))
        check_ids(path, [row.image_id for row in rows])
        return cls(root, rows)

    @cached_property
    def place(self) -> dict[int, int]:
        """The row of each image_id."""
        return {row.image_id: place for place, row in enumerate(self.rows)}

    def row(self, image_id: int) -> ManifestRow:
        """The line of a picture.

        Raises:
            MissingInputError: it is not listed.
        """
        if image_id not in self.place:
            raise MissingInputError(
                f"image {image_id} is not in the manifest of {self.root}",
                "Run steps 1 to 4 again.",
                redo="collect, analyze, clip-embed, select",
            )
        return self.rows[self.place[image_id]]

    @cached_property
    def prompts(self) -> list[str]:
        """The distinct prompts, in the order of their first pictures."""
        return list(dict.fromkeys(row.prompt for row in self.rows))

    @cached_property
    def prompt_of(self) -> Int64[np.ndarray, " n"]:
        """The place of each picture's prompt in `prompts`: lines that say the same are one prompt."""
        place = {prompt: number for number, prompt in enumerate(self.prompts)}
        return np.array([place[row.prompt] for row in self.rows], np.int64)

    def picture(self, row: ManifestRow) -> Path:
        """The file of a picture."""
        return self.root / row.image_path


def check_there(path: Path) -> None:
    """Raise MissingInputError where there is no manifest."""
    if not path.is_file():
        raise MissingInputError(f"{path} is not there", "Run step 1 first.", redo="collect")


def check_ids(path: Path, image_ids: Sequence[int]) -> None:
    """Raise where a manifest lists nothing, or an image twice."""
    if not image_ids:
        raise MissingInputError(f"{path} lists no images", "Run step 1 first.", redo="collect")
    if len(set(image_ids)) != len(image_ids):
        raise RunDirError(
            f"{path} lists an image twice", "Start in a new folder, or collect anew.", redo="collect --force"
        )


def ensure_dir(path: Path | str) -> Path:
    """Make a folder, and those above it, unless it is there."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    return path


def read_prompts(path: Path | str) -> list[str]:
    """Read prompts, one a line. Blank lines are skipped, and the mark (BOM) that some editors begin with.

    Raises:
        MissingInputError: the file is missing, holds no prompt, or is no text.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingInputError(
            f"prompts file not found: {path}", "Set prompts_path to a file, one prompt a line."
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
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
    """Read the manifest for a script: its lines in order, and the same lines by image_id.

    Args:
        out_dir: the folder that the paths in the manifest are relative to; in the lines returned they
            are joined to it.

    Raises:
        MissingInputError: the manifest is missing or lists nothing.
        RecordError: a line names no picture inside the folder.
        RunDirError: an image is listed twice.
    """
    manifest_path, out_dir = Path(manifest_path), Path(out_dir)
    check_there(manifest_path)
    records = []
    for line, row in numbered_jsonl(manifest_path):
        picture = ListedPicture.from_json(row, Place(manifest_path, out_dir, line))
        records.append({**row, "image_path": str(out_dir / picture.image_path)})
    check_ids(manifest_path, [row["image_id"] for row in records])
    return records, {row["image_id"]: row for row in records}


def count_manifest_rows(manifest_path: Path | str) -> int:
    """How many finished images a manifest lists; 0 when there is none."""
    path = Path(manifest_path)
    return len(read_jsonl(path)) if path.is_file() else 0


def append_rows(path: Path, rows: Iterable[ManifestRow]) -> None:
    """Add lines for finished pictures, flushed to the disk before returning."""
    append_jsonl(path, [row.to_json() for row in rows])


def mend_rows(path: Path, rows: Sequence[ManifestRow]) -> None:
    """Write the lines of a manifest anew where one is not as it should be; what it took in time is kept."""
    there = list(ManifestRow.read_lines(path))
    times = [row.generation_time for row in there]
    right = [replace(row, generation_time=time) for row, time in zip(rows, times, strict=True)]
    if there != right:
        write_jsonl(path, [row.to_json() for row in right])
