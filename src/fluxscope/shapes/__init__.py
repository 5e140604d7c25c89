"""flux-shapes: a small real FLUX that ships with fluxscope, and the world whose pictures it draws."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
FLUX_SHAPES = WEIGHTS / "flux-shapes"
"""A diffusers FluxPipeline folder."""
CLIP_SHAPES = WEIGHTS / "clip-shapes"
"""A transformers CLIPModel folder with its processor."""
