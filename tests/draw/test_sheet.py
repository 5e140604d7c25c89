from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageDraw

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
    measures = {"clip_coherence": 0.8, "coherence_z": 2.5, "crop_coherence": None}
    measures |= {"frequency": 0.1, "coverage": 12}
    return [FeatureCard(i, [example] * examples, measures) for i in range(count)]


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


def test_the_contact_sheet_shows_lit_pictures_where_there_are_any_and_the_other_sheet_overlays():
    blue = (20, 30, 220)
    lit = [
        replace(card, examples=[replace(e, lit=flat(blue)) for e in card.examples]) for card in cards(3, 2)
    ]
    sheet = contact_sheet(lit, "Title", tile=100)
    assert pixels(sheet, blue) == 3 * 2 * 100 * 100
    assert pixels(sheet, GREEN) == pixels(sheet, RED) == 0
    both = comparison_sheet(lit, "Title", tile=100)
    assert pixels(both, GREEN) == pixels(both, RED) == 3 * 2 * 100 * 100
    assert pixels(both, blue) == 0


def test_every_picture_stands_in_its_own_place_with_its_own_text(monkeypatch):
    """Cards row by row, examples from left to right, a bare picture left of its overlay."""
    words = []
    write = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "text",
        lambda self, at, text, *a, **k: (words.append(text), write(self, at, text, *a, **k)),
    )
    colours = {
        (card, place, bare): (40 * card + 5, 90 * place + 7, 120 * bare + 9) for card, place, bare in PLACES
    }
    shown = [
        FeatureCard(
            100 + card,
            [
                Example(
                    flat(colours[card, place, 0]), flat(colours[card, place, 1]), f"prompt {card} {place}"
                )
                for place in range(2)
            ],
            {
                "clip_coherence": 0.1 + card / 100,
                "coherence_z": 2.0 + card,
                "crop_coherence": 0.5 + card / 100,
                "frequency": 0.2 + card / 100,
                "coverage": 30 + card,
            },
        )
        for card in range(4)
    ]
    for sheet, kinds in ((contact_sheet, (0,)), (comparison_sheet, (1, 0))):
        words.clear()
        page = np.asarray(sheet(shown, "Title", across=2))
        where = {}
        for key in colours:
            if key[2] in kinds:
                rows, columns = np.nonzero((page == colours[key]).all(-1))
                where[key] = rows.mean(), columns.mean()
        for card, place, bare in where:
            y, x = where[card, place, bare]
            if card % 2 == 0:
                assert where[card + 1, place, bare] == pytest.approx((y, where[card + 1, place, bare][1]))
                assert where[card + 1, place, bare][1] > max(where[card, 1, kind][1] for kind in kinds)
            if card < 2:
                assert where[card + 2, place, bare] == (where[card + 2, place, bare][0], pytest.approx(x))
                assert where[card + 2, place, bare][0] > y
            if place == 0:
                assert where[card, 1, bare][1] > x
            if bare:
                assert x < where[card, place, 0][1]
        for card in range(4):
            start = words.index(str(100 + card))
            own = words[start : start + 11]
            assert own[1:] == [
                *("coherence", f"{0.1 + card / 100:.3f}", "z against chance", f"{2.0 + card:+.1f}"),
                *("crop coherence", f"{0.5 + card / 100:.3f}", "frequency", f"{20 + card:.1f}%"),
                *("prompts covered", str(30 + card)),
            ]
            captions = [word for word in words[start : start + 20] if word.startswith("prompt ")]
            assert captions[:2] == [f"prompt {card} 0", f"prompt {card} 1"]


PLACES = [(card, place, bare) for card in range(4) for place in range(2) for bare in range(2)]


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
