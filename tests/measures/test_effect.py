import pytest

from fluxscope.measures.effect import demo_score, dose_response


def test_crossings_are_read_off_straight_lines():
    found = dose_response([2.0, 1.0, 4.0], [0.2, 0.1, 0.6], unrelated=0.5)
    assert found["first_change"] == pytest.approx(0.5)  # 10% of 0.5 is half of what strength 1 gives
    assert found["breaks"] == pytest.approx(3.5)


def test_negative_strengths_give_negative_crossings():
    assert dose_response([-1.0, -2.0], [0.1, 1.0], 1.0) == {"first_change": -1.0, "breaks": -2.0}


def test_what_is_never_reached_is_none():
    assert dose_response([1.0, 2.0], [0.0, 0.0], 0.5) == {"first_change": None, "breaks": None}
    assert dose_response([], [], 0.5) == {"first_change": None, "breaks": None}


@pytest.mark.parametrize(
    ("positive", "negative", "consistency", "score"),
    [(0.4, 0.4, 1.0, 0.4), (0.4, 0.2, 0.5, 0.225), (0.4, 0.0, 0.0, 0.1), (0.0, 0.0, 0.0, 0.0)],
)
def test_demos_that_show_both_ways_score_higher(positive, negative, consistency, score):
    assert demo_score(positive, negative) == pytest.approx((consistency, score))
