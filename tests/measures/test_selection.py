from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measures_data import EPS, naive_coherence, sparse_S, unit_rows
from scipy.sparse import csc_array, csr_array

from fluxscope.errors import ConfigError, FluxscopeError
from fluxscope.measures.halves import LEAST, part_prompts
from fluxscope.measures.held_out import (
    Views,
    pictures_to_see,
    taught_by_others,
    taught_on_test_on,
    views_of,
)
from fluxscope.measures.selection import (
    RANKINGS,
    apart,
    order_features,
    score_features,
    select_features,
    together,
    with_crops,
)
from fluxscope.measures.top_images import both_ranked, rank_images
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


def views(S, e, prompts) -> Views:
    pictures = pictures_to_see(prompts)
    return views_of(pictures, prompts, csr_array(S[pictures.reshape(-1)]), e[:, None])


def in_halves(S, prompts, e):
    halves = part_prompts(prompts, S.shape[1])
    one = np.isin(prompts, halves.prompts)
    first, second = (rank_images(S, prompts, EPS, 8, some=half) for half in (one, ~one))
    overall = score_features(both_ranked(first, second, (int(one.sum()), int((~one).sum()))), e, prompts)
    parts = [score_features(r, e, prompts, 3, half) for r, half in ((first, one), (second, ~one))]
    return apart(overall, *parts, views(S, e, prompts), halves)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), levels=st.sampled_from([0, 2]), top_m=st.integers(2, 30))
def test_two_halves_ranked_are_all_ranked(seed, levels, top_m):
    S, prompts = sparse_S(60, 6, seed, 0.4, levels), np.random.default_rng(seed).integers(0, 20, 60)
    one = prompts % 3 == 0
    halves = [rank_images(S, prompts, EPS, top_m, some=half) for half in (one, ~one)]
    both, whole = (
        both_ranked(*halves, (int(one.sum()), int((~one).sum()))),
        rank_images(S, prompts, EPS, top_m),
    )
    for name in ("image", "score", "coverage", "frequency"):
        np.testing.assert_array_equal(getattr(both, name), getattr(whole, name))


def test_each_half_scores_the_features_that_it_chooses_and_shows_the_others():
    S, prompts, e = small_run()
    sides, halves = in_halves(S, prompts, e), part_prompts(prompts, S.shape[1])
    seen, one = views(S, e, prompts), np.isin(np.arange(30), halves.prompts)
    assert 10 <= halves.by_first.sum() <= 20 and one.sum() == 15
    for f in range(S.shape[1]):
        mine = np.isin(prompts, halves.prompts) == halves.by_first[f]
        learn = one == halves.by_first[f]
        assert sides.choosing.frequency[f] == np.float32((S[mine, f] > EPS).mean())
        assert sides.showing.frequency[f] == np.float32((S[~mine, f] > EPS).mean())
        assert sides.choosing.clip_held_out[f] == taught_by_others(seen, learn)[f]
        r, p = taught_on_test_on(seen, learn, ~learn)
        assert sides.showing.clip_held_out[f] == sides.overall.clip_held_out[f] == r[f]
        assert sides.overall.p_value[f] == np.float32(p[f])
        shown = [i for i in sides.showing.ranked.image[f] if i >= 0]
        assert shown == walk(np.where(mine, 0, S[:, f]), prompts, 8)
        kept = np.flatnonzero(mine)
        top = walk(S[mine, f], prompts[mine], 8)
        if len(top) >= 3:
            expected = naive_coherence(e, kept[top])
            assert sides.by("clip_coherence").chosen_score[f] == pytest.approx(expected, abs=1e-5)
    assert part_prompts(np.arange(LEAST - 1), 5) is None
    assert part_prompts(np.arange(LEAST), 5) is not None


def test_features_that_fire_alike_are_chosen_once():
    S, prompts, e = small_run(f=6)
    S[:, 4] = 3 * S[:, 2] + np.where(S[:, 2] > 0, 0.01 * np.arange(60), 0)
    scores = score_features(rank_images(S, prompts, EPS, 8), e, prompts, 2)
    scores = replace(scores, chosen_score=np.array([1, 2, 6, 4, 5, 3], np.float32))
    alike = np.corrcoef(S.T)

    def chosen(most_alike):
        choices = select_features(
            scores, scores.ranked, np.arange(60), 10, 1, False, csc_array(S), most_alike
        )
        return [each.feature_id for each in choices]

    assert chosen(1.0) == [2, 4, 3, 5, 1, 0]
    assert chosen(0.9) == [2, 3, 5, 1, 0]
    few = chosen(0.1)
    assert all(alike[a, b] <= 0.1 for a in few for b in few if a != b)
    for feature in set(range(6)) - set(few):  # each of these is like one that is better
        better = [f for f in few if scores.chosen_score[f] > scores.chosen_score[feature]]
        assert max(alike[feature, f] for f in better) > 0.1


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
    scores = together(scores, views(S, e, prompts)).by("clip_coherence")
    assert len(select_features(scores, scores.ranked, range(6), top_examples=1)) == 3


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), rank_by=st.sampled_from([r for r in RANKINGS if r != "crop_coherence"]))
def test_examples_are_unique_and_features_in_order(seed, rank_by):
    S, prompts, e = small_run(seed=seed)
    sides = in_halves(S, prompts, e)
    scores, showing = sides.by(rank_by), sides.showing.ranked
    records = select_features(scores, showing, np.arange(60) + 100, top_features=5, top_examples=3)
    examples = [i for r in records for i in r.example_image_ids]
    assert len(examples) == len(set(examples)) == 3 * len(records)
    values = scores.chosen_score[[r.feature_id for r in records]]
    assert (np.diff(values) <= 0).all()
    order = order_features(scores, scores.chosen_score)
    passed_over = set(order[: len(records)]) - {r.feature_id for r in records}
    for feature in passed_over:  # only a lack of unused images passes a feature over
        free = [i for i in showing.image[feature] if i >= 0 and i + 100 not in examples]
        assert len(free) < 3


def test_without_unique_every_feature_shows_its_best():
    S, prompts, e = small_run()
    scores = together(score_features(rank_images(S, prompts, EPS, 8), e, prompts), views(S, e, prompts))
    scores = scores.by("clip_coherence")
    for r in select_features(scores, scores.ranked, np.arange(60), unique=False):
        assert r.example_image_ids == r.top_m_image_ids[:4]


def test_crop_coherence_ranks_the_features_it_knows():
    S, prompts, e = small_run()
    scores = score_features(rank_images(S, prompts, EPS, 8), e, prompts)
    crops = unit_rows(6, 8, 4)
    scores = with_crops(scores, np.array([3, 9]), crops, np.array([[0, 1, 2], [3, 4, -1]]))
    assert scores.crop_coherence[3] == pytest.approx(naive_coherence(crops, [0, 1, 2]), abs=1e-5)
    assert set(order_features(scores, scores.by("crop_coherence"))) == {3, 9}


def test_clear_errors():
    S, prompts, e = small_run()
    with pytest.raises(FluxscopeError, match="60 images, the prompts are of 59"):
        rank_images(S, prompts[:-1], EPS, 8)
    with pytest.raises(ConfigError, match="'beauty'"):
        score_features(rank_images(S, prompts, EPS, 8), e, prompts).by("beauty")


def test_the_setting_offers_every_ranking():
    assert settings_table()["rank_by"].metadata["choices"] == RANKINGS
