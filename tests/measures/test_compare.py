import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measures_data import EPS, sparse_S
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array

from fluxscope.errors import FluxscopeError
from fluxscope.measures import compare
from fluxscope.measures.compare import (
    correlation_blocks,
    cosine_blocks,
    image_l0,
    linear_cka,
    one_to_one,
    partners,
    top_features,
    top_overlap,
)
from fluxscope.measures.profiles import shared_features


def whole(blocks):
    return np.concatenate([rows for _, rows in blocks])


def layers(n=80, fa=11, fb=7, seed=0):
    return sparse_S(n, fa, seed), sparse_S(n, fb, seed + 1)


def found_in(a, b, block=3, **options):
    blocks = correlation_blocks(compare.sparse_S(a), compare.sparse_S(b), block)
    return partners(blocks, a.shape[1], b.shape[1], **options)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.integers(1, 12))
def test_correlations_equal_numpy(seed, block):
    a, b = layers(seed=seed)
    ours = whole(correlation_blocks(compare.sparse_S(a), compare.sparse_S(b), block))
    np.testing.assert_allclose(ours, np.corrcoef(a.T, b.T)[:11, 11:], atol=1e-6)
    found = found_in(a, b, block)
    np.testing.assert_array_equal(found.best, ours.argmax(1))
    np.testing.assert_array_equal(found.back_best, ours.argmax(0))
    np.testing.assert_allclose(found.back_similarity, ours.max(0), atol=1e-6)


def test_a_layer_and_itself():
    a, _ = layers(200, 40)
    found = found_in(a, a)
    np.testing.assert_array_equal(found.best, np.arange(40))
    np.testing.assert_allclose(found.similarity, 1, atol=1e-6)
    np.testing.assert_array_equal(one_to_one(found), np.arange(40))
    x = np.random.default_rng(0).standard_normal((50, 6))
    assert linear_cka([(x[:20], x[:20]), (x[20:], x[20:])]) == pytest.approx(1)
    cosine = partners(cosine_blocks(x, x, 7), 50, 50)
    np.testing.assert_array_equal(cosine.best, np.arange(50))
    top = top_features(a, 5, EPS)
    np.testing.assert_array_equal(top_overlap(top, top, one_to_one(found)), 1)


def test_a_shuffled_layer_is_put_in_order():
    a, _ = layers(200, 40)
    order = np.random.default_rng(1).permutation(40)
    np.testing.assert_array_equal(order[one_to_one(found_in(a, a[:, order] * 3))], np.arange(40))


def test_random_layers_have_little_in_common():
    a, b = layers(4000, 20, 20)
    assert np.abs(found_in(a, b).similarity).max() < 0.1
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((5000, 10)), rng.standard_normal((5000, 8))
    assert linear_cka([(x, y)]) < 0.01


def test_cka_does_not_mind_rotation_scale_and_shift():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100, 6)) * np.arange(1, 7)
    rotation = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    assert linear_cka([(x, 5 * x @ rotation + 3)]) == pytest.approx(1)
    y = x + rng.standard_normal(x.shape) * 4
    centred = [v - v.mean(0) for v in (x, y)]
    grams = [v @ v.T for v in centred]
    by_grams = (grams[0] * grams[1]).sum() / np.sqrt((grams[0] ** 2).sum() * (grams[1] ** 2).sum())
    assert linear_cka([(x[:7], y[:7]), (x[7:], y[7:])]) == pytest.approx(by_grams)


@pytest.mark.parametrize(("fa", "fb"), [(8, 8), (12, 5), (5, 12)])
def test_matching_is_the_best_there_is(fa, fb):
    a, b = layers(60, fa, fb, seed=5)
    matched = one_to_one(found_in(a, b))
    similarity = whole(correlation_blocks(compare.sparse_S(a), compare.sparse_S(b)))
    pairs = np.flatnonzero(matched >= 0)
    assert len(set(matched[pairs])) == len(pairs)
    rows, columns = linear_sum_assignment(-np.maximum(similarity, 0))
    best = np.maximum(similarity, 0)[rows, columns].sum()
    assert similarity[pairs, matched[pairs]].sum() == pytest.approx(best, abs=1e-6)


def test_dead_features_have_no_partner():
    a, b = layers()
    a[:, 2], b[:, 3] = 0, 5.0  # silent, and constant
    found = found_in(a, b)
    assert (found.best[2], found.back_best[3]) == (-1, -1)
    assert np.isnan(found.similarity[2])
    assert one_to_one(found)[2] == -1
    assert 3 not in one_to_one(found)
    shared = shared_features(found, np.delete(np.arange(11), 2), np.arange(7), threshold=0.0)
    assert 2 not in shared.vanish
    assert 3 in shared.appear


def test_few_candidates_are_the_best_ones():
    a, b = layers(fa=6, fb=30)
    all_of_them, few = found_in(a, b), found_in(a, b, candidates=4)
    np.testing.assert_array_equal(few.candidates, all_of_them.candidates[:, :4])
    np.testing.assert_array_equal(few.best, all_of_them.best)


def test_features_persist_vanish_and_appear():
    a, _ = layers(200, 10)
    b = np.concatenate([a[:, :6], sparse_S(200, 3, 77)], axis=1)
    shared = shared_features(found_in(a, b), np.arange(10), np.arange(9), 0.5)
    assert shared.persist.tolist() == list(range(6))
    assert shared.vanish.tolist() == [6, 7, 8, 9]
    assert shared.appear.tolist() == [6, 7, 8]


def test_l0_and_top_features():
    a, _ = layers(50, 11)
    assert image_l0(a, EPS).tolist() == (a > EPS).sum(1).tolist()
    for row, top in zip(a, top_features(a, 4, EPS), strict=True):
        expected = [j for j in np.argsort(-row, kind="stable") if row[j] > EPS][:4]
        assert [j for j in top if j >= 0] == expected


def test_overlap_counts_partners():
    a, b = np.array([[0, 1], [2, -1], [-1, -1]]), np.array([[5, 9], [7, 8], [1, 2]])
    overlap = top_overlap(a, b, np.array([9, 4, 7]))
    assert overlap[:2].tolist() == [0.5, 1.0]
    assert np.isnan(overlap[2])


def test_different_images_are_refused():
    a, b = csr_array(np.ones((3, 2))), csr_array(np.ones((4, 2)))
    with pytest.raises(FluxscopeError, match="one layer has 3 rows, the other 4"):
        next(correlation_blocks(a, b))
    with pytest.raises(FluxscopeError, match="no tokens"):
        linear_cka([])
    with pytest.raises(FluxscopeError, match="same on every token"):
        linear_cka([(np.ones((3, 2)), np.ones((3, 2)))])
