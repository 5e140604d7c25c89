"""The SAE modules under the names that existing scripts import. See fluxscope.sae."""

from fluxscope.sae import SparseAutoencoder, TopKSparseAutoencoder

__all__ = ["SparseAutoencoder", "TopKSparseAutoencoder"]
