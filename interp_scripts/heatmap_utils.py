"""Heatmaps of token maps over pictures: the names that scripts import, kept in fluxscope.draw.heatmap."""

import front_door as _front_door  # noqa: F401 -- finds fluxscope
from fluxscope.draw.heatmap import (
    create_feature_grid,
    create_side_by_side,
    overlay_heatmap,
    token_map_to_blocky_heatmap,
    token_map_to_heatmap,
)

__all__ = [
    "create_feature_grid",
    "create_side_by_side",
    "overlay_heatmap",
    "token_map_to_blocky_heatmap",
    "token_map_to_heatmap",
]
