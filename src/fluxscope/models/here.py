"""What of a model lies on this machine: in a folder or in the Hub's cache. Nothing is fetched to find out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from fluxscope.errors import FluxscopeError
from fluxscope.files import read_json
from fluxscope.shapes.shipped import resolve

WEIGHTS = (
    *("model.safetensors", "diffusion_pytorch_model.safetensors"),
    *("pytorch_model.bin", "diffusion_pytorch_model.bin"),
)
"""Weights in one file. Those in several have a list of them: the name and `.index.json`."""

WEIGHTED = ("transformer", "vae", "text_encoder")
"""What the names of a pipeline's parts with weights begin with."""


def folder_here(name: str) -> Path | None:
    """The folder of a model that ships, is named by its folder, or was fetched before; None where none is.

    Args:
        name: a short name, a folder or a Hub name.
    """
    from huggingface_hub import snapshot_download

    place = Path(resolve(name))
    if place.is_dir():
        return place
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):  # it is not there, or no such name is possible
        return None


def missing_of_pipeline(folder: Path) -> list[str]:
    """The files and folders that a diffusers folder lacks, by relative path.

    Raises:
        FluxscopeError: a list of files in it is damaged.
    """
    if not (folder / "model_index.json").is_file():
        return ["model_index.json"]
    found = []
    for part, kind in _object(folder / "model_index.json").items():
        if not isinstance(kind, list) or None in kind:
            continue  # an entry of another sort, or a part that this model does without
        if part.startswith(WEIGHTED):
            found += [f"{part}/{name}" for name in _missing(folder / part)]
        elif not (folder / part).is_dir():
            found.append(part)
    return found


def missing_of_clip(folder: Path) -> list[str]:
    """The files that the folder of a CLIP model lacks.

    Raises:
        FluxscopeError: a list of files in it is damaged.
    """
    processor = ("preprocessor_config.json", "processor_config.json")
    found = list(_missing(folder))
    return found if any((folder / name).is_file() for name in processor) else [*found, processor[0]]


def _missing(folder: Path) -> Iterator[str]:
    """What a model of one part lacks: its config, or weights."""
    if not (folder / "config.json").is_file():
        yield "config.json"
    if any((folder / name).is_file() for name in WEIGHTS):
        return
    lists = [folder / f"{name}.index.json" for name in WEIGHTS]
    found = next((path for path in lists if path.is_file()), None)
    shards = _object(found).get("weight_map") if found else None
    if not isinstance(shards, dict) or not shards:
        yield "diffusion_pytorch_model.safetensors" if folder.name in ("transformer", "vae") else WEIGHTS[0]
        return
    for name in sorted({str(shard) for shard in shards.values()}):
        if not _is_there(folder, name):
            yield name


def _is_there(folder: Path, name: str) -> bool:
    """Whether a file that a list names is there; its name may be anything."""
    plain = PurePosixPath(name).name == name and "\0" not in name
    return plain and len(name) < 250 and (folder / name).is_file()


def _object(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict):
        raise FluxscopeError(f"{path} is no list of files", "Copy or download the model again.")
    return found
