"""What a feature could be called: the words that its strongest pictures' prompts share, and others' don't.

On one half of the prompts, a prompt is strong for a feature where it reaches half of the feature's largest
strength. A term (a word, or two that follow one another) is a candidate where strong prompts have it more
often than chance gives: Fisher's exact test, one-sided, at a false discovery rate of 5% over all features and
terms (Benjamini and Hochberg 1995). Of the candidates that two in three strong prompts have, the one with the
largest log odds counts, each in its standard errors, with half a prompt added to every count, so that rare
terms do not win by luck (after Monroe, Colaresi and Quinn 2008, "Fightin' Words").

A name is a guess until pictures that did not make it agree: on the other half of the prompts the strength is
held against the term (Pearson), and CLIP is asked whether it sees the term where the feature fires: the
cosine of crops around its peaks with the term, less that of random crops.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Real

from fluxscope.errors import FluxscopeError
from fluxscope.measures.certainty import false_discovery

FALSE_DISCOVERIES = 0.05
STRONG = 0.5
"""Of a feature's largest strength: from here on a prompt is strong for it."""
SHARED = 2 / 3
"""Of the strong prompts that must have a term."""
LEAST_PROMPTS = 3
"""Strong prompts that a feature needs, and prompts that a term needs."""
SEEN = 1.645
"""Standard errors by which CLIP must see a term more where the feature fires: 5%, one-sided."""

FUNCTION_WORDS = frozenset(
    (
        *("a", "an", "the", "and", "or", "but", "of", "in", "on", "at", "to", "by", "for", "from", "with"),
        *("without", "into", "onto", "over", "under", "is", "are", "was", "were", "be", "being", "as", "it"),
        *("its", "this", "that", "these", "those", "some", "any", "each", "very", "so", "than", "then"),
        *("there", "his", "her", "their", "our", "your", "my", "photo", "picture", "image", "showing"),
    )
)
"""Words that say nothing of what is in a picture; a term holds none of them."""


@dataclass(frozen=True)
class Terms:
    """The terms of some prompts.

    Attributes:
        words: the terms, in alphabetical order.
        present: (p, w), which prompt has which.
    """

    words: tuple[str, ...]
    present: Bool[np.ndarray, "p w"]


def terms_of(prompts: Sequence[str], least: int = LEAST_PROMPTS) -> Terms:
    """Words, and pairs of words that follow one another, which at least so many prompts have.

    Raises:
        FluxscopeError: no term is left.
    """
    found = [_terms(prompt) for prompt in prompts]
    words = sorted(set().union(*found))
    present = np.array([[word in each for word in words] for each in found], bool).reshape(len(found), -1)
    common = (present.sum(0) >= least) & (present.sum(0) < len(prompts))
    if not common.any():
        raise FluxscopeError(
            f"the {len(prompts)} prompts share no words that could name a feature",
            f"Use more prompts: a word is tried where {least} of them have it, and not all.",
        )
    return Terms(tuple(word for word, kept in zip(words, common, strict=True) if kept), present[:, common])


def _terms(prompt: str) -> set[str]:
    words = re.findall(r"[^\W\d_]+(?:['-][^\W\d_]+)*", prompt.lower())
    alone = [word for word in words if word not in FUNCTION_WORDS]
    pairs = itertools.pairwise(words)
    return {*alone, *(f"{a} {b}" for a, b in pairs if not {a, b} & FUNCTION_WORDS)}


def halves(prompts: int, seed: int = 0) -> Bool[np.ndarray, " p"]:
    """Which prompts name; the others tell how good the names are."""
    first = np.zeros(prompts, bool)
    first[np.random.default_rng(seed).permutation(prompts)[: (prompts + 1) // 2]] = True
    return first


@dataclass(frozen=True)
class Named:
    """What each feature could be called.

    Attributes:
        term: (f), the term's number; -1 for none.
        z: (f), its log odds in standard errors.
        p: (f), chance of so many strong prompts with it.
        shared: (f), share of the strong prompts that have it.
        strong: (f), strong prompts of the half that names.
        held_out: (f), Pearson of strength and term on the other half; NaN where either does not vary.
    """

    term: Int[np.ndarray, " f"]
    z: Float64[np.ndarray, " f"]
    p: Float64[np.ndarray, " f"]
    shared: Float64[np.ndarray, " f"]
    strong: Int[np.ndarray, " f"]
    held_out: Float64[np.ndarray, " f"]


def name_features(strength: Float[np.ndarray, "p f"], terms: Terms, naming: Bool[np.ndarray, " p"]) -> Named:
    """Name features by the prompts that are `naming`, and score the names by the others.

    Args:
        strength: of each feature for each prompt: the mean of S over the prompt's pictures.
    """
    own, has = strength[naming], terms.present[naming].astype(float)
    strong = (own >= STRONG * own.max(0, initial=0.0)) & (own > 0)  # p f
    both = strong.T.astype(float) @ has  # f w
    n_strong = strong.sum(0)
    found = enriched(both, n_strong, has.sum(0)[None], len(own))
    length = np.array([len(word) for word in terms.words])  # of equals the longer: it says more
    best = np.where(found.holds, found.z + 1e-9 * length, -np.inf).argmax(1)
    at = np.arange(len(best))
    term = np.where(found.holds[at, best], best, -1)
    held = _pearson(strength[~naming], terms.present[~naming].astype(float), best)
    z, p, shared = (each[at, best] for each in (found.z, found.p, found.shared))
    return Named(term, z, p, shared, n_strong, held)


@dataclass(frozen=True)
class Enriched:
    """How much more often each feature's strong prompts have each term than chance gives, (f, w).

    Attributes:
        z: log odds in standard errors.
        p: Fisher's exact test, one-sided.
        shared: share of the strong ones that have the term.
        holds: whether it is a candidate for a name.
    """

    z: Float64[np.ndarray, "f w"]
    p: Float64[np.ndarray, "f w"]
    shared: Float64[np.ndarray, "f w"]
    holds: Bool[np.ndarray, "f w"]


def enriched(
    both: Float64[np.ndarray, "f w"],
    strong: Real[np.ndarray, " f"],
    having: Float64[np.ndarray, "#f w"],
    of: int | Float64[np.ndarray, "f 1"],
) -> Enriched:
    """Test every term of every feature that has enough strong prompts.

    Args:
        both: prompts that are strong and have the term.
        having: prompts that have the term, strong or not.
        of: prompts in all.
    """
    from scipy.stats import hypergeom

    tried = np.flatnonzero(strong >= LEAST_PROMPTS)
    p, q = np.ones_like(both), np.ones_like(both)
    total, with_term = np.broadcast_to(of, (len(both), 1)), np.broadcast_to(having, both.shape)
    p[tried] = hypergeom.sf(both[tried] - 1, total[tried], with_term[tried], strong[tried, None])
    q[tried] = false_discovery(p[tried].ravel()).reshape(p[tried].shape)
    z = _log_odds(both, strong[:, None], with_term, total)
    shared = both / np.maximum(strong, 1)[:, None]
    return Enriched(z, p, shared, (q <= FALSE_DISCOVERIES) & (shared >= SHARED) & (z > 0))


def _log_odds(
    both: Float64[np.ndarray, "f w"],
    strong: Real[np.ndarray, "f 1"],
    having: Float64[np.ndarray, "f w"],
    prompts: Real[np.ndarray, "f 1"],
) -> Float64[np.ndarray, "f w"]:
    """Log odds ratio of having a term when strong, over its standard error; half a prompt in every cell."""
    cells = (both, strong - both, having - both, prompts - strong - having + both)
    a, b, c, d = (cell + 0.5 for cell in cells)
    ratio: np.ndarray = np.log(a * d / (b * c)) / np.sqrt(1 / a + 1 / b + 1 / c + 1 / d)
    return ratio


def _pearson(
    strength: Float[np.ndarray, "p f"], present: Float64[np.ndarray, "p w"], term: Int[np.ndarray, " f"]
) -> Float64[np.ndarray, " f"]:
    """Correlation of each feature's strength with its term."""
    if not len(strength):
        return np.full(len(term), np.nan)
    x = strength - strength.mean(0)
    y = (present - present.mean(0))[:, term]
    with np.errstate(invalid="ignore", divide="ignore"):
        r: np.ndarray = (x * y).sum(0) / np.sqrt((x**2).sum(0) * (y**2).sum(0))
    return r.astype(np.float64)


def seen_more(
    peaks: Float[np.ndarray, "c e"], randoms: Float[np.ndarray, "r e"], words: Float[np.ndarray, "w e"]
) -> Float64[np.ndarray, " w"]:
    """By how many standard errors CLIP sees each term more in one feature's peak crops than in random crops.

    Welch's t: means of cosines, and the spreads of both. All rows are unit vectors; NaN for fewer than two.
    """
    if len(peaks) < 2 or len(randoms) < 2:
        return np.full(len(words), np.nan)
    here, there = (crops.astype(np.float64) @ words.T for crops in (peaks, randoms))  # c w, r w
    error = np.sqrt(here.var(0, ddof=1) / len(here) + there.var(0, ddof=1) / len(there))
    z: np.ndarray = (here.mean(0) - there.mean(0)) / np.maximum(error, 1e-9)
    return z


def vocabulary() -> tuple[str, ...]:
    """The words that ship: what features of pictures may be about, prompts aside."""
    text = resources.files("fluxscope.measures").joinpath("vocabulary.txt").read_text(encoding="utf-8")
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return tuple(dict.fromkeys(word for line in lines for word in line.split(", ") if word))
