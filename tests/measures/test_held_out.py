import numpy as np
import pytest
from scipy.stats import pearsonr

from fluxscope.errors import FluxscopeError
from fluxscope.measures.held_out import clip_held_out


def run_of(seed=0, n_prompts=60, reps=2, e=8):
    """Pictures of prompts that lie somewhere in CLIP's space, and four features."""
    rng = np.random.default_rng(seed)
    prompts = np.repeat(rng.permutation(n_prompts), reps)
    place = rng.normal(size=(n_prompts, e))[prompts] + 0.3 * rng.normal(size=(len(prompts), e))
    embeddings = (place / np.linalg.norm(place, axis=1, keepdims=True)).astype(np.float32)
    S = np.zeros((len(prompts), 4), np.float32)
    S[:, 0] = np.maximum(embeddings[:, 0], 0)  # one that can be seen
    S[:, 1] = rng.random(len(prompts)) * (rng.random(len(prompts)) < 0.2)  # noise
    S[:, 2] = np.where(prompts == 3, 1.0, 0.0)  # alike pictures of one prompt
    return S, embeddings, prompts


@pytest.mark.parametrize("block", [None, 7])
def test_it_equals_the_correlation_with_what_the_other_half_taught(block):
    S, embeddings, prompts = run_of()
    found = clip_held_out(S, embeddings, prompts, seed=4, block=block)
    order = np.random.default_rng(4).permutation(np.unique(prompts))
    half = np.isin(prompts, order[: len(order) // 2])
    for feature in (0, 1):
        values, chances = [], []
        for learn in (half, ~half):
            centred = embeddings[learn] - embeddings[learn].mean(0)
            direction = centred.T @ (S[learn, feature] - S[learn, feature].mean())
            strength = embeddings[~learn] @ direction
            values.append(pearsonr(strength, S[~learn, feature])[0])
            freedom = len(np.unique(prompts[~learn])) - 2
            from scipy.stats import t

            chances.append(t.sf(values[-1] * np.sqrt(freedom / (1 - values[-1] ** 2)), freedom))
        assert found.r[feature] == pytest.approx(np.mean(values), abs=1e-4)
        assert found.p[feature] == pytest.approx(max(chances), rel=1e-2)


def test_what_can_be_seen_is_told_from_noise_and_from_one_prompts_pictures():
    S, embeddings, prompts = run_of()
    found = clip_held_out(S, embeddings, prompts)
    assert found.r[0] > 0.6
    assert found.p[0] < 1e-4
    assert abs(found.r[1]) < 0.35
    assert found.p[1] > 0.01
    assert np.isnan(found.r[2])  # no half holds both
    assert np.isnan(found.r[3])
    assert found.p[2:].tolist() == [1, 1]


def test_noise_is_as_significant_as_chance_says():
    rng = np.random.default_rng(1)
    embeddings = rng.normal(size=(80, 6)).astype(np.float32)
    S = (rng.random((80, 800)) * (rng.random((80, 800)) < 0.5)).astype(np.float32)
    found = clip_held_out(S, embeddings, np.arange(80))
    assert (found.p < 0.05).mean() < 0.05  # the larger of two p is taken
    assert abs(np.nanmean(found.r)) < 0.02


def test_two_prompts_tell_nothing_and_other_pictures_are_refused():
    S, embeddings, prompts = run_of(n_prompts=2)
    found = clip_held_out(S, embeddings, prompts)
    assert np.isnan(found.r).all()
    with pytest.raises(FluxscopeError, match="4 rows of S, 3 embeddings and 4 prompts do not fit"):
        clip_held_out(S, embeddings[:3], prompts)
