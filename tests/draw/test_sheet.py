import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxscope.draw.grid import GridRow, labelled_grid
from fluxscope.draw.heatmap import BLUE
from fluxscope.draw.page import MARGIN, resized
from fluxscope.draw.pairs import FeaturePair, pair_sheet
from fluxscope.draw.sheet import Example, FeatureCard, comparison_sheet, contact_sheet
from fluxscope.draw.text import ACCENT, font, shorten, wrap
from fluxscope.errors import FluxscopeError, MissingInputError

GREEN, RED = (10, 200, 30), (200, 10, 30)


def flat(colour, shape=(64, 64)):
    return np.full((*shape, 3), colour, np.uint8)


def cards(count=3, examples=2, shape=(64, 64), caption="a large blue square on a white background"):
    example = Example(flat(GREEN, shape), flat(RED, shape), caption, "image 3")
    return [FeatureCard(i, [example] * examples, 0.8, 2.5, None, 0.1, 12) for i in range(count)]


def pixels(image, colour):
    return int((np.asarray(image) == colour).all(-1).sum())


@settings(deadline=None)
@given(text=st.text(max_size=200), width=st.integers(20, 200), lines=st.integers(1, 3))
def test_wrapped_text_keeps_to_its_room(text, width, lines):
    face = font(13)
    rows = wrap(text, face, width, lines)
    assert len(rows) <= lines
    assert all(face.getlength(row) <= width or len(row) <= 2 for row in rows)
    if "".join(rows) != "".join(text.split()).replace(" ", "") and not any("…" in row for row in rows):
        assert " ".join(rows).replace(" ", "") == "".join(text.split())  # nothing lost without an ellipsis


def test_shorten():
    assert shorten("short", font(13), 100) == "short"
    assert shorten("a long caption, which is cut", font(13), 100).endswith("…")


def test_every_example_is_on_the_sheet_at_its_size():
    sheet = contact_sheet(cards(3, 2), "Title", tile=100)
    assert pixels(sheet, GREEN) == 3 * 2 * 100 * 100
    assert pixels(sheet, RED) == 0
    both = comparison_sheet(cards(3, 2), "Title", tile=100)
    assert pixels(both, GREEN) == pixels(both, RED) == 3 * 2 * 100 * 100


def test_rectangular_pictures_keep_their_shape():
    sheet = contact_sheet(cards(1, 1, (48, 96)), "Title", tile=100)
    assert pixels(sheet, GREEN) == 100 * 50
    assert resized(flat(GREEN, (48, 96)), (60, 60)).size == (60, 60)


def test_cards_beside_each_other():
    one, two = contact_sheet(cards(4), "T"), contact_sheet(cards(4), "T", across=2)
    assert two.width > 1.7 * one.width
    assert two.height < 0.7 * one.height


def test_odd_prompts_and_missing_numbers_are_drawn():
    for caption in ("", "x" * 500, "кот, γάτα, 猫 🐈\n\nnew line", "word " * 200):
        example = Example(flat(GREEN), flat(RED), caption)
        contact_sheet([FeatureCard(12287, [example])], "T " * 100, "s " * 200, "f " * 500)


def test_nothing_to_show():
    with pytest.raises(MissingInputError, match="no feature has an example"):
        contact_sheet([], "Title")
    with pytest.raises(MissingInputError):
        contact_sheet([FeatureCard(1, [])], "Title")


def test_grid_shows_all_and_marks_the_baseline():
    rows = [GridRow([flat(GREEN), flat(GREEN), None], "prompt", ["a", "b"], flat(BLUE))] * 2
    grid = labelled_grid(rows, ["-5", "0", "+5"], "Title", baseline=1, tile=50)
    assert pixels(grid, GREEN) == 4 * 50 * 50
    assert pixels(grid, BLUE) >= 2 * 50 * 50
    plain = labelled_grid(rows, ["-5", "0", "+5"], "Title", tile=50)
    assert pixels(grid, ACCENT) > pixels(plain, ACCENT)
    gap = [*rows, GridRow([None, None, flat(RED)]), rows[0]]
    frames = pixels(labelled_grid(gap, ["-5", "0", "+5"], baseline=1, tile=50), ACCENT)
    whole = [*rows, GridRow([None, flat(RED), None]), rows[0]]
    assert frames != pixels(labelled_grid(whole, ["-5", "0", "+5"], baseline=1, tile=50), ACCENT)
    bare = labelled_grid([GridRow([flat(GREEN)])], ["only"], tile=50)
    assert bare.width == 50 + 2 * MARGIN


def test_grid_errors():
    with pytest.raises(FluxscopeError, match="row 0 has 1 pictures, there are 2 columns"):
        labelled_grid([GridRow([flat(GREEN)])], ["a", "b"])
    with pytest.raises(FluxscopeError, match="no pictures"):
        labelled_grid([GridRow([None])], ["a"])


def test_pairs_show_both_layers():
    pair = FeaturePair(3, 9, [("correlation", "0.83")], [flat(GREEN)] * 2, [flat(RED)] * 2, ["a ring"] * 2)
    sheet = pair_sheet([pair] * 3, ("double.5.ff", "double.15.ff"), "Title", tile=60)
    assert pixels(sheet, GREEN) == pixels(sheet, RED) == 3 * 2 * 60 * 60
    with pytest.raises(MissingInputError, match="no matched features"):
        pair_sheet([FeaturePair(3, 9, [], [], [])], ("a", "b"), "Title")
