"""The oracle reads renders nearly without fault, and is not fooled by what is not there."""

import numpy as np
import pytest
from scipy import ndimage

from fluxscope.shapes import oracle, world


def _renders(n: int) -> list[tuple[world.Scene, world.Rendering]]:
    rng = np.random.default_rng(11)
    scenes = [world.sample_scene(rng, held_out=i % 5 == 0) for i in range(n)]
    return [(scene, world.render(scene)) for scene in scenes]


def test_two_hundred_renders_are_read_right() -> None:
    judged, overlaps = [], []
    for scene, drawn in _renders(200):
        judged.append(oracle.judge(scene, drawn.image))
        seen = [o.mask for o in oracle.read(drawn.image).objects]
        overlaps += [max((m & s).sum() / (m | s).sum() for s in seen) for m in drawn.masks]
    for key in ("shape", "color", "size"):
        assert np.mean([getattr(j, key) for j in judged]) >= 0.99, key
    assert all(j.background and j.count and j.relation is not False for j in judged)
    assert np.mean(overlaps) >= 0.95
    assert np.mean([j.iou for j in judged]) >= 0.97


def test_blur_and_noise_do_not_mislead_it() -> None:
    rng, right = np.random.default_rng(3), []
    for scene, drawn in _renders(60):
        soft = ndimage.gaussian_filter(drawn.image.astype(np.float32), (1.0, 1.0, 0))
        noisy = (soft + rng.normal(0, 6, soft.shape)).clip(0, 255).astype(np.uint8)
        right.append(oracle.judge(scene, noisy).all_right)
    assert np.mean(right) >= 0.97


SCENE = world.Scene(
    "white",
    (
        world.Object("star", "red", "small", (32.0, 60.0)),
        world.Object("ring", "blue", "large", (94.0, 66.0)),
    ),
    "left of",
)


@pytest.mark.parametrize(
    ("caption", "wrong"),
    [
        ("a small red star left of a large blue ring on a white background", None),
        ("a red star and a blue ring", None),
        ("a large blue ring right of a small red star on a white background", None),
        ("a small red star left of a large blue ring on a gray background", "background"),
        ("a large red star left of a large blue ring on a white background", "size"),
        ("a small red heart left of a large blue ring on a white background", "shape"),
        ("a small pink star left of a large blue ring on a white background", "color"),
        ("a small red star above a large blue ring on a white background", "relation"),
        ("a small red star on a white background", "count"),
    ],
)
def test_each_mistake_is_told(caption: str, wrong: str | None) -> None:
    judged = oracle.judge(world.parse_caption(caption), world.render(SCENE).image)
    assert judged.all_right == (wrong is None)
    for key in ("background", "count", "shape", "color", "size", "relation"):
        right = getattr(judged, key) in (True, 1.0, None)
        assert right == (key != wrong), key


def test_an_empty_picture_and_noise_are_read_without_objects_or_error() -> None:
    assert oracle.read(np.full((128, 128, 3), 250, np.uint8)) == oracle.Reading("white", ())
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    assert not oracle.judge(SCENE, noise).all_right


def test_touching_objects_of_two_colors_are_told_apart() -> None:
    touching = world.Scene(
        "black",
        (
            world.Object("square", "red", "large", (42.0, 64.0)),
            world.Object("square", "cyan", "large", (86.0, 64.0)),
        ),
        "left of",
    )
    judged = oracle.judge(touching, world.render(touching).image)
    assert judged.count
    assert judged.color == 1.0
    assert judged.relation is True
