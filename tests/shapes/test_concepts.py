import numpy as np
import pytest

from fluxscope.shapes import oracle, world
from fluxscope.shapes.concepts import (
    ATTRIBUTES,
    CONCEPTS,
    FIXED,
    GRID,
    OF_PICTURES,
    cell_shares,
    columns,
    token_truth,
)
from fluxscope.shapes.questions import questions


def shown(*objects, background="white", relation=None):
    """The truth of a rendered scene, one 8 x 8 map a concept."""
    scene = world.Scene(background, tuple(world.Object(*each) for each in objects), relation)
    truth = token_truth(oracle.read(world.render(scene).image))
    return {concept: truth[:, i].reshape(GRID, GRID) for i, concept in enumerate(CONCEPTS)}


def cells(truth, concept):
    return {(int(y), int(x)) for y, x in np.argwhere(truth[concept])}


def test_a_square_in_the_upper_left():
    # large: from 48 - 0.86 x 26 = 25.6 to 70.4: it fills cells 2 and 3, and 6.4 of 16 pixels of 1 and of 4
    truth = shown(("square", "red", "large", (48.0, 48.0)))
    arm, core = {1, 4}, {2, 3}
    inside = {(y, x) for y in core for x in core}
    sides = {(a, b) for a in arm for b in core} | {(b, a) for a in arm for b in core}
    corners = {(a, b) for a in arm for b in arm}  # 0.4 x 0.4 of them is covered: less than a quarter
    assert cells(truth, "place: inside") == inside
    assert cells(truth, "place: edge") == sides | corners
    assert cells(truth, "place: corner") == corners
    for concept in ("place: object", "shape: square", "color: red", "size: large", "pair: red square"):
        assert cells(truth, concept) == inside | sides, concept
    assert (truth["background: white"] == ~truth["place: object"]).all()
    spoken = {"shape: square", "color: red", "size: large", "background: white", "pair: red square"}
    assert {concept for concept in CONCEPTS if truth[concept].any() and "place" not in concept} == spoken


def test_places_of_the_picture():
    truth = shown(("ring", "blue", "small", (90.0, 90.0)))
    assert truth["place: border"].sum() == 28
    assert cells(truth, "place: upper right") == {(y, x) for y in range(4) for x in range(4, 8)}
    assert sum(truth[quadrant] for quadrant in FIXED[1:]).tolist() == np.ones((8, 8), int).tolist()
    assert not truth["place: corner"].any()  # a ring has none


@pytest.mark.parametrize(
    ("first", "second", "relation", "other"),
    [((32.0, 60.0), (96.0, 70.0), "left of", "right of"), ((60.0, 96.0), (70.0, 32.0), "below", "above")],
)
def test_relations_lie_on_the_object_that_has_them(first, second, relation, other):
    truth = shown(("circle", "green", "small", first), ("heart", "pink", "large", second), relation=relation)
    assert cells(truth, f"relation: {relation}") == cells(truth, "color: green") != set()
    assert cells(truth, f"relation: {other}") == cells(truth, "shape: heart") != set()
    has = {concept for concept in CONCEPTS if concept.startswith("relation") and truth[concept].any()}
    assert has == {f"relation: {relation}", f"relation: {other}"}
    assert cells(truth, "place: object") == cells(truth, "color: green") | cells(truth, "color: pink")


def test_corners_are_the_outlines():
    assert len(world.corners("star")) == 10
    assert world.corners("circle") == world.corners("ring") == []
    notch, tip = world.corners("heart")
    assert notch == pytest.approx((0, -7.5 / 16), abs=0.01)
    assert tip == pytest.approx((0, 14.5 / 16), abs=0.01)


def test_shares_are_those_of_the_pixels():
    mask = np.zeros((128, 128), bool)
    mask[16:24, 32:48] = True
    shares = cell_shares(mask)
    assert shares[1, 2] == 0.5
    assert shares.sum() == 0.5


def test_there_are_23_attributes_and_every_name_once():
    assert len(ATTRIBUTES) == 23
    assert len(set(CONCEPTS)) == len(CONCEPTS) == 100
    assert set(OF_PICTURES) <= set(CONCEPTS)
    assert columns(("shape: circle", "place: lower right")) == [0, 99]


def test_the_questions_are_always_the_same_and_unknown_to_training():
    asked = questions(400)
    assert asked[:40] == questions(40)
    assert len({question.caption for question in asked}) == 400
    assert {world.split_of(question.scene) for question in asked} == {"test"}
    assert not {question.caption for question in asked} & set(world.training_captions(4000))


def test_twins_differ_in_one_word():
    asked = questions(200)
    twins = [question for question in asked if question.twin_of is not None]
    assert len(twins) == 60
    for twin in twins:
        base = asked[twin.twin_of]
        assert base.twin_of is None
        assert (twin.seed, twin.family) == (base.seed, base.family)
        words = list(zip(twin.caption.split(), base.caption.split(), strict=True))
        said = [pair for pair in words if pair[0] != pair[1]]
        assert len(said) == 1
        values = {"shape": world.SHAPES, "color": world.COLORS, "size": world.SIZES} | {
            "background": world.BACKGROUNDS
        }
        assert {word.strip(",") for word in said[0]} <= set(values[twin.changed])
    families = [question.family for question in asked if question.twin_of is None]
    assert len(set(families)) == len(families) == 140
    assert len({question.seed for question in asked}) == 140
