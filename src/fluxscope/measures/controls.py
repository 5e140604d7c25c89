"""What finds directions without an SAE: neurons, PCA, ICA, NMF. Each has a positive and a negative side.

ICA and NMF are scikit-learn's (`pip install 'fluxscope[truth]'`).
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec

import numpy as np
from jaxtyping import Float32
from scipy.sparse import csr_array

MOST_ROWS = 20_000
"""ICA and NMF are fitted on so many rows."""


def has_sklearn() -> bool:
    return find_spec("sklearn") is not None


def both_sides(x: Float32[np.ndarray, "r d"]) -> csr_array:
    """(r, 2 d): what is above zero, and the size of what is below."""
    return csr_array(np.concatenate([np.maximum(x, 0), np.maximum(-x, 0)], axis=1))


def neurons(x: Float32[np.ndarray, "r d"], chosen: np.ndarray) -> csr_array:
    """The dimensions themselves, less their means.

    Args:
        chosen: the rows that what is fitted may see.
    """
    return both_sides(x - x[chosen].mean(0))


def principal_components(x: Float32[np.ndarray, "r d"], chosen: np.ndarray) -> csr_array:
    """Along the principal components, as many as dimensions."""
    mean = x[chosen].mean(0)
    centred = x[chosen] - mean
    _, directions = np.linalg.eigh(centred.T @ centred)
    return both_sides((x - mean) @ directions[:, ::-1])


def independent_components(x: Float32[np.ndarray, "r d"], chosen: np.ndarray, seed: int = 0) -> csr_array:
    """Along independent components (FastICA), as many as dimensions."""
    from sklearn.decomposition import FastICA

    ica = FastICA(whiten="unit-variance", random_state=seed, max_iter=200, tol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged: more rounds change scores little
        ica.fit(_some(x, chosen, seed))
    return both_sides(ica.transform(x).astype(np.float32))


def nonnegative_factors(x: Float32[np.ndarray, "r d"], chosen: np.ndarray, seed: int = 0) -> csr_array:
    """Nonnegative factors of both sides of the dimensions, as many as dimensions."""
    from sklearn.decomposition import MiniBatchNMF

    sides = neurons(x, chosen).toarray()
    nmf = MiniBatchNMF(x.shape[1], random_state=seed, max_iter=50, batch_size=2048, init="nndsvda")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nmf.fit(_some(sides, chosen, seed))
        return csr_array(nmf.transform(sides).astype(np.float32))


def _some(x: Float32[np.ndarray, "r d"], chosen: np.ndarray, seed: int) -> Float32[np.ndarray, "m d"]:
    some: np.ndarray = np.random.default_rng(seed).permutation(chosen)[:MOST_ROWS]
    return np.asarray(x[some])
