from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measures_data import naive_coherence, unit_rows

from fluxscope.errors import FluxscopeError
from fluxscope.measures.coherence import coherence, random_coherence


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_closed_form_equals_the_double_loop(data):
    n, m, f = data.draw(st.integers(2, 15)), data.draw(st.integers(2, 8)), data.draw(st.integers(1, 6))
    e = unit_rows(n, 7, data.draw(st.integers(0, 1000)))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    sets = np.full((f, m), -1, np.int32)
    for row in sets:
        members = rng.permutation(n)[: rng.integers(0, min(m, n) + 1)]
        row[: len(members)] = members
    for value, row in zip(coherence(e, sets), sets, strict=True):
        members = [int(i) for i in row if i >= 0]
        if len(members) < 2:
            assert np.isnan(value)
        else:
            assert value == pytest.approx(naive_coherence(e, members), abs=1e-5)


@pytest.mark.parametrize(
    "group", [[0, 1, 2, 3, 4], [0, 0, 1, 1, 2, 2, 3, 3], [5, 1, 5, 2, 7, 5, 9, 2], [1, 1, 1, 1, 1, 2, 3, 3]]
)
def test_random_coherence_equals_the_enumeration_of_all_sets(group):
    e, group = unit_rows(len(group), 4, 3), np.array(group)
    groups = np.unique(group)
    mean, deviation = random_coherence(e, group, 6)
    for m in range(2, len(groups) + 1):
        values, weights = [], []
        for chosen in combinations(groups, m):
            members = [np.flatnonzero(group == g) for g in chosen]
            for draw in product(*members):
                values.append(naive_coherence(e, list(draw)))
                weights.append(1 / np.prod([len(x) for x in members]))
        expected = np.average(values, weights=weights)
        spread = np.sqrt(np.average((np.array(values) - expected) ** 2, weights=weights))
        assert mean[m] == pytest.approx(expected, abs=1e-6)
        assert deviation[m] == pytest.approx(spread, abs=1e-5)
    assert np.isnan(mean[:2]).all()
    assert np.isnan(deviation[len(groups) + 1 :]).all()


def test_random_coherence_of_images_that_are_nearly_the_same():
    e, group, rng = unit_rows(300, 16, 0, shift=30.0), np.arange(300) // 2, np.random.default_rng(0)
    mean, deviation = random_coherence(e, group, 10)
    draws = [
        naive_coherence(e, list(2 * rng.permutation(150)[:10] + rng.integers(0, 2, 10))) for _ in range(400)
    ]
    assert mean[10] == pytest.approx(np.mean(draws), abs=4 * np.std(draws) / 20)
    assert deviation[10] == pytest.approx(np.std(draws), rel=0.15)


def test_rows_that_are_not_unit_are_refused():
    with pytest.raises(FluxscopeError, match="embedding 1 has length 3"):
        coherence(np.array([[1, 0], [0, 3]], np.float32), np.array([[0, 1]]))
    with pytest.raises(FluxscopeError, match="not 1"):
        coherence(np.array([[np.nan, 0]], np.float32), np.array([[0]]))
