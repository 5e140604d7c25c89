import numpy as np
import pytest

from fluxscope.measures.donor_scores import are_one, closed, inside_and_outside, mean_closed, mean_of, rate


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [  # Newcombe (1998), table of worked examples, method 3; and the rule of three's neighbour
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_s_interval_is_the_published_one(hits, n, low, high):
    found = rate([True] * hits + [False] * (n - hits))
    assert (found.hits, found.n, found.share) == (hits, n, hits / n)
    assert found.low == pytest.approx(low, abs=6e-5)
    assert found.high == pytest.approx(high, abs=6e-5)


def test_it_is_mirrored_and_of_nothing_none():
    few, many = rate([True] + [False] * 28), rate([False] + [True] * 28)
    assert many.low == pytest.approx(1 - few.high) and many.high == pytest.approx(1 - few.low)
    assert rate([True] * 5).high == 1.0
    assert rate([]) is None


def test_closed_is_one_at_the_donor_zero_at_the_source_and_below_when_farther():
    assert [closed(left, 4.0) for left in (0.0, 1.0, 4.0, 6.0)] == [1.0, 0.75, 0.0, -0.5]
    assert closed(0.0, 0.0) is None
    assert mean_of([1.0, None, 0.5]) == 0.75
    assert mean_closed([1.0, None, -500.0]) == 0.0
    assert mean_closed([]) is None
    assert mean_of([None]) is None


def test_pictures_that_differ_by_rounding_are_one():
    source = np.full((4, 4, 3), 100, np.uint8)
    donor = source.copy()
    donor[0, 0] = 102
    assert are_one(source, donor)
    donor[0, 0] = 103
    assert not are_one(source, donor)


def test_inside_and_outside_tell_a_change_in_place_from_one_elsewhere():
    """Source black, donor with a white left half."""
    source = np.zeros((8, 8, 3), np.uint8)
    donor = source.copy()
    donor[:, :4] = 255
    assert inside_and_outside(source, source, donor) == (0.0, 0.0)
    assert inside_and_outside(donor, source, donor) == (1.0, 0.0)
    half = source.copy()
    half[:, :2] = 255  # half of what was asked for
    assert inside_and_outside(half, source, donor) == (0.5, 0.0)
    elsewhere = source.copy()
    elsewhere[:, 4:6] = 255  # half of what nobody asked for
    assert inside_and_outside(elsewhere, source, donor) == (0.0, 0.5)
    assert inside_and_outside(donor, source, source) == (None, None)
    assert inside_and_outside(source, source, np.full_like(source, 255)) == (0.0, None)
