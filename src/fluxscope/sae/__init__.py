"""Sparse autoencoders in pure torch: they know nothing of FLUX, settings or run folders.

Names are loaded when they are first used, so that the table of architectures can be read without torch. The
classes of every architecture are found here too: `from fluxscope.sae import TopKSparseAutoencoder`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fluxscope.sae.table import ARCHITECTURES as ARCHITECTURES

_PLACES = {
    "LinearSae": "fluxscope.sae.base",
    "SparseCodes": "fluxscope.sae.codes",
    "encode_sparse": "fluxscope.sae.base",
}

if TYPE_CHECKING:
    from fluxscope.sae.base import LinearSae as LinearSae
    from fluxscope.sae.base import encode_sparse as encode_sparse
    from fluxscope.sae.codes import SparseCodes as SparseCodes


def __getattr__(name: str) -> Any:
    places = [_PLACES[name]] if name in _PLACES else [entry.module for entry in ARCHITECTURES]
    for place in places if name[0].isalpha() else ():
        module = importlib.import_module(place)
        if name in vars(module):
            return vars(module)[name]
    raise AttributeError(f"module 'fluxscope.sae' has no attribute {name!r}")
