"""What a setting left at None means: it follows from the model."""

from __future__ import annotations

from typing import Any

from fluxscope.embedded import CLIP_SHAPES, FLUX_SHAPES, TEST_PROMPTS, shipped_sae

FOR_FLUX_SHAPES: dict[str, Any] = {
    "height": 128,
    "width": 128,
    "max_sequence_length": 20,
    "batch_size": 16,
    "clip_model_id": CLIP_SHAPES,
    "prompts_path": str(TEST_PROMPTS),
    "layer5_sae_path": str(shipped_sae(5)),
    "layer15_sae_path": str(shipped_sae(15)),
    # Pushed in early or middle steps alone a tenth of the pictures change, in all of them two thirds: see the
    # study in docs/steering.md.
    "steer_steps": "all",
}

FOR_FLUX_1: dict[str, Any] = {
    "height": 256,
    "width": 256,
    "max_sequence_length": 512,
    "batch_size": 4,
    "clip_model_id": "openai/clip-vit-base-patch32",
    "prompts_path": "prompts/natural.txt",
    "layer5_sae_path": "",
    "layer15_sae_path": "",
    # Not measured by us: others saw late steps hardly act on FLUX.1, and all of them leave artefacts.
    "steer_steps": "0-5",
}


def model_defaults(model_id: str) -> dict[str, Any]:
    """The settings that fit a model; any but flux-shapes is taken for one of FLUX.1's family."""
    return FOR_FLUX_SHAPES if model_id == FLUX_SHAPES else FOR_FLUX_1
