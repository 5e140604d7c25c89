import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from fluxscope.errors import FluxscopeError
from fluxscope.measures import detection
from fluxscope.measures.detection import (
    Parts,
    average_precision,
    best_f1,
    best_single_f1,
    split_by_group,
    thresholds,
)


def some_codes(seed, rows=60, features=7, density=0.4, levels=5):
    """Sparse codes with many ties; one feature is silent."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(1, levels + 1, (rows, features)) * (rng.random((rows, features)) < density)
    codes[:, 2] = 0
    return codes.astype(np.float32) / 4


def plain_f1(fires, truth):
    hits = (fires & truth).sum()
    total = fires.sum() + truth.sum()
    return 2 * hits / total if total else 0.0


def plain_best(column, truth):
    """The largest F1 of a column of codes and the lowest threshold that has it, by trying all."""
    tried = [(plain_f1(column >= cut, truth), -cut) for cut in np.unique(column[column > 0])]
    value, cut = max(tried, default=(0.0, -np.inf), key=lambda pair: (round(pair[0], 9), -pair[1]))
    return value, -cut


def plain_average_precision(column, truth):
    area = before = 0.0
    for cut in sorted(np.unique(column), reverse=True):
        fires = column >= cut
        recall = (fires & truth).sum() / truth.sum()
        area += (recall - before) * (fires & truth).sum() / fires.sum()
        before = recall
    return area


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.sampled_from([1, 3, 10_000]))
def test_best_f1_equals_trying_every_threshold(seed, entries):
    codes, truth = some_codes(seed), np.random.default_rng(seed + 1).random((60, 4)) < 0.3
    truth[:, 3] = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detection, "_ENTRIES", entries)  # blocks of one feature, and of all
        found = best_f1(csr_array(codes).tocsc(), truth)
    expected = [[plain_best(codes[:, j], truth[:, c])[0] for c in range(4)] for j in range(7)]
    assert found == pytest.approx(np.array(expected), abs=1e-6)
    assert not found[2].any()
    assert not found[:, 3].any()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999))
def test_threshold_and_average_precision_equal_the_plain_loop(seed):
    codes, truth = some_codes(seed), np.random.default_rng(seed + 1).random((60, 3)) < 0.3
    columns, features, concepts = (
        csr_array(codes).tocsc(),
        np.array([0, 1, 6, -1, 2]),
        np.array([0, 1, 2, 0, 0]),
    )
    cut = thresholds(columns, truth, features, concepts)
    area = average_precision(columns, truth, features, concepts)
    for i in range(3):
        column, has = codes[:, features[i]], truth[:, concepts[i]]
        value, _ = plain_best(column, has)
        assert plain_f1(column >= cut[i], has) == pytest.approx(value)
        assert cut[i] in column
        assert area[i] == pytest.approx(plain_average_precision(column, has))
    assert np.isinf(cut[3:]).all()
    assert area[3] == 0
    assert area[4] == pytest.approx(truth[:, 0].mean())  # a silent feature knows the base rate


def test_the_best_single_feature_is_chosen_on_one_part_and_scored_on_another():
    rng = np.random.default_rng(0)
    truth = rng.random((300, 2)) < 0.3
    codes = rng.random((300, 5)).astype(np.float32) * (rng.random((300, 5)) < 0.5)
    parts = Parts(np.arange(100), np.arange(100, 150), np.arange(150, 300))
    codes[:, 3] = np.where(truth[:, 0], 2 + np.arange(300) / 300, rng.random(300))
    codes[150, 3] = 3  # a false alarm, and a miss: below the lowest code that was chosen on
    codes[np.flatnonzero(truth[:, 0])[-1], 3] = 1.5
    codes[:100, 4] = np.where(truth[:100, 1], 1, 0)  # right only where it is chosen
    codes[100:, 4] = np.where(truth[100:, 1], 0, 1)
    found = best_single_f1(csr_array(codes), truth, parts)
    assert found.feature.tolist() == [3, 4]
    assert found.threshold[0] >= 2
    assert found.threshold[1] == 1
    assert found.chosen_f1 == pytest.approx([1, 1])
    report = parts.report
    for c in range(2):
        fires = codes[report, found.feature[c]] >= found.threshold[c]
        assert found.f1[c] == pytest.approx(plain_f1(fires, truth[report, c]))
        assert 0 < found.f1[c] < 1 or c == 1
        assert found.auprc[c] == pytest.approx(
            plain_average_precision(codes[report, found.feature[c]], truth[report, c])
        )
    assert found.f1[1] == found.iou[1] == 0


def test_iou_is_that_of_the_detector():
    codes, truth = some_codes(3, rows=90), np.random.default_rng(4).random((90, 3)) < 0.4
    parts = split_by_group(np.arange(90) // 3, 1)
    found = best_single_f1(csr_array(codes), truth, parts)
    for c in range(3):
        fires = codes[parts.report, found.feature[c]] >= found.threshold[c]
        has = truth[parts.report, c]
        assert found.f1[c] == pytest.approx(plain_f1(fires, has))
        assert found.iou[c] == pytest.approx((fires & has).sum() / (fires | has).sum())


def test_a_concept_that_nothing_fires_on_has_no_detector():
    codes = np.zeros((30, 3), np.float32)
    found = best_single_f1(csr_array(codes), np.ones((30, 1), bool), split_by_group(np.arange(30), 0))
    assert found.feature.tolist() == [-1]
    assert found.f1.tolist() == found.iou.tolist() == found.auprc.tolist() == [0]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.integers(3, 30))
def test_no_group_is_parted(seed, n_groups):
    groups = np.random.default_rng(seed).permutation(np.repeat(np.arange(n_groups), 3))
    parts = split_by_group(groups, seed)
    own = [set(groups[rows].tolist()) for rows in (parts.choose, parts.tune, parts.report)]
    assert all(own)
    assert len(set.union(*own)) == sum(map(len, own)) == n_groups
    assert sorted(np.concatenate([parts.choose, parts.tune, parts.report])) == list(range(len(groups)))
    tokens = parts.of_tokens(4)
    assert tokens.tune.tolist() == [row * 4 + t for row in parts.tune.tolist() for t in range(4)]
    if n_groups == 30:
        assert [len(each) for each in own] == [12, 6, 12]


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(FluxscopeError, match="2 prompts cannot be parted in three"):
        split_by_group(np.array([0, 1, 1]), 0)
    with pytest.raises(FluxscopeError, match="4 rows of codes, 3 of truth"):
        best_single_f1(csr_array(np.ones((4, 1))), np.ones((3, 1), bool), Parts(*np.arange(3)[:, None]))
