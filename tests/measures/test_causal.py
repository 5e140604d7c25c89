import numpy as np
import pytest

from fluxscope.measures.causal import absorption, exact_pairs, pair_scores


def test_only_pairs_that_differ_as_was_wished_are_exact():
    kinds = ["color", "color", "shape", "shape"]  # red, blue, star, ring
    has = np.array([[1, 0, 1, 0], [0, 1, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]], bool)
    pairs = np.array([[0, 1], [0, 2], [0, 3], [0, 1], [1, 2]])
    wished = ["color", "color", "color", "shape", "shape"]
    assert exact_pairs(pairs, has, kinds, wished).tolist() == [[0, 1], [1, 2]]


def test_pairs_by_a_plain_loop():
    rng = np.random.default_rng(0)
    pairs = rng.permutation(80).reshape(40, 2)
    has, strength = rng.random((80, 3)) < 0.4, rng.random((80, 3))
    strength[:, 0] += has[:, 0]  # a good one, an indifferent one, and one that is always wrong
    strength[:, 2] = np.where(has[:, 2], 0.0, 1.0)
    threshold = np.array([1.0, 0.5, 0.5])
    found = pair_scores(pairs, strength, threshold, has)
    for c in range(3):
        own, follows, leaks, moved, other = 0, 0, 0, [], []
        for a, b in pairs:
            says = strength[a, c] >= threshold[c], strength[b, c] >= threshold[c]
            change = abs(strength[a, c] - strength[b, c])
            if has[a, c] != has[b, c]:
                own += 1
                follows += says == (has[a, c], has[b, c])
                moved.append(change)
            else:
                leaks += says[0] != says[1]
                other.append(change)
        assert found.own[c] == own
        assert found.follows[c] == pytest.approx(follows / own)
        assert found.leakage[c] == pytest.approx(leaks / len(other))
        expected = np.mean(moved) / (np.mean(moved) + np.mean(other))
        assert found.selectivity[c] == pytest.approx(expected)
    assert found.follows[0] > 0.9
    assert found.follows[2] == 0
    assert found.selectivity[0] > 0.7


def test_without_pairs_there_is_no_score():
    has = np.array([[True, True], [False, True]])
    found = pair_scores(np.array([[0, 1]]), np.ones((2, 2)), np.zeros(2), has)
    assert found.own.tolist() == [1, 0]
    assert np.isnan(found.follows[1])
    assert np.isnan(found.leakage[0])
    assert np.isnan(found.selectivity).all()  # nothing moves


def test_absorption_counts_the_kinds_that_are_left_out():
    red = np.array([True] * 60 + [False] * 40)
    kinds = np.zeros((100, 4), bool)
    kinds[:20, 0] = kinds[20:40, 1] = kinds[40:57, 2] = kinds[60:80, 3] = True
    fires = np.zeros(100, bool)
    fires[:20] = True  # all of the first kind,
    fires[20:24] = True  # and a fifth of the second
    truth = np.stack([red, ~red], axis=1)
    found = absorption(np.stack([fires, ~fires], 1), truth, [[0, 1, 2], [3]], kinds)
    assert found.tolist() == [0, 0]  # 4 of 20 are just half of 24 of 60
    fires[20] = False
    assert absorption(fires[:, None], truth[:, :1], [[0, 1, 2]], kinds)[0] == 0.5  # the third is too small
    assert np.isnan(absorption(fires[:, None], truth[:, :1], [[2]], kinds)[0])
