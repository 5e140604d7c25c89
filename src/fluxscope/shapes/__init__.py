"""flux-shapes: a small real FLUX that ships with fluxscope, and the world whose pictures it draws."""

from fluxscope.shapes import shipped

WEIGHTS = shipped.WEIGHTS
FLUX_SHAPES = shipped.SHIPPED[shipped.FLUX_SHAPES]
"""A diffusers FluxPipeline folder."""
CLIP_SHAPES = shipped.SHIPPED[shipped.CLIP_SHAPES]
"""A transformers CLIPModel folder with its processor."""
