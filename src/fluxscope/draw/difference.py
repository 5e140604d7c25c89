"""Where two pictures differ."""

from __future__ import annotations

import numpy as np

from fluxscope.draw.heatmap import Picture, overlay_heatmap

VERMILION = (224, 74, 32)
"""Changes are drawn in another colour than activations, and one that the colour-blind tell from it."""

FULL_CHANGE = 0.35
"""A mean change of the channels by this share of their range is drawn at full colour."""


def difference_map(picture: Picture, baseline: Picture) -> Picture:
    """Colour laid over a pale grey baseline where the picture changed, the more the stronger."""
    change = np.abs(picture.astype(np.float32) - baseline.astype(np.float32)).mean(-1) / 255
    grey = baseline.astype(np.float32).mean(-1, keepdims=True).repeat(3, axis=-1)
    pale = np.rint(255 - (255 - grey) * 0.35).astype(np.uint8)
    return overlay_heatmap(pale, np.clip(change / FULL_CHANGE, 0, 1), 0.95, VERMILION)


def difference_legend() -> str:
    """What the map's colour means, for the foot of a sheet."""
    return f"difference: full colour from a change by {FULL_CHANGE:.0%}"
