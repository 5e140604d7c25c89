"""What the page shows of single features: arrays in, arrays out."""

from __future__ import annotations

import re
from statistics import NormalDist

import numpy as np

STRIPS = (("90-99%", 90, 99), ("50-90%", 50, 90), ("0-50%", 0, 50))
"""Percentiles of a feature's active pictures, strongest first; what is above is shown as its top pictures."""
PER_STRIP = 4
BINS = 24
LEVELS, MOST_PASSED = 16, 52
MOST_WORDS = 2000
WORD = re.compile(r"[^\W_][\w'-]*")


def heat_texts(
    rows: np.ndarray, values: np.ndarray, places: list[int], n_tokens: int, largest: float
) -> list[str]:
    """A feature's heatmaps on some pictures, a short text each.

    A letter from a to p is a token's level, in sixteenths of the feature's largest code, rounded up; a
    character from ( to [ passes over 1 to 52 silent tokens; tokens go row by row. Few characters that come
    often are what deflate makes small.

    Args:
        rows, values: the feature's column of codes: picture x n_tokens + token, ascending, and its codes.
        places: the pictures.
    """
    bounds = np.searchsorted(rows, [[place * n_tokens, (place + 1) * n_tokens] for place in places])
    texts = []
    for place, (begin, end) in zip(places, bounds.reshape(-1, 2).tolist(), strict=True):
        tokens = rows[begin:end] - place * n_tokens
        level = np.clip(np.ceil(LEVELS * values[begin:end] / max(largest, 1e-9)), 1, LEVELS).astype(np.uint8)
        gap = np.diff(tokens, prepend=-1) - 1
        passes = -(-gap // MOST_PASSED)
        text = np.full(int(passes.sum()) + len(tokens), ord("(") + MOST_PASSED - 1, np.uint8)
        at = np.cumsum(passes + 1) - 1  # of each level, after what is passed over
        text[at] = ord("a") - 1 + level
        some = passes > 0
        text[at[some] - 1] = ord("(") - 1 + gap[some] - MOST_PASSED * (passes[some] - 1)
        texts.append(text.tobytes().decode("ascii"))
    return texts


def level_text(shares: np.ndarray) -> str:
    """Shares from 0 to 1 as a text: a letter from a to p each, in sixteenths, rounded up; ` for 0."""
    levels = np.clip(np.ceil(LEVELS * shares), 0, LEVELS).astype(np.uint8)
    return str((ord("`") + levels).tobytes(), "ascii")


def strip_places(column: np.ndarray, eps: float, seed: int) -> list[tuple[str, list[int]]]:
    """Pictures from all over a feature's range, evenly spaced in each strip; silent ones drawn at random.

    Args:
        column: (n), the feature's S on every picture.
    """
    active = np.flatnonzero(column > eps)
    order = active[np.argsort(column[active], kind="stable")]
    found: list[tuple[str, list[int]]] = []
    for name, low, high in STRIPS:
        part = order[len(order) * low // 100 : len(order) * high // 100]
        chosen = np.unique(np.linspace(0, len(part) - 1, PER_STRIP).round()) if len(part) else np.zeros(0)
        found.append((name, [int(part[int(place)]) for place in chosen][::-1]))
    silent = np.flatnonzero(column <= eps)
    drawn = np.random.default_rng(seed).permutation(silent)[:PER_STRIP]
    return [*found, ("silent", [int(place) for place in np.sort(drawn)])]


def prompt_words(prompts: list[str]) -> tuple[list[str], np.ndarray]:
    """The words that stand in some prompts but not in all, most common first, and which prompt has which.

    Returns:
        words, and bool (p, w).
    """
    sets = [set(WORD.findall(prompt.lower())) for prompt in prompts]
    counts: dict[str, int] = {}
    for each in sets:
        for word in each:
            counts[word] = counts.get(word, 0) + 1
    usual = [word for word, count in counts.items() if 2 <= count < len(prompts) and len(word) < 40]
    words = sorted(usual, key=lambda word: (-counts[word], word))[:MOST_WORDS]
    has = np.zeros((len(prompts), len(words)), bool)
    column = {word: place for place, word in enumerate(words)}
    for row, each in enumerate(sets):
        has[row, [column[word] for word in each if word in column]] = True
    return words, has


def enriched(fires: np.ndarray, has: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How much more often words stand in prompts on which features fire than in the others.

    Args:
        fires: bool (p, f), on which prompts; has: bool (p, w), which words.

    Returns:
        (f, w) each: the share of firing prompts with the word, the share of the others, and z of the
        difference (pooled two-sample test of proportions).
    """
    on, words = fires.astype(np.float32), has.astype(np.float32)
    with_word = words.sum(0)
    n_on = on.sum(0)[:, None]
    n_off = len(on) - n_on
    both = on.T @ words
    inside, outside = both / np.maximum(n_on, 1), (with_word - both) / np.maximum(n_off, 1)
    pooled = with_word / len(on)
    spread = np.sqrt(pooled * (1 - pooled) * (1 / np.maximum(n_on, 1) + 1 / np.maximum(n_off, 1)))
    z = np.where((n_on > 0) & (n_off > 0), (inside - outside) / np.maximum(spread, 1e-9), 0)
    return inside, outside, z


def word_bar(n_words: int) -> float:
    """The z above which one word in twenty features is expected by chance (Bonferroni over the words)."""
    return NormalDist().inv_cdf(1 - 0.05 / max(n_words, 1))


def histogram(values: np.ndarray, largest: float) -> list[int]:
    """Counts of codes in even bins from 0 to the largest."""
    return [int(count) for count in np.histogram(values, BINS, (0, max(largest, 1e-9)))[0]]
