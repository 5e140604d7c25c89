import numpy as np
import pytest

from fluxscope.measures.certainty import (
    bootstrap_f1,
    dci,
    holm,
    permutation_p,
    permuted_pictures,
)
from fluxscope.measures.detection import f1_of


def test_the_bootstrap_draws_whole_prompts():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(15), 4)
    truth = rng.random((60, 2)) < 0.4
    fires = truth ^ (rng.random((60, 2)) < 0.2)
    found = bootstrap_f1(fires, truth, groups, seed=3, draws=40)
    times = np.random.default_rng(3).multinomial(15, np.full(15, 1 / 15), 40)
    for b in range(40):
        rows = np.concatenate([np.repeat(np.flatnonzero(groups == g), times[b, g]) for g in range(15)])
        assert found.f1[b] == pytest.approx(f1_of(fires[rows], truth[rows]))
    low, high = found.interval()
    value = f1_of(fires, truth)
    assert (low < value).all()
    assert (value < high).all()
    low, high = found.mean_interval([0, 1])
    assert low < value.mean() < high
    assert (low, high) == pytest.approx(tuple(np.percentile(found.f1.mean(1), [2.5, 97.5])))


def test_prompts_that_are_all_alike_leave_no_doubt():
    truth = np.tile([True, True, False], 10)[:, None]
    fires = np.tile([True, False, False], 10)[:, None]
    alike = bootstrap_f1(fires, truth, np.repeat(np.arange(10), 3))
    assert alike.interval().ravel() == pytest.approx([2 / 3, 2 / 3])
    split = bootstrap_f1(fires, truth, np.arange(30))
    assert np.ptp(split.interval()) > 0.1


def test_p_is_the_share_of_permutations_that_hit_as_often():
    rng = np.random.default_rng(1)
    truth = rng.random((12, 4, 3)) < 0.4
    fires = truth ^ (rng.random((12, 4, 3)) < 0.2)
    fires[:, :, 1] = rng.random((12, 4)) < 0.4
    fires[:, :, 2] = truth[:, :, 2] = [True, False, True, False]
    found = permutation_p(fires, truth, seed=5, shuffles=200)
    again = np.random.default_rng(5)
    dealt = [again.permutation(12) for _ in range(200)]
    for c in range(3):
        hits = (fires[:, :, c] & truth[:, :, c]).sum()
        as_often = sum((fires[:, :, c] & truth[order][:, :, c]).sum() >= hits for order in dealt)
        assert found[c] == pytest.approx((1 + as_often) / 201)
    assert found[0] < 0.05 < found[1]
    assert found[2] == 1  # it knows places only, and these are the same in every picture


def test_holm():
    assert holm(np.array([0.01, 0.04, 0.03])) == pytest.approx([0.03, 0.06, 0.06])
    assert holm(np.array([0.5, 0.9])) == pytest.approx([1, 1])
    assert holm(np.array([0.02, 0.02])) == pytest.approx([0.04, 0.04])


def test_pictures_are_permuted_within_their_part_and_keep_their_tokens():
    truth = np.arange(24).reshape(12, 2) % 5 == 0  # six pictures of two tokens
    pictures = [np.array([0, 1, 4, 5]), np.array([2, 3])]
    dealt = permuted_pictures(truth, pictures, 2, seed=1)
    before, after = truth.reshape(6, 2, 2), dealt.reshape(6, 2, 2)
    for part in pictures:
        assert sorted(after[part].tolist()) == sorted(before[part].tolist())
    assert any((permuted_pictures(truth, pictures, 2, s) != truth).any() for s in range(3))


def test_disentanglement_and_completeness():
    assert dci(np.eye(3)) == (1, 1)
    assert dci(np.ones((4, 3))) == pytest.approx((0, 0))
    several = np.repeat(np.eye(2), 3, axis=0)  # three features for each concept, each of one only
    disentangled, complete = dci(several)
    assert disentangled == 1
    assert complete == pytest.approx(1 - np.log(3) / np.log(6))
    mixed = np.array([[1.0, 1.0], [2.0, 0.0]])
    assert dci(mixed)[0] == pytest.approx(0.5)  # a half of the weight is a feature's that has two concepts
    assert dci(np.zeros((3, 2))) == (0, 0)
