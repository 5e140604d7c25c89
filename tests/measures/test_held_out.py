import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.stats import pearsonr

from fluxscope.measures import held_out
from fluxscope.measures.certainty import false_discovery
from fluxscope.measures.held_out import pictures_to_see, taught_by_others, taught_on_test_on, views_of


def run_of(seed=0, n_prompts=40, reps=2, tiles=3, e=8):
    """Tiles that lie somewhere in CLIP's space, and five features; pictures in no order."""
    rng = np.random.default_rng(seed)
    prompts = rng.permutation(np.repeat(np.arange(n_prompts) * 7, reps))
    n = len(prompts)
    place = rng.normal(size=(n_prompts, 1, e))[prompts // 7] + rng.normal(size=(n, tiles, e))
    embeddings = (place / np.linalg.norm(place, axis=2, keepdims=True)).astype(np.float32)
    S = np.zeros((n, tiles, 5), np.float32)
    S[..., 0] = np.maximum(embeddings[..., 0], 0)  # one that can be seen
    S[..., 1] = rng.random((n, tiles)) * (rng.random((n, tiles)) < 0.3)  # noise
    S[..., 2] = np.arange(tiles)  # the same in every picture
    S[prompts == 21, :, 3] = 1.0  # one prompt's
    return S, embeddings, prompts


def views(S, embeddings, prompts):
    pictures = pictures_to_see(prompts)
    strength = csr_array(S[pictures.reshape(-1)].reshape(-1, S.shape[-1]))
    return views_of(pictures, prompts, strength, embeddings)


def blocks(values, prompts, wanted):
    """The plain form: of each prompt its pictures' tiles, in order, less the mean of each place."""
    rows = np.stack([values[prompts == prompt].reshape(-1, values.shape[-1]) for prompt in wanted])
    return rows.astype(np.float64) - rows.astype(np.float64).mean(0)


def test_it_equals_the_correlation_with_what_the_other_half_taught():
    S, embeddings, prompts = run_of()
    seen = views(S, embeddings, prompts)
    half = np.arange(40) % 3 == 0
    r, p = taught_on_test_on(seen, half, ~half)
    x, y = (blocks(embeddings, prompts, seen.prompts[part]) for part in (half, ~half))
    a, b = (blocks(S, prompts, seen.prompts[part]) for part in (half, ~half))
    for feature in (0, 1):
        direction = np.einsum("pve,pv->e", x, a[..., feature])
        along = y @ direction
        assert r[feature] == pytest.approx(pearsonr(along.ravel(), b[..., feature].ravel())[0], abs=1e-5)
        rng = np.random.default_rng(0)
        products = along[:, None] * b[None, :, :, feature]
        dealt = [products[rng.permutation(len(y)), np.arange(len(y))].sum() for _ in range(4000)]
        truth = np.einsum("pv,pv->", along, b[..., feature])
        assert p[feature] == pytest.approx(np.mean(np.array(dealt) >= truth), abs=0.02)
    assert p[0] < 1e-5


def test_leaving_a_prompt_out_equals_learning_without_it():
    S, embeddings, prompts = run_of(n_prompts=12)
    seen = views(S, embeddings, prompts)
    some = np.arange(12) != 4
    r = taught_by_others(seen, some)
    used = seen.prompts[some]
    for feature in (0, 1):
        along = []
        for prompt in used:
            others = used[used != prompt]
            x, a = blocks(embeddings, prompts, others), blocks(S, prompts, others)[..., feature]
            raw = [embeddings[prompts == other].reshape(-1, 8) for other in others]
            own = embeddings[prompts == prompt].reshape(-1, 8).astype(np.float64) - np.mean(raw, axis=0)
            along.append(own @ np.einsum("pve,pv->e", x, a))
        s = blocks(S, prompts, used)[..., feature]
        assert r[feature] == pytest.approx(pearsonr(np.ravel(along), s.ravel())[0], abs=1e-5)


def test_what_can_be_seen_is_told_from_noise_from_places_and_from_one_prompts_pictures():
    S, embeddings, prompts = run_of()
    seen = views(S, embeddings, prompts)
    half = np.arange(40) < 20
    for r in (taught_by_others(seen, half), taught_on_test_on(seen, half, ~half)[0]):
        assert r[0] > 0.6
        assert abs(r[1]) < 0.35
        assert np.isnan(r[[2, 4]]).all()
    p = taught_on_test_on(seen, half, ~half)[1]
    assert p[1] > 0.01
    assert p[2:].tolist() == [1, 1, 1]


def test_a_feature_of_few_prompts_cannot_be_surer_than_there_are_deals():
    """Active on one of 20 prompts, on just what was taught: one deal in twenty does as well."""
    S, embeddings, prompts = run_of()
    embeddings[np.isin(prompts, (0, 7 * 30))] = embeddings[0, 0]
    S[..., 1] = np.isin(prompts, (0, 7 * 30))[:, None]
    half = np.arange(40) < 20
    p = taught_on_test_on(views(S, embeddings, prompts), half, ~half)[1]
    assert p[1] == pytest.approx(1 / 20)


def test_noise_is_as_significant_as_chance_says():
    rng = np.random.default_rng(1)
    embeddings = rng.normal(size=(80, 2, 6)).astype(np.float32)
    S = (rng.exponential(size=(80, 2, 3000)) * (rng.random((80, 2, 3000)) < 0.15)).astype(np.float32)
    half = np.arange(80) < 40
    p = taught_on_test_on(views(S, embeddings, np.arange(80)), half, ~half)[1]
    for level in (0.5, 0.05, 0.01):
        assert (p < level).mean() == pytest.approx(level, rel=0.35)
    assert (false_discovery(p) <= 0.05).sum() == 0


def test_the_chance_of_skewed_noise_is_no_normal_ones():
    """A normal distribution says 1.7% where 1% is meant, and 1.1% for 0.5%."""
    rng = np.random.default_rng(3)
    embeddings = (rng.exponential(size=(60, 1, 2)) ** 2).astype(np.float32)
    S = (rng.exponential(size=(60, 1, 4000)) ** 2 * (rng.random((60, 1, 4000)) < 0.3)).astype(np.float32)
    half = np.arange(60) < 30
    p = taught_on_test_on(views(S, embeddings, np.arange(60)), half, ~half)[1]
    assert 0.005 < (p < 0.01).mean() < 0.012
    assert 0.0025 < (p < 0.005).mean() < 0.007


def test_blocks_of_features_change_nothing(monkeypatch):
    seen = views(*run_of())
    half = np.arange(40) < 20
    whole = taught_by_others(seen, half), *taught_on_test_on(seen, half, ~half)
    monkeypatch.setattr(held_out, "BLOCK", 2 * 40 * 40)
    parts = taught_by_others(seen, half), *taught_on_test_on(seen, half, ~half)
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_few_prompts_tell_nothing():
    seen = views(*run_of(n_prompts=3))
    everything = np.ones(3, bool)
    assert np.isnan(taught_by_others(seen, everything)).all()
    r, p = taught_on_test_on(seen, everything, everything)
    assert np.isnan(r).all() and (p == 1).all()


def test_every_prompt_has_as_many_pictures_and_very_many_are_not_needed(monkeypatch):
    prompts = np.array([5, 3, 5, 3, 9, 9, 3, 9, 5, 9])
    assert pictures_to_see(prompts).tolist() == [[1, 3, 6], [0, 2, 8], [4, 5, 7]]
    monkeypatch.setattr(held_out, "MOST_PROMPTS", 2)
    monkeypatch.setattr(held_out, "MOST_PICTURES", 2)
    some = pictures_to_see(prompts)
    assert some.shape == (2, 2)
    assert all(row in [[1, 3], [0, 2], [4, 5]] for row in some.tolist())
    assert prompts[some[0, 0]] < prompts[some[1, 0]]


def test_false_discoveries_are_those_of_benjamini_and_hochberg():
    p = np.random.default_rng(0).random(200) ** 3
    for level in (0.01, 0.05, 0.3):
        line = level * np.arange(1, 201) / 200
        below = np.flatnonzero(np.sort(p) <= line)
        passing = p <= (np.sort(p)[below[-1]] if len(below) else -1)
        np.testing.assert_array_equal(false_discovery(p) <= level, passing)
    assert len(false_discovery(np.zeros(0))) == 0
