"""flux-shapes: a small real FLUX that ships with fluxscope, and the world whose pictures it draws."""

from fluxscope import embedded

WEIGHTS = embedded.WEIGHTS
FLUX_SHAPES = embedded.SHIPPED[embedded.FLUX_SHAPES]
"""A diffusers FluxPipeline folder."""
CLIP_SHAPES = embedded.SHIPPED[embedded.CLIP_SHAPES]
"""A transformers CLIPModel folder with its processor."""
