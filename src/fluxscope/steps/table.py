"""The eleven steps, in order. A new step is one file beside this one and one line here."""

from __future__ import annotations

from fluxscope.steps import (
    analyze,
    assemble_grids,
    clip_embed,
    collect,
    compare_layers,
    contact_sheet,
    decoder,
    find_demos,
    overlays,
    select,
    steer,
)
from fluxscope.steps.step import Step

STEPS: tuple[Step, ...] = (
    collect.STEP,
    analyze.STEP,
    clip_embed.STEP,
    select.STEP,
    overlays.STEP,
    contact_sheet.STEP,
    steer.STEP,
    decoder.STEP,
    compare_layers.STEP,
    find_demos.STEP,
    assemble_grids.STEP,
)

SETTINGS_OF = {step.name: step.settings for step in STEPS}
"""The settings that each step reads, by its name."""
