"""Sparse autoencoders in pure torch: they know nothing of FLUX, settings or run folders."""

from __future__ import annotations

from fluxscope.sae.base import LinearSae, encode_sparse
from fluxscope.sae.batch_topk import BatchTopKSparseAutoencoder
from fluxscope.sae.codes import SparseCodes
from fluxscope.sae.jumprelu import JumpReLUSparseAutoencoder
from fluxscope.sae.matryoshka import MatryoshkaSparseAutoencoder
from fluxscope.sae.relu import SparseAutoencoder
from fluxscope.sae.topk import TopKSparseAutoencoder

ARCHITECTURES: tuple[type[LinearSae], ...] = (
    TopKSparseAutoencoder,
    SparseAutoencoder,
    BatchTopKSparseAutoencoder,
    MatryoshkaSparseAutoencoder,
    JumpReLUSparseAutoencoder,
)
"""Every architecture. A new one is a file of its own and a line here."""

__all__ = [
    "ARCHITECTURES",
    "BatchTopKSparseAutoencoder",
    "JumpReLUSparseAutoencoder",
    "LinearSae",
    "MatryoshkaSparseAutoencoder",
    "SparseAutoencoder",
    "SparseCodes",
    "TopKSparseAutoencoder",
    "encode_sparse",
]
