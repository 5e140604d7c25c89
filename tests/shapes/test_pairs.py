import numpy as np
import pytest

from fluxscope.shapes import world
from fluxscope.shapes.oracle import read
from fluxscope.shapes.pairs import ATTRIBUTES, Wish, caption_pairs, fulfilled, wish_of


def scene(color="red", shape="circle", size="large", background="white", n=1):
    places = [(40.0, 40.0), (90.0, 90.0)]
    things = tuple(world.Object(shape, color, size, places[i]) for i in range(n))
    return world.Scene(background, things, "above" if n == 2 else None)


def seen(**changes):
    return read(world.render(scene(**changes)).image)


def test_pairs_differ_in_one_attribute_each_in_turn():
    pairs = caption_pairs(24)
    wishes = [wish_of(*pair) for pair in pairs]
    assert [wish.attribute for wish in wishes] == [*ATTRIBUTES] * 6
    for (source, target), wish in zip(pairs, wishes, strict=True):
        differing = [(a, b) for a, b in zip(source.split(), target.split(), strict=True) if a != b]
        assert wish.value in target.split() and wish.value not in source.split()
        assert len([pair for pair in differing if pair not in (("a", "an"), ("an", "a"))]) == 1
    assert caption_pairs(24) == pairs and len(set(pairs)) == 24
    assert caption_pairs(5) == pairs[:5]
    things = [world.parse_caption(target).objects[0] for _, target in caption_pairs(200)]
    assert not {(thing.shape, thing.color) for thing in things} & world.HELD_OUT


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("a large red circle on a white background", "a large red circle on a white background"),
        ("a large red circle on a white background", "a large blue star on a white background"),
        ("a large red circle on a white background", "a large red circle"),
        ("a red circle and a blue star", "a red circle and a green star"),
        ("a red car on a street", "a blue car on a street"),
    ],
)
def test_other_pairs_have_no_wish(source, target):
    assert wish_of(source, target) is None


def test_became_and_clean():
    before, wish = seen(), Wish("color", "blue")
    assert fulfilled(wish, before, seen(color="blue")) == (True, True)
    assert fulfilled(wish, before, before) == (False, False)
    assert fulfilled(wish, before, seen(color="green")) == (False, False)
    assert fulfilled(wish, before, seen(color="blue", size="small")) == (True, False)
    assert fulfilled(wish, before, seen(color="blue", background="navy")) == (True, False)
    assert fulfilled(wish, before, seen(color="blue", n=2)) == (True, False)
    for attribute, value in (("shape", "star"), ("size", "small"), ("background", "black")):
        after = seen(**{attribute: value})
        assert fulfilled(Wish(attribute, value), before, after) == (True, True)


def test_a_picture_without_an_object_is_clean_of_nothing():
    empty = read(np.full((128, 128, 3), world.BACKGROUNDS["black"], np.uint8))
    assert fulfilled(Wish("color", "blue"), seen(), empty) == (False, False)
    assert fulfilled(Wish("background", "black"), seen(), empty) == (True, False)
