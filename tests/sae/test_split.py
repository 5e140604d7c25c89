import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxscope.sae.data import split_by_prompt


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=20, max_size=200))
def test_every_picture_has_one_part_and_no_prompt_two(numbers):
    prompts = [f"prompt {number}" for number in numbers]
    split = split_by_prompt(prompts)
    parts = (split.train, split.choose, split.report)
    assert sorted([*split.train, *split.choose, *split.report]) == list(range(len(prompts)))
    assert min(len(split.choose), len(split.report)) >= round(len(prompts) / 10)
    assert 2 * len(split.train) >= len(prompts)
    assert all(part == sorted(part) for part in parts)
    if split.by_prompt:
        said = [{prompts[i] for i in part} for part in parts]
        assert len(set.union(*said)) == sum(map(len, said))


def test_the_last_prompts_are_kept_from_training():
    split = split_by_prompt([f"prompt {i % 30}" for i in range(60)])
    assert split.report == [27, 28, 29, 57, 58, 59]
    assert split.choose == [24, 25, 26, 54, 55, 56]
    distinct = split_by_prompt([str(i) for i in range(40)])
    assert (distinct.choose, distinct.report) == ([32, 33, 34, 35], [36, 37, 38, 39])


@pytest.mark.parametrize("prompts", [["a"], ["a", "b"]])
def test_with_two_prompts_pictures_are_parted(prompts):
    split = split_by_prompt(list(np.tile(prompts, 30 // len(prompts))))
    assert not split.by_prompt
    assert (split.train, split.choose, split.report) == ([*range(24)], [24, 25, 26], [27, 28, 29])
