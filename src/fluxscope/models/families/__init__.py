"""The families of models that fluxscope can look into: a file each, and a line in FAMILIES."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fluxscope.errors import FluxscopeError
from fluxscope.models.families.family import DenoisingRun, Family
from fluxscope.models.families.flux1 import Flux1
from fluxscope.models.families.flux2 import Flux2
from fluxscope.shapes.shipped import FLUX_SHAPES, resolve

__all__ = [
    "DEFAULT_MODEL",
    "FAMILIES",
    "DenoisingRun",
    "Family",
    "Flux1",
    "Flux2",
    "default_settings",
    "family_of",
]

DEFAULT_MODEL = FLUX_SHAPES
"""What is looked into where no model is named."""

FAMILIES: tuple[Family, ...] = (
    Flux1(),
    Flux2(),
)


def family_of(model_id: str) -> tuple[Family, str]:
    """A model's family and the pipeline class that its `model_index.json` names.

    Of a model of the Hub this file alone is fetched.

    Raises:
        FluxscopeError: there is no such model, or it is of no known family.
    """
    pipeline = _pipeline_class(model_id)
    for family in FAMILIES:
        if pipeline in family.pipelines:
            return family, pipeline
    known = "; ".join(f"{family.name} ({', '.join(family.pipelines)})" for family in FAMILIES)
    raise FluxscopeError(
        f"{model_id} is a {pipeline}, which is of no family that fluxscope knows",
        f"It knows {known}. docs/explanation/architecture.md says how to add one.",
    )


def default_settings(model_id: str) -> dict[str, Any]:
    """The settings that fit a model, by their names; nothing is fetched to know them.

    A model of the Hub that is not here yet is taken for the family whose name its own begins with.
    """
    pipeline = _class_in(Path(resolve(model_id)) / "model_index.json")
    name = model_id.lower().rpartition("/")[2]
    for family in FAMILIES:
        if pipeline in family.pipelines or (pipeline is None and name.startswith(family.name.lower())):
            return family.default_settings(model_id)
    return FAMILIES[0].default_settings(model_id)


def _pipeline_class(model_id: str) -> str:
    place = Path(resolve(model_id))
    index = place / "model_index.json" if place.is_dir() else _fetched_index(model_id)
    found = _class_in(index)
    if found is None:
        raise FluxscopeError(
            f"the model {model_id} cannot be loaded: its model_index.json is missing or damaged",
            "Give the folder of a diffusers pipeline.",
        )
    return found


def _fetched_index(model_id: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model_id, "model_index.json"))
    except (OSError, ValueError) as error:
        raise FluxscopeError(
            f"the model {model_id} was not found ({str(error).strip().splitlines()[0]})",
            "Give flux-shapes, a folder, or a Hub name that `hf auth login` gives access to.",
        ) from None


def _class_in(index: Path) -> str | None:
    """The pipeline's class that a model_index.json names."""
    try:
        name = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return name if isinstance(name, str) else None
