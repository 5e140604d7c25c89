"""Synthetic inputs shared by the tests of the measures."""

from itertools import combinations

import numpy as np

EPS = 1e-4


def sparse_S(n: int, f: int, seed: int, density: float = 0.3, levels: int = 0) -> np.ndarray:
    """A sparse S; with `levels`, values repeat, so that ties matter."""
    rng = np.random.default_rng(seed)
    values = rng.integers(1, levels + 1, (n, f)) / levels if levels else rng.random((n, f)) + 0.01
    return (values * (rng.random((n, f)) < density)).astype(np.float32)


def unit_rows(n: int, e: int, seed: int, shift: float = 0.5) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, e)) + shift
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def naive_coherence(embeddings: np.ndarray, members: list[int]) -> float:
    e = embeddings.astype(np.float64)
    return float(np.mean([e[a] @ e[b] for a, b in combinations(members, 2)]))
