"""The one parser of numbers, and bounds."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxscope.errors import ConfigError, brief
from fluxscope.fields import Checked, setting, to_number, to_numbers, to_option, to_range


@given(st.integers(-(10**17), 10**17))
def test_whole_numbers_are_read_as_they_are_written(number):
    assert to_number(str(number), int) == to_number(number, int) == number


@given(st.floats(-1e9, 1e9))
def test_numbers_are_read_to_the_last_bit(number):
    assert to_number(repr(number), float) == to_number(number, float) == number


@pytest.mark.parametrize(
    "text", ["", " ", "x", "1.5", "1e3", "²", "٣", "1_000", "0x10", "nan", "inf", "1 2", "+-1", "9" * 30]
)
def test_what_is_no_whole_number_is_refused(text):
    with pytest.raises(ValueError, match="no number"):
        to_number(text, int)


@pytest.mark.parametrize(
    "text", ["", "x", "nan", "inf", "-Infinity", "1_0", "1e9999", "²", ".", "1.2.3", "--1"]
)
def test_what_is_no_number_is_refused(text):
    with pytest.raises(ValueError, match=r"no number"):
        to_number(text, float)


@pytest.mark.parametrize("value", [True, None, math.nan, math.inf, [1], b"1", 1j, np.float32("nan")])
def test_a_value_that_is_no_finite_number_is_refused(value):
    for kind in (int, float):
        with pytest.raises(ValueError, match=r"."):
            to_number(value, kind)


def test_a_whole_number_too_large_for_a_float_is_refused():
    with pytest.raises(ValueError, match="too large"):
        to_number(10**400, float)


def test_numpys_numbers_are_numbers():
    assert type(to_number(np.int32(3), int)) is int
    assert type(to_number(np.float32(0.5), float)) is float
    with pytest.raises(ValueError, match="no number"):
        to_number(np.float32(3), int)


def test_lists_of_options_are_checked_as_settings_are():
    assert to_numbers("--k", "16, 32", int, low=1) == (16, 32)
    for text, message in (("", "empty"), ("16,x", "cannot be"), ("0", "at least 1"), ("16,inf", "cannot be")):
        with pytest.raises(ConfigError, match=f"--k.*{message}"):
            to_numbers("--k", text, int, low=1)


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_ranges_are_read_as_they_are_written(first, length):
    assert to_range(f"{first}-{first + length}") == range(first, first + length + 1)
    assert to_range(f" {first} ") == range(first, first + 1)


@pytest.mark.parametrize(
    "text", ["", "-", "1-", "-1", "5-3", "1-2-3", "²", "1-²", "x", "1.5", "9" * 30, "0-inf"]
)
def test_what_is_no_range_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        to_range(text)


@given(st.text())
def test_any_text_is_a_range_or_refused(text):
    try:
        found = to_range(text)
    except ValueError as error:
        found, said = range(1), str(error)
    else:
        said = ""
    assert len(found) > 0 and said.isprintable()


def test_an_option_is_checked_as_a_setting_is():
    assert to_option("--seed", 7, int, low=0) == 7
    for value in (-1, 1.5, True, "7", 10**30):
        with pytest.raises(ConfigError, match="--seed"):
            to_option("--seed", value, int, low=0)
    with pytest.raises(ConfigError, match="--prompt cannot be"):
        to_option("--prompt", "a\0b", str)


def test_a_subclass_changes_defaults_and_not_bounds():
    @dataclass(frozen=True)
    class Base(Checked):
        rate: float = setting(0.1, "Rate.", above=0.0)

    @dataclass(frozen=True)
    class Mine(Base):
        rate: float = 2

    assert Mine().rate == 2.0
    assert type(Mine().rate) is float
    with pytest.raises(ConfigError, match=r"rate is 0\.0, but must be above 0\.0"):
        Mine(rate=0)


@given(st.one_of(st.text(), st.binary(), st.integers(), st.floats(), st.lists(st.text())))
def test_what_is_shown_of_a_value_is_one_short_line_of_printable_text(value):
    assert brief(value).isprintable()
    assert len(brief(value)) <= 80


def test_a_number_of_thousands_of_digits_can_be_shown():
    assert brief(10**5000) == "a whole number of 16610 bits"
    assert brief([10**5000]) == "a list"
