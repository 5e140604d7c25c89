"""The SAE modules under the names that existing scripts import. See fluxscope.sae."""

import front_door as _front_door  # noqa: F401 -- finds fluxscope
from fluxscope import SparseAutoencoder, TopKSparseAutoencoder

__all__ = ["SparseAutoencoder", "TopKSparseAutoencoder"]
