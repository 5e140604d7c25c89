"""fluxscope: look inside FLUX image models with sparse autoencoders.

The names below are loaded when they are first used, so that importing fluxscope imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fluxscope.shapes.shipped import VERSION as __version__

_PLACES = {
    "Capture": "fluxscope.models.capture",
    "Change": "fluxscope.models.edits",
    "CodeStore": "fluxscope.run.codes",
    "compute_feature_activations": "fluxscope.sae.features",
    "compute_feature_stats": "fluxscope.sae.features",
    "Config": "fluxscope.settings.config",
    "Donor": "fluxscope.models.donors",
    "Edit": "fluxscope.models.edits",
    "encode_sparse": "fluxscope.sae.base",
    "encode_to_feature_map": "fluxscope.sae.features",
    "extract_image_tokens": "fluxscope.sae.features",
    "FluxscopeError": "fluxscope.errors",
    "get_decoder_direction": "fluxscope.sae.features",
    "get_encoder_direction": "fluxscope.sae.features",
    "load_config": "fluxscope.settings.load",
    "load_manifest": "fluxscope.run.manifest",
    "load_sae": "fluxscope.sae.features",
    "make_config": "fluxscope.settings.config",
    "Model": "fluxscope.models.model",
    "open_model": "fluxscope.models.model",
    "parse_site": "fluxscope.models.sites",
    "PictureSpec": "fluxscope.models.spec",
    "run_pipeline": "fluxscope.steps.pipeline",
    "RunDir": "fluxscope.run.rundir",
    "Scope": "fluxscope.models.edits",
    "shipped_sae": "fluxscope.shapes.shipped",
    "SparseAutoencoder": "fluxscope.sae.relu",
    "SparseCodes": "fluxscope.sae.codes",
    "Splice": "fluxscope.models.splice",
    "TopKSparseAutoencoder": "fluxscope.sae.topk",
}

__all__ = ["__version__", *sorted(_PLACES)]

if TYPE_CHECKING:
    from fluxscope.errors import FluxscopeError as FluxscopeError
    from fluxscope.models.capture import Capture as Capture
    from fluxscope.models.donors import Donor as Donor
    from fluxscope.models.edits import Change as Change
    from fluxscope.models.edits import Edit as Edit
    from fluxscope.models.edits import Scope as Scope
    from fluxscope.models.model import Model as Model
    from fluxscope.models.model import open_model as open_model
    from fluxscope.models.sites import parse_site as parse_site
    from fluxscope.models.spec import PictureSpec as PictureSpec
    from fluxscope.models.splice import Splice as Splice
    from fluxscope.run.codes import CodeStore as CodeStore
    from fluxscope.run.manifest import load_manifest as load_manifest
    from fluxscope.run.rundir import RunDir as RunDir
    from fluxscope.sae.base import encode_sparse as encode_sparse
    from fluxscope.sae.codes import SparseCodes as SparseCodes
    from fluxscope.sae.features import compute_feature_activations as compute_feature_activations
    from fluxscope.sae.features import compute_feature_stats as compute_feature_stats
    from fluxscope.sae.features import encode_to_feature_map as encode_to_feature_map
    from fluxscope.sae.features import extract_image_tokens as extract_image_tokens
    from fluxscope.sae.features import get_decoder_direction as get_decoder_direction
    from fluxscope.sae.features import get_encoder_direction as get_encoder_direction
    from fluxscope.sae.features import load_sae as load_sae
    from fluxscope.sae.relu import SparseAutoencoder as SparseAutoencoder
    from fluxscope.sae.topk import TopKSparseAutoencoder as TopKSparseAutoencoder
    from fluxscope.settings.config import Config as Config
    from fluxscope.settings.config import make_config as make_config
    from fluxscope.settings.load import load_config as load_config
    from fluxscope.shapes.shipped import shipped_sae as shipped_sae
    from fluxscope.steps.pipeline import run_pipeline as run_pipeline


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'fluxscope' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_PLACES]
