import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measures_data import EPS, sparse_S

from fluxscope.errors import FluxscopeError, MissingInputError
from fluxscope.measures.ranking import Entries, TopLists, check_S
from fluxscope.measures.stats import feature_stats


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 40),
    f=st.integers(1, 9),
    k=st.integers(1, 12),
    seed=st.integers(0, 99),
    levels=st.sampled_from([0, 1, 3]),
    density=st.sampled_from([0.0, 0.1, 0.6, 1.0]),
    block=st.sampled_from([None, 1, 7]),
)
def test_streamed_equals_the_plain_loop(n, f, k, seed, levels, density, block):
    S = sparse_S(n, f, seed, density, levels)
    stats = feature_stats(S, EPS, k, block)
    for j in range(f):
        column, active = S[:, j], S[:, j][S[:, j] > EPS].astype(np.float64)
        order = np.argsort(-column, kind="stable")[:k]
        assert stats.top_idx[:, j].tolist() == order.tolist()
        assert stats.top_scores[:, j].tolist() == column[order].tolist()
        assert stats.frequency[j] == np.float32(len(active) / n)
        assert stats.mean[j] == pytest.approx(active.mean() if len(active) else 0, rel=1e-6)
        assert stats.std[j] == pytest.approx(active.std() if len(active) else 0, abs=1e-6)
        assert stats.maximum[j] == column.max()
    assert stats.alive.tolist() == np.flatnonzero(S.max(0) > EPS).tolist()
    assert stats.alive.dtype == np.int32
    assert stats.top_idx.dtype == np.int32


def test_counts_at_their_bounds():
    S = np.zeros((1000, 6), np.float32)
    for feature, times in enumerate([0, 9, 10, 99, 100, 1000]):
        S[:times, feature] = 1
    assert feature_stats(S, EPS, 5).counts == {
        "num_alive_features": 5,
        "num_dead_features": 1,
        "num_rare_features": 1,
        "num_common_features": 2,
        "num_very_common_features": 2,
    }


def test_values_up_to_eps_are_not_active_but_ranked():
    S = np.array([[0], [EPS / 2], [1]], np.float32)
    stats = feature_stats(S, EPS, 3)
    assert stats.frequency[0] == np.float32(1 / 3)
    assert stats.top_idx[:, 0].tolist() == [2, 1, 0]


@pytest.mark.parametrize("order", ["C", "F"])
def test_memory_maps_of_both_orders(tmp_path, order, monkeypatch):
    monkeypatch.setattr("fluxscope.measures.stats.BLOCK_ELEMENTS", 500)
    S = sparse_S(90, 17, 1)
    np.save(tmp_path / "S.npy", np.asarray(S, order=order))
    mapped = np.load(tmp_path / "S.npy", mmap_mode="r")
    ours, plain = feature_stats(mapped, EPS, 5, 8), feature_stats(S, EPS, 5)
    for name in ("alive", "frequency", "mean", "std", "maximum", "top_idx", "top_scores"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(plain, name))


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
@pytest.mark.parametrize("row", [0, 30])
def test_damaged_values_are_refused_by_place(value, row):
    S = sparse_S(40, 5, 0)
    S[row, 3] = value
    with pytest.raises(FluxscopeError, match=f"image {row}, feature 3"):
        feature_stats(S, EPS, 4, 8)


def test_empty_S():
    with pytest.raises(MissingInputError, match="0 images, 8 features"):
        feature_stats(np.zeros((0, 8), np.float32), EPS, 4)
    for wrong in (np.zeros(8, np.float32), np.zeros((2, 8))):
        with pytest.raises(FluxscopeError, match="dimensions"):
            check_S(wrong)
    with pytest.raises(FluxscopeError, match="top_k is 0"):
        feature_stats(np.ones((2, 2), np.float32), EPS, 0)


@pytest.mark.parametrize("levels", [0, 1, 3])
def test_lists_do_not_depend_on_the_order_of_pushes(levels):
    S = sparse_S(200, 4, 2, levels=levels)
    image, feature = np.nonzero(S)
    entries = Entries(image, feature, S[image, feature])
    expected = TopLists(4, 6)
    expected.push(entries)
    for seed in range(3):
        top = TopLists(4, 6)
        for part in np.array_split(np.random.default_rng(seed).permutation(len(image)), 40):
            top.push(entries.where(part))
        for ours, theirs in zip(top.lists(), expected.lists(), strict=True):
            np.testing.assert_array_equal(ours, theirs)
