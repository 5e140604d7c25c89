"""The world that flux-shapes knows: its captions, its pictures, and the truth of each picture.

A scene holds one or two objects on a plain background. An object has one of eight shapes, eight colours
and two sizes; two objects stand in one of four relations. `caption` puts a scene into words, `render`
into 128 x 128 pixels with the mask and box of every object, and `parse_caption` reads words back.

Seven of the 64 (shape, colour) pairs occur in no training picture (`HELD_OUT`), to test composition, and
a tenth of all other scenes is kept for testing (`split_of`).
"""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8
from PIL import Image, ImageDraw

RESOLUTION = 128
"""Pixels along each side of a picture."""

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart")
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 210, 40),
    "orange": (245, 140, 30),
    "purple": (140, 60, 180),
    "pink": (250, 140, 190),
    "cyan": (50, 200, 220),
}
BACKGROUNDS = {
    "white": (250, 250, 250),
    "gray": (128, 128, 128),
    "black": (15, 15, 15),
    "beige": (230, 215, 180),
    "navy": (20, 30, 80),
}
SIZES = {"small": 15.0, "large": 26.0}
"""Radius of each size, in pixels: from an object's centre to its outermost row or column."""

RELATIONS = ("left of", "right of", "above", "below")
"""Where the first object is, seen from the second."""

HELD_OUT = frozenset((shape, tuple(COLORS)[(3 * i + 2) % 8]) for i, shape in enumerate(SHAPES[:7]))
"""The (shape, colour) pairs of no training picture: seven of 64, no shape and no colour twice."""

Split = Literal["train", "test"]
_SUPERSAMPLING = 4


@dataclass(frozen=True)
class Object:
    """One object. `center` is (x, y) in pixels from the upper left corner."""

    shape: str
    color: str
    size: str
    center: tuple[float, float]


@dataclass(frozen=True)
class Scene:
    """What a picture shows. `relation` is None for a single object, else the first object's place."""

    background: str
    objects: tuple[Object, ...]
    relation: str | None = None


@dataclass(frozen=True)
class ObjectPhrase:
    """An object as a caption names it; `size` is None where it is not said. Words [start, stop)."""

    shape: str
    color: str
    size: str | None
    start: int
    stop: int


@dataclass(frozen=True)
class Description:
    """What a caption says: like a `Scene`, but without places, and None where nothing is said."""

    background: str | None
    objects: tuple[ObjectPhrase, ...]
    relation: str | None = None


@dataclass(frozen=True)
class Rendering:
    """A picture and its truth: one mask and one box (x0, y0, x1, y1; ends exclusive) for each object."""

    image: UInt8[np.ndarray, "h w 3"]
    masks: Bool[np.ndarray, "o h w"]
    boxes: Int32[np.ndarray, "o 4"]


@dataclass(frozen=True)
class Phrasing:
    """One way to put a scene into words; a shorter one leaves out what its switches turn off."""

    template: str
    to_the: bool = False
    sizes: bool = True
    relation: bool = True

    @property
    def full(self) -> bool:
        """Whether every attribute of the scene is said."""
        return self.sizes and self.relation and "{background}" in self.template


PHRASINGS = (
    Phrasing("{objects} on a {background} background"),
    Phrasing("{objects}, {background} background"),
    Phrasing("a {background} picture of {objects}"),
    Phrasing("a picture of {objects}, {background} background"),
    Phrasing("on a {background} background, {objects}"),
    Phrasing("{objects} on a {background} background", to_the=True),
    Phrasing("{objects}, {background} background", to_the=True),
    Phrasing("a {background} picture of {objects}", to_the=True),
    Phrasing("a picture of {objects}, {background} background", to_the=True),
    Phrasing("{objects}"),
    Phrasing("a picture of {objects}", to_the=True),
    Phrasing("{objects} on a {background} background", sizes=False),
    Phrasing("{objects}", sizes=False),
    Phrasing("{objects} on a {background} background", relation=False),
    Phrasing("{objects}", sizes=False, relation=False),
)
FULL_PHRASINGS = tuple(i for i, phrasing in enumerate(PHRASINGS) if phrasing.full)
PARTIAL_PHRASINGS = tuple(i for i, phrasing in enumerate(PHRASINGS) if not phrasing.full)

VOCABULARY = (
    *("a", "an", ",", "and", "on", "of", "to", "the", "left", "right", "above", "below"),
    *("picture", "background", *SIZES, *COLORS, *SHAPES, *BACKGROUNDS),
)
"""Every word of the captions, commas included, in a fixed order."""

LONGEST_CAPTION = 19
"""Words in the longest caption at most: with the end token, 20 tokens."""


def sample_scene(
    rng: np.random.Generator,
    held_out: bool = False,
    n_objects: int | None = None,
    split: Split | None = None,
) -> Scene:
    """Draw a scene.

    Args:
        rng: the source of all randomness.
        held_out: draw only scenes with at least one (shape, colour) pair of `HELD_OUT`; otherwise none.
        n_objects: one or two; by default two in six scenes of ten.
        split: draw only scenes of this split (see `split_of`).
    """
    count = n_objects or (2 if rng.random() < 0.6 else 1)
    assert count in (1, 2), "a scene holds one or two objects"
    while True:
        objects = tuple(_sample_object(rng) for _ in range(count))
        if held_out != any((o.shape, o.color) in HELD_OUT for o in objects):
            continue
        if count == 2 and (objects[0].shape, objects[0].color) == (objects[1].shape, objects[1].color):
            continue
        relation = str(rng.choice(RELATIONS)) if count == 2 else None
        scene = Scene(str(rng.choice(list(BACKGROUNDS))), objects, relation)
        if split is None or split_of(scene) == split:
            return _place(scene, rng)


def split_of(scene: Scene) -> Split:
    """The split a scene belongs to: a tenth of all combinations of attributes is kept for testing.

    It depends on the attributes alone, not on places or wording. Held-out pairs are "test" always.
    """
    if any((o.shape, o.color) in HELD_OUT for o in scene.objects):
        return "test"
    words = [scene.background, scene.relation or ""]
    words += [word for o in scene.objects for word in (o.shape, o.color, o.size)]
    return "test" if zlib.crc32(" ".join(words).encode()) % 10 == 0 else "train"


def sample_phrasing(rng: np.random.Generator, partial: float = 0.12) -> int:
    """Draw a phrasing's number: one that leaves something out with probability `partial`."""
    return int(rng.choice(PARTIAL_PHRASINGS if rng.random() < partial else FULL_PHRASINGS))


def training_captions(count: int) -> list[str]:
    """Captions of random training scenes, always the same ones, to take an SAE's activations from."""
    rng = np.random.default_rng(0)
    return [caption(sample_scene(rng, split="train"), sample_phrasing(rng)) for _ in range(count)]


def caption(scene: Scene, phrasing: int = 0) -> str:
    """The scene in words, in the way of `PHRASINGS[phrasing]`."""
    way = PHRASINGS[phrasing]
    names = [_noun_phrase(o, way.sizes) for o in scene.objects]
    joint = f" {_relation_words(scene.relation, way)} "
    return way.template.format(objects=joint.join(names), background=scene.background)


def split_words(text: str) -> list[str]:
    """Lower-case words and commas: the tokens of a caption."""
    return re.findall(r"[^\W_]+|,", text.lower())


def parse_caption(text: str) -> Description:
    """What a caption says. What it leaves out, or says in unknown words, is None or missing."""
    words = split_words(text)
    objects = tuple(_object_phrases(words))
    background = next((word for word in words if word in BACKGROUNDS), None)
    between = words[objects[0].stop : objects[1].start] if len(objects) > 1 else []
    relation = next((r for r in RELATIONS if r.split()[0] in between), None)
    return Description(background, objects, relation)


def render(scene: Scene) -> Rendering:
    """Draw the scene, anti-aliased, with the truth about every object."""
    size = RESOLUTION
    picture = np.empty((size, size, 3), np.float32)
    picture[:] = BACKGROUNDS[scene.background]
    masks = np.zeros((len(scene.objects), size, size), bool)
    boxes = np.zeros((len(scene.objects), 4), np.int32)
    for i, thing in enumerate(scene.objects):
        covered = coverage(thing.shape, thing.center, SIZES[thing.size])
        picture += covered[..., None] * (np.asarray(COLORS[thing.color], np.float32) - picture)
        masks[i] = covered >= 0.5
        boxes[i] = mask_box(masks[i])
    return Rendering(picture.round().astype(np.uint8), masks, boxes)


def corners(shape: str) -> list[tuple[float, float]]:
    """Where a shape's outline turns sharply: (x, y) in radii from its centre; none for circle and ring."""
    if shape == "heart":
        return [_OUTLINES["heart"][0], _OUTLINES["heart"][40]]  # the notch and the tip
    return list(_OUTLINES.get(shape, []))


def mask_box(mask: Bool[np.ndarray, "h w"]) -> tuple[int, int, int, int]:
    """The box (x0, y0, x1, y1; ends exclusive) around a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def coverage(shape: str, center: tuple[float, float], radius: float) -> Float32[np.ndarray, "h w"]:
    """The share of each pixel that a shape covers, 0 to 1, on the whole picture."""
    reach = math.ceil(radius) + 2
    x0, y0 = math.floor(center[0]) - reach, math.floor(center[1]) - reach
    side, scale = 2 * reach + 1, _SUPERSAMPLING
    patch = Image.new("L", (side * scale, side * scale), 0)
    _draw(ImageDraw.Draw(patch), shape, (center[0] - x0) * scale, (center[1] - y0) * scale, radius * scale)
    small = np.asarray(patch.reduce(scale), np.float32) / 255
    picture = np.zeros((RESOLUTION, RESOLUTION), np.float32)
    top, left = max(y0, 0), max(x0, 0)
    bottom, right = min(y0 + side, RESOLUTION), min(x0 + side, RESOLUTION)
    if bottom > top and right > left:
        picture[top:bottom, left:right] = small[top - y0 : bottom - y0, left - x0 : right - x0]
    return picture


def _sample_object(rng: np.random.Generator) -> Object:
    shape, color = SHAPES[rng.integers(len(SHAPES))], tuple(COLORS)[rng.integers(len(COLORS))]
    return Object(shape, color, tuple(SIZES)[rng.integers(len(SIZES))], (0.0, 0.0))


def _place(scene: Scene, rng: np.random.Generator) -> Scene:
    """Give every object its centre: clear of the border and of the other object, as the relation says."""
    if scene.relation is None:
        centers = [tuple(rng.uniform(34, 94, 2))]
    else:
        near, far = rng.uniform(30, 34), rng.uniform(94, 98)
        across = rng.uniform(48, 80, 2)
        along = (near, far) if scene.relation in ("left of", "above") else (far, near)
        centers = list(zip(along, across, strict=True))
        if scene.relation in ("above", "below"):
            centers = [(x, y) for y, x in centers]
    placed = (
        Object(o.shape, o.color, o.size, (float(x), float(y)))
        for o, (x, y) in zip(scene.objects, centers, strict=True)
    )
    return Scene(scene.background, tuple(placed), scene.relation)


def _noun_phrase(thing: Object, with_size: bool) -> str:
    words = f"{thing.size} {thing.color} {thing.shape}" if with_size else f"{thing.color} {thing.shape}"
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _relation_words(relation: str | None, way: Phrasing) -> str:
    if relation is None or not way.relation:
        return "and"
    return f"to the {relation}" if way.to_the and relation.endswith(" of") else relation


def _object_phrases(words: list[str]) -> list[ObjectPhrase]:
    phrases = []
    for i, word in enumerate(words):
        if word in SHAPES and i > 0 and words[i - 1] in COLORS:
            size = words[i - 2] if i > 1 and words[i - 2] in SIZES else None
            phrases.append(ObjectPhrase(word, words[i - 1], size, i - (2 if size else 1), i + 1))
    return phrases


def _draw(draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float) -> None:
    # PIL counts pixel centres: a shape that spans [a, b] in the plane spans [a - 0.5, b - 0.5] there.
    x, y = x - 0.5, y - 0.5
    if shape in ("circle", "ring"):
        draw.ellipse((x - r, y - r, x + r, y + r), fill=255)
        if shape == "ring":
            draw.ellipse((x - 0.55 * r, y - 0.55 * r, x + 0.55 * r, y + 0.55 * r), fill=0)
        return
    draw.polygon([(x + r * u, y + r * v) for u, v in _OUTLINES[shape]], fill=255)


def _star() -> list[tuple[float, float]]:
    points = []
    for i in range(10):
        reach = 1.0 if i % 2 == 0 else 0.42
        points.append((reach * math.sin(i * math.pi / 5), 0.08 - reach * 1.04 * math.cos(i * math.pi / 5)))
    return points


def _heart() -> list[tuple[float, float]]:
    points = []
    for i in range(80):
        t = 2 * math.pi * i / 80
        height = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((math.sin(t) ** 3, -(height + 2.5) / 16))
    return points


def _cross(arm: float = 0.33) -> list[tuple[float, float]]:
    corner = [(-arm, -1.0), (arm, -1.0), (arm, -arm)]
    return [point for x, y in [(1, 0), (0, 1), (-1, 0), (0, -1)] for point in _turned(corner, x, y)]


def _turned(points: list[tuple[float, float]], c: int, s: int) -> list[tuple[float, float]]:
    return [(c * x - s * y, s * x + c * y) for x, y in points]


_OUTLINES = {
    "square": [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)],
    "triangle": [(0.0, -0.95), (1.0, 0.85), (-1.0, 0.85)],
    "star": _star(),
    "cross": _cross(),
    "diamond": [(0.0, -1.0), (0.7, 0.0), (0.0, 1.0), (-0.7, 0.0)],
    "heart": _heart(),
}
