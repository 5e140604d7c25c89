"""Names of features, held to counts done by hand, to SciPy's own Fisher test, and to chance."""

import numpy as np
import pytest
from scipy.stats import fisher_exact, pearsonr

from fluxscope.errors import FluxscopeError
from fluxscope.measures.names import (
    FUNCTION_WORDS,
    Terms,
    halves,
    name_features,
    seen_more,
    terms_of,
    vocabulary,
)

COLOURS, SHAPES = ("red", "green", "blue", "pink"), ("star", "ring", "cross", "heart", "square")
PROMPTS = [f"a {c} {s} on a {b} wall" for c in COLOURS for s in SHAPES for b in ("white", "black")] * 4


@pytest.fixture(scope="module")
def terms():
    return terms_of(PROMPTS)


@pytest.fixture(scope="module")
def naming():
    return halves(len(PROMPTS))


def strength_of(*words, seed=0):
    """One feature for each word, strong where the prompt has it, with noise."""
    rng = np.random.default_rng(seed)
    rows = [[float(word in prompt) for word in words] for prompt in PROMPTS]
    return np.array(rows) * 5 + rng.uniform(0, 1, (len(PROMPTS), len(words)))


def test_terms_are_words_and_pairs_without_function_words(terms):
    found = terms_of(
        ["A red circle, on a white wall", "a RED circle's edge", "red circle", "the red-hot wall"], 2
    )
    assert found.words == ("circle", "red", "red circle", "wall")
    assert found.present.tolist() == [
        [True, True, True, True],
        [False, True, False, False],  # "circle's" is another word
        [True, True, True, False],
        [False, False, False, True],  # and so is "red-hot"
    ]
    assert not {part for word in terms.words for part in word.split()} & FUNCTION_WORDS
    assert "wall" not in terms.words and "white wall" in terms.words, "what all prompts have tells nothing"


def test_prompts_without_common_words_name_nothing():
    with pytest.raises(FluxscopeError, match="share no words"):
        terms_of(["red", "green", "blue"])
    with pytest.raises(FluxscopeError, match="share no words"):
        terms_of(["the same thing"] * 10)


def test_a_half_holds_whole_prompts_and_is_the_same_each_time():
    first = halves(9)
    assert first.sum() == 5 and (halves(9) == first).all()
    assert (halves(9, seed=1) != first).any()


def test_features_get_the_words_they_fire_for(terms, naming):
    named = name_features(strength_of("red", "ring", "black", "pink heart"), terms, naming)
    assert [terms.words[at] for at in named.term] == ["red", "ring", "black wall", "pink heart"]
    assert (named.held_out > 0.9).all() and (named.shared == 1).all()
    assert named.strong.tolist() == [
        sum(word in prompt for prompt, own in zip(PROMPTS, naming, strict=True) if own)
        for word in ("red", "ring", "black", "pink heart")
    ]


def test_p_and_log_odds_are_those_of_the_counts(terms, naming):
    strength = strength_of("red")
    named = name_features(strength, terms, naming)
    own = strength[naming, 0]
    strong = own >= own.max() / 2
    has = terms.present[naming][:, named.term[0]]
    table = np.array(
        [[(strong & has).sum(), (strong & ~has).sum()], [(~strong & has).sum(), (~strong & ~has).sum()]]
    )
    assert named.p[0] == pytest.approx(fisher_exact(table, "greater").pvalue)
    (a, b), (c, d) = table + 0.5
    assert named.z[0] == pytest.approx(np.log(a * d / b / c) / np.sqrt(1 / a + 1 / b + 1 / c + 1 / d))
    other = ~naming
    r = pearsonr(strength[other, 0], terms.present[other][:, named.term[0]]).statistic
    assert named.held_out[0] == pytest.approx(r)


def test_the_half_that_scores_does_not_name(terms, naming):
    """Whatever is done to the other half's strengths, the names stay; the held-out number does not."""
    strength = strength_of("red", "ring")
    spoilt = strength.copy()
    spoilt[~naming] = np.random.default_rng(0).uniform(size=spoilt[~naming].shape)
    before, after = (name_features(each, terms, naming) for each in (strength, spoilt))
    assert (before.term == after.term).all() and (before.z == after.z).all()
    assert (before.held_out > 0.9).all() and (abs(after.held_out) < 0.4).all()


def test_shuffled_features_are_unnamed(terms, naming):
    rng = np.random.default_rng(0)
    strength = np.concatenate([strength_of(*COLOURS, *SHAPES, seed=seed) for seed in range(30)], axis=1)
    shuffled = name_features(rng.permutation(strength), terms, naming)
    assert (name_features(strength, terms, naming).term >= 0).all()
    assert (shuffled.term >= 0).mean() <= 0.05


def test_features_that_fire_for_too_few_or_for_two_things_are_unnamed(terms, naming):
    rare = np.zeros(len(PROMPTS))
    rare[np.flatnonzero(naming)[:2]] = 5
    both = np.array([float("red" in prompt or "ring" in prompt) for prompt in PROMPTS])
    silent = np.zeros(len(PROMPTS))
    named = name_features(np.stack([rare, both, silent], 1), terms, naming)
    assert (named.term == -1).all()
    assert named.strong.tolist()[::2] == [2, 0]


def test_terms_may_not_be_taken_from_the_other_prompts(naming):
    """A term that only prompts of the other half have is never enriched."""
    present = np.zeros((len(PROMPTS), 2), bool)
    present[~naming, 0] = True
    present[:, 1] = [("red" in prompt) for prompt in PROMPTS]
    named = name_features(strength_of("red"), Terms(("other", "red"), present), naming)
    assert named.term[0] == 1


def test_seen_more_is_welch_s_t_of_cosines():
    rng = np.random.default_rng(0)
    words = np.eye(4)[:2]
    peaks = rng.normal(size=(12, 4)) * 0.1 + [1, 0, 0, 0]
    randoms = rng.normal(size=(40, 4)) * 0.1
    z = seen_more(peaks, randoms, words)
    a, b = peaks[:, 0], randoms[:, 0]
    assert z[0] == pytest.approx((a.mean() - b.mean()) / np.sqrt(a.var(ddof=1) / 12 + b.var(ddof=1) / 40))
    assert z[0] > 20 and abs(z[1]) < 4
    assert np.isnan(seen_more(peaks[:1], randoms, words)).all()


def test_the_vocabulary_is_of_distinct_plain_words():
    words = vocabulary()
    assert len(words) > 200 and len(set(words)) == len(words)
    assert all(word == word.strip().lower() and word.replace(" ", "").isalpha() for word in words)
    assert {"circle", "face", "sky"} <= set(words)
