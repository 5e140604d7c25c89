"""The world: what is said is what is drawn, and held-out things stay out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxscope.shapes import world

SCENES = st.builds(
    lambda seed, held_out, n: world.sample_scene(np.random.default_rng(seed), held_out, n),
    st.integers(0, 2**32),
    st.booleans(),
    st.sampled_from([1, 2, None]),
)


@given(SCENES, st.sampled_from(range(len(world.PHRASINGS))))
@settings(max_examples=200, deadline=None)
def test_a_caption_is_read_back_as_what_it_says(scene: world.Scene, phrasing: int) -> None:
    way, text = world.PHRASINGS[phrasing], world.caption(scene, phrasing)
    said = world.parse_caption(text)
    assert [(o.shape, o.color) for o in said.objects] == [(o.shape, o.color) for o in scene.objects]
    assert [o.size for o in said.objects] == [o.size if way.sizes else None for o in scene.objects]
    assert said.relation == (scene.relation if way.relation else None)
    assert said.background == (scene.background if "{background}" in way.template else None)


@given(SCENES, st.sampled_from(range(len(world.PHRASINGS))))
@settings(max_examples=100, deadline=None)
def test_captions_keep_to_the_vocabulary_and_its_length(scene: world.Scene, phrasing: int) -> None:
    words = world.split_words(world.caption(scene, phrasing))
    assert set(words) <= set(world.VOCABULARY)
    assert len(words) <= world.LONGEST_CAPTION


@given(SCENES)
@settings(max_examples=60, deadline=None)
def test_the_truth_fits_the_picture(scene: world.Scene) -> None:
    drawn = world.render(scene)
    assert drawn.masks.sum(0).max() == 1, "objects never overlap"
    background = np.array(world.BACKGROUNDS[scene.background])
    far = np.abs(drawn.image.astype(int) - background).sum(-1) > 0
    assert not (drawn.masks.any(0) & ~far).any(), "a masked pixel is not background"
    for thing, mask, box in zip(scene.objects, drawn.masks, drawn.boxes, strict=True):
        assert tuple(box) == world.mask_box(mask)
        inside = drawn.image[mask]
        assert (np.median(inside, axis=0) == world.COLORS[thing.color]).all()
        assert box[0] > 0 and box[1] > 0 and box[2] < 128 and box[3] < 128, "nothing is cut off"


@given(SCENES)
@settings(max_examples=100, deadline=None)
def test_two_objects_stand_as_their_relation_says(scene: world.Scene) -> None:
    if scene.relation is None:
        assert len(scene.objects) == 1
        return
    boxes = world.render(scene).boxes
    low, high = {"left of": (2, 0), "right of": (2, 0), "above": (3, 1), "below": (3, 1)}[scene.relation]
    first, second = (0, 1) if scene.relation in ("left of", "above") else (1, 0)
    assert boxes[first][low] <= boxes[second][high], "their boxes do not even meet along the relation"


def test_held_out_pairs_never_meet_training_and_leave_every_shape_and_color_in() -> None:
    rng = np.random.default_rng(0)
    pairs = set()
    for _ in range(3000):
        scene = world.sample_scene(rng, split="train")
        assert world.split_of(scene) == "train"
        pairs |= {(o.shape, o.color) for o in scene.objects}
    assert pairs == {(s, c) for s in world.SHAPES for c in world.COLORS} - world.HELD_OUT
    held_out = world.sample_scene(rng, held_out=True)
    assert any((o.shape, o.color) in world.HELD_OUT for o in held_out.objects)
    assert world.split_of(held_out) == "test"


def test_the_same_seed_gives_the_same_scene_and_picture() -> None:
    one, two = (world.sample_scene(np.random.default_rng(7)) for _ in range(2))
    assert one == two
    assert (world.render(one).image == world.render(two).image).all()


def test_a_mask_covers_what_the_shape_covers() -> None:
    circle = world.coverage("circle", (64.0, 64.0), 26.0)
    assert circle.sum() == pytest.approx(np.pi * 26**2, rel=0.01)
    square = world.coverage("square", (64.0, 64.0), 26.0)
    assert square.sum() == pytest.approx((2 * 0.86 * 26) ** 2, rel=0.02)
    ys, xs = np.nonzero(circle > 0.5)
    assert xs.mean() + 0.5 == pytest.approx(64.0, abs=0.15)
    assert ys.mean() + 0.5 == pytest.approx(64.0, abs=0.15)


@pytest.mark.parametrize("text", ["", "   ", "🙂", "a zebra", "red", "circle red", "a " * 500])
def test_strange_captions_say_nothing(text: str) -> None:
    assert world.parse_caption(text).objects == ()
