"""fluxscope: look inside FLUX image models with sparse autoencoders.

The names below are loaded when they are first used, so that importing fluxscope imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PLACES = {
    "Capture": "fluxscope.models.capture",
    "CodeStore": "fluxscope.run.codes",
    "Config": "fluxscope.settings.config",
    "FluxscopeError": "fluxscope.errors",
    "RunDir": "fluxscope.run.rundir",
    "SparseCodes": "fluxscope.sae.codes",
    "encode_sparse": "fluxscope.sae.base",
    "load_config": "fluxscope.settings.load",
    "load_manifest": "fluxscope.run.manifest",
    "load_sae": "fluxscope.sae.features",
    "parse_site": "fluxscope.models.sites",
    "run_pipeline": "fluxscope.steps.pipeline",
}

__all__ = ["__version__", *sorted(_PLACES)]

if TYPE_CHECKING:
    from fluxscope.errors import FluxscopeError as FluxscopeError
    from fluxscope.models.capture import Capture as Capture
    from fluxscope.models.sites import parse_site as parse_site
    from fluxscope.run.codes import CodeStore as CodeStore
    from fluxscope.run.manifest import load_manifest as load_manifest
    from fluxscope.run.rundir import RunDir as RunDir
    from fluxscope.sae.base import encode_sparse as encode_sparse
    from fluxscope.sae.codes import SparseCodes as SparseCodes
    from fluxscope.sae.features import load_sae as load_sae
    from fluxscope.settings.config import Config as Config
    from fluxscope.settings.load import load_config as load_config
    from fluxscope.steps.pipeline import run_pipeline as run_pipeline


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'fluxscope' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_PLACES]
