import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measures_data import EPS, naive_coherence, sparse_S, unit_rows

from fluxscope.errors import ConfigError, FluxscopeError
from fluxscope.measures.selection import (
    RANKINGS,
    order_features,
    rank_images,
    score_features,
    select_features,
    with_crops,
)
from fluxscope.settings.config import settings_table


def walk(column: np.ndarray, prompts: np.ndarray, top_m: int) -> list[int]:
    """The plain form: images by descending activation, the first of each prompt."""
    kept: list[int] = []
    for i in np.argsort(-column, kind="stable"):
        if column[i] > EPS and prompts[i] not in prompts[kept]:
            kept.append(int(i))
    return kept[:top_m]


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(2, 50),
    reps=st.integers(1, 4),
    seed=st.integers(0, 99),
    levels=st.sampled_from([0, 2]),
    density=st.sampled_from([0.05, 0.5, 1.0]),
    shuffled=st.booleans(),
    block=st.sampled_from([None, 5]),
)
def test_ranked_images_equal_the_plain_walk(n, reps, seed, levels, density, shuffled, block):
    S, prompts = sparse_S(n, 6, seed, density, levels), np.arange(n) // reps * 10
    if shuffled:
        prompts = np.random.default_rng(seed).permutation(prompts)
    ranked = rank_images(S, prompts, EPS, 7, block)
    for j in range(6):
        assert [i for i in ranked.image[j] if i >= 0] == walk(S[:, j], prompts, 7)
        assert ranked.coverage[j] == len(set(prompts[S[:, j] > EPS]))
        assert ranked.frequency[j] == np.float32((S[:, j] > EPS).mean())


def small_run(n=60, f=30, reps=2, seed=0):
    S, prompts = sparse_S(n, f, seed, 0.4), np.arange(n) // reps
    return S, prompts, unit_rows(n, 16, seed)


def test_scores_equal_the_plain_loop():
    S, prompts, e = small_run()
    scores = score_features(rank_images(S, prompts, EPS, 8), e, prompts, min_prompts=6)
    for j in range(S.shape[1]):
        top = walk(S[:, j], prompts, 8)
        assert scores.n_top[j] == len(top)
        if len(top) < 6:
            assert np.isnan(scores.clip_coherence[j])
        else:
            assert scores.clip_coherence[j] == pytest.approx(naive_coherence(e, top), abs=1e-5)


def test_z_is_about_standard_for_random_features_and_high_for_a_real_one():
    rng = np.random.default_rng(0)
    S, prompts, e = sparse_S(400, 500, 1, 0.2), np.arange(400) // 2, unit_rows(400, 24, 0)
    group = rng.permutation(200)[:30]  # 30 prompts about one thing
    about = np.isin(prompts, group)
    e[about] += 1.5 * unit_rows(1, 24, 9)
    e /= np.linalg.norm(e, axis=1, keepdims=True)
    S[:, 7] = np.where(about, 1 + rng.random(400), 0)
    z = score_features(rank_images(S, prompts, EPS, 12), e, prompts).coherence_z
    others = np.delete(z, 7)
    assert abs(others.mean()) < 0.2
    assert 0.8 < others.std() < 1.25
    assert z[7] > 5


def test_a_run_with_few_prompts_still_selects():
    S, prompts, e = np.ones((6, 3), np.float32), np.arange(6) // 2, unit_rows(6, 8, 0)
    scores = score_features(rank_images(S, prompts, EPS, 20), e, prompts)
    assert np.isfinite(scores.clip_coherence).all()
    assert len(select_features(scores, range(6), top_examples=1)) == 3


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), rank_by=st.sampled_from([r for r in RANKINGS if r != "crop_coherence"]))
def test_examples_are_unique_and_features_in_order(seed, rank_by):
    S, prompts, e = small_run(seed=seed)
    scores = score_features(rank_images(S, prompts, EPS, 8), e, prompts)
    records = select_features(scores, np.arange(60) + 100, rank_by, top_features=5, top_examples=3)
    examples = [i for r in records for i in r.example_image_ids]
    assert len(examples) == len(set(examples)) == 3 * len(records)
    assert all(set(r.example_image_ids) <= set(r.top_m_image_ids) for r in records)
    values = scores.by(rank_by)[[r.feature_id for r in records]]
    assert (np.diff(values) <= 0).all()
    passed_over = set(order_features(scores, rank_by)[: len(records)]) - {r.feature_id for r in records}
    for feature in passed_over:  # only a lack of unused images passes a feature over
        free = [i for i in scores.ranked.image[feature] if i >= 0 and i + 100 not in examples]
        assert len(free) < 3


def test_without_unique_every_feature_shows_its_best():
    S, prompts, e = small_run()
    scores = score_features(rank_images(S, prompts, EPS, 8), e, prompts)
    for r in select_features(scores, np.arange(60), unique=False):
        assert r.example_image_ids == r.top_m_image_ids[:4]


def test_crop_coherence_ranks_the_features_it_knows():
    S, prompts, e = small_run()
    scores = score_features(rank_images(S, prompts, EPS, 8), e, prompts)
    crops = unit_rows(6, 8, 4)
    scores = with_crops(scores, np.array([3, 9]), crops, np.array([[0, 1, 2], [3, 4, -1]]))
    assert scores.crop_coherence[3] == pytest.approx(naive_coherence(crops, [0, 1, 2]), abs=1e-5)
    assert set(order_features(scores, "crop_coherence")) == {3, 9}


def test_clear_errors():
    S, prompts, e = small_run()
    with pytest.raises(FluxscopeError, match="60 images, the prompts are of 59"):
        rank_images(S, prompts[:-1], EPS, 8)
    with pytest.raises(ConfigError, match="'beauty'"):
        order_features(score_features(rank_images(S, prompts, EPS, 8), e, prompts), "beauty")


def test_the_setting_offers_every_ranking():
    assert settings_table()["rank_by"].metadata["choices"] == RANKINGS
