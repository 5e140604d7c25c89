import numpy as np
import pytest
from scipy.sparse import csr_array

from fluxscope.measures import readout
from fluxscope.measures.controls import both_sides, neurons, principal_components
from fluxscope.measures.detection import Parts, f1_of
from fluxscope.measures.readout import (
    RIDGE,
    best_coalitions,
    best_cuts,
    dense_average_precision,
    difference_of_means,
    linear_probe,
    read_out,
)

PARTS = Parts(np.arange(0, 120), np.arange(120, 180), np.arange(180, 300))


def data(seed=0, features=12, c=3):
    """Codes in which each concept is split over several features, and one feature that never fires."""
    rng = np.random.default_rng(seed)
    codes = rng.random((300, features)) * (rng.random((300, features)) < 0.3)
    truth = np.stack([(codes[:, 3 * i : 3 * i + 3] > 0).any(1) for i in range(c)], axis=1)
    codes[:, -1] = 0
    return codes.astype(np.float32), truth


def plain_greedy(x, y, most):
    """Orthogonal matching pursuit with a solver of its own: each step fits all taken features anew."""
    alive = x.std(0) > 0
    z = np.where(alive, (x - x.mean(0)) / np.where(alive, x.std(0), 1), 0)
    target = y - y.mean()
    taken, residual = [], target
    while len(taken) < most:
        left = np.abs(z.T @ residual)
        left[[*taken, *np.flatnonzero(~alive)]] = -1
        if left.max() < 1e-9 * len(x):
            break
        taken.append(int(left.argmax()))
        stacked = np.concatenate([z[:, taken], np.sqrt(RIDGE * len(x)) * np.eye(len(taken))])
        weights = np.linalg.lstsq(stacked, np.append(target, np.zeros(len(taken))), rcond=None)[0]
        residual = target - z[:, taken] @ weights
    return taken, weights


def plain_cut(score, has):
    tried = [(f1_of((score >= cut)[:, None], has[:, None])[0], cut) for cut in np.unique(score)]
    return max(tried)


@pytest.mark.parametrize("dense", [0.0, 1.0])
def test_coalitions_are_those_of_a_plain_pursuit(dense, monkeypatch):
    monkeypatch.setattr(readout, "_DENSE", dense)  # both ways to make the products
    codes, truth = data()
    found = best_coalitions(csr_array(codes), truth, PARTS)
    x, live = codes[PARTS.choose].astype(float), codes[PARTS.choose].std(0)
    for c in range(3):
        taken, weights = plain_greedy(x, truth[PARTS.choose, c].astype(float), 16)
        largest = found.up_to[16].members[c]
        assert largest[largest >= 0].tolist() == taken
        assert set(taken[:3]) == {3 * c, 3 * c + 1, 3 * c + 2}
        assert found.weight[taken, c] == pytest.approx(np.abs(weights), rel=1e-3)
        assert np.flatnonzero(found.weight[:, c]).tolist() == sorted(taken)
        assert found.up_to[4].members[c].tolist() == taken[:4]
        for limit, allowed in ((4, (1, 2, 3, 4)), (16, (1, 2, 3, 4, 6, 8, 11))):
            best = (-1.0, 0, None)
            for size in allowed:
                few, w = plain_greedy(x, truth[PARTS.choose, c].astype(float), size)
                score = (codes[:, few] / live[few]) @ w
                f1, cut = plain_cut(score[PARTS.tune], truth[PARTS.tune, c])
                if f1 > best[0] + 1e-9:
                    best = (f1, size, (score, cut))
            assert found.up_to[limit].size[c] == best[1]
            score, cut = best[2]
            verdicts = found.up_to[limit].verdicts
            assert (verdicts.fires[:, c] == (score[PARTS.report] >= cut - 1e-9)).mean() > 0.98
    assert (found.needed == 3).all()
    assert not (found.up_to[16].members == 11).any()  # the silent one


def test_a_concept_that_nothing_tells_has_no_coalition():
    found = best_coalitions(csr_array(np.zeros((300, 4))), np.ones((300, 1), bool), PARTS)
    assert (found.up_to[16].members == -1).all()
    assert not found.up_to[16].verdicts.fires.any()


def test_the_probe_is_least_squares():
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(300, 5)) * [1, 5, 0.2, 1, 1] + 3).astype(np.float32)
    truth = (x @ rng.normal(size=(5, 2)) + rng.normal(size=(300, 2))) > [3, 1]
    design = np.c_[x[PARTS.choose], np.ones(120)]
    weights = np.linalg.lstsq(design, truth[PARTS.choose].astype(float), rcond=None)[0]
    score = np.c_[x, np.ones(300)] @ weights
    found, expected = linear_probe(x, truth, PARTS), read_out(score, truth, PARTS)
    assert (found.fires == expected.fires).mean() > 0.98
    assert found.auprc == pytest.approx(expected.auprc, abs=0.01)


def test_the_direction_is_the_difference_of_means():
    rng = np.random.default_rng(2)
    x, truth = rng.normal(size=(300, 4)).astype(np.float32), rng.random((300, 2)) < 0.3
    chosen, facts = x[PARTS.choose], truth[PARTS.choose]
    directions = [chosen[facts[:, c]].mean(0) - chosen[~facts[:, c]].mean(0) for c in range(2)]
    found, expected = (
        difference_of_means(x, truth, PARTS),
        read_out(x @ np.stack(directions, 1), truth, PARTS),
    )
    assert (found.fires == expected.fires).all()
    assert found.auprc == pytest.approx(expected.auprc)


def test_cuts_and_areas_equal_trying_all():
    rng = np.random.default_rng(3)
    scores, truth = rng.integers(-4, 5, (80, 4)).astype(float), rng.random((80, 4)) < 0.3
    truth[:, 3] = False
    cuts, values = best_cuts(scores, truth)
    for c in range(3):
        value, _ = plain_cut(scores[:, c], truth[:, c])
        assert values[c] == pytest.approx(value)
        assert f1_of((scores[:, [c]] >= cuts[c]), truth[:, [c]])[0] == pytest.approx(value)
        area = before = 0.0
        for cut in sorted(set(scores[:, c]), reverse=True):
            fires = scores[:, c] >= cut
            recall = (fires & truth[:, c]).sum() / truth[:, c].sum()
            area, before = area + (recall - before) * truth[fires, c].mean(), recall
        assert dense_average_precision(scores[:, c], truth[:, c]) == pytest.approx(area)
    assert np.isinf(cuts[3])
    assert values[3] == dense_average_precision(scores[:, 3], truth[:, 3]) == 0


def test_the_cut_is_not_chosen_where_it_is_reported():
    truth = np.ones((300, 1), bool)
    truth[::2] = False
    scores = np.where(truth, 1.0, 0.0)
    scores[PARTS.report] = np.where(truth[PARTS.report], 0.9, 0.0)  # below the cut that tuning finds
    assert not read_out(scores, truth, PARTS).fires.any()


def test_controls_have_two_sides_and_know_only_the_chosen_rows():
    x = np.random.default_rng(4).normal(size=(50, 6)).astype(np.float32) * [3, 1, 1, 1, 1, 1] + 2
    x = x.astype(np.float32)
    sides = both_sides(x - 2).toarray()
    assert sides[:, :6] - sides[:, 6:] == pytest.approx(x - 2)
    assert (sides.min(), (sides[:, :6] * sides[:, 6:]).max()) == (0, 0)
    chosen = np.arange(20)
    assert neurons(x, chosen).toarray()[:, :6] == pytest.approx(np.maximum(x - x[:20].mean(0), 0), abs=1e-5)
    turned = principal_components(x, chosen).toarray()
    turned = turned[:20, :6] - turned[:20, 6:]
    covariance = turned.T @ turned
    assert np.abs(covariance - np.diag(covariance.diagonal())).max() < 1e-3
    assert (np.diff(covariance.diagonal()) < 0).all()
