"""Helpers around one SAE under the names that existing scripts import. See fluxscope.sae.features."""

import front_door as _front_door  # noqa: F401 -- finds fluxscope
from fluxscope import (
    compute_feature_activations,
    compute_feature_stats,
    encode_to_feature_map,
    extract_image_tokens,
    get_decoder_direction,
    get_encoder_direction,
    load_sae,
)

__all__ = [
    "compute_feature_activations",
    "compute_feature_stats",
    "encode_to_feature_map",
    "extract_image_tokens",
    "get_decoder_direction",
    "get_encoder_direction",
    "load_sae",
]
