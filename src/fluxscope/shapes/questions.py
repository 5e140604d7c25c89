"""The pictures that truth is measured on: captions no SAE was trained on, and pairs that differ in a word.

Of ten pictures seven are of scenes of their own, and three are twins of the first three: the same seed, and
a caption in which one word is another. A picture and its twin are one family: they are never parted. No
caption is asked twice, and none leaves anything out; scenes of one object, of which few are kept for
testing, recur in other words.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from fluxscope.errors import ConfigError
from fluxscope.shapes import world
from fluxscope.shapes.shipped import FLUX_SHAPES

SEEDS_FROM = 2_000_000
"""Seeds of their own, far from those of runs and of training."""

ALONE, PAIRED = 4, 3
"""In each block of ten pictures: captions without and with a twin."""

BLOCK = ALONE + 2 * PAIRED

CHANGES = ("shape", "color", "size", "background")
"""What the word that differs says."""


@dataclass(frozen=True)
class Question:
    """One picture to make.

    Attributes:
        scene: what its caption says; places are for the model to choose.
        caption: in words.
        seed: of its noise.
        family: number of its caption; a twin has its picture's.
        twin_of: for a twin, the number of the picture that it is the twin of.
        changed: for a twin, what was changed: "shape", "color", "size" or "background".
    """

    scene: world.Scene
    caption: str
    seed: int
    family: int
    twin_of: int | None = None
    changed: str | None = None


def require_truth(model_id: str) -> None:
    """Raise ConfigError for a model of whose pictures nothing is known to be true."""
    if model_id != FLUX_SHAPES:
        raise ConfigError(
            f"nothing is known to be true of {model_id}'s pictures: only {FLUX_SHAPES} has a truth",
            "Use fluxscope site-map, which needs none, to see where a model decides what.",
        )


def questions(count: int) -> list[Question]:
    """The first `count` pictures, always the same ones: a longer list begins with the shorter."""
    return list(islice(_all_questions(), count))


def _all_questions() -> Iterator[Question]:
    rng, asked = np.random.default_rng(20), set[str]()
    number = family = 0
    while True:
        bases, twins = [], []
        for place in range(BLOCK - PAIRED):
            base, twin = (_pair if place < PAIRED else _alone)(rng, family, asked)
            bases.append(base)
            if twin:
                twins.append(replace(twin, twin_of=number + place))
            family += 1
        yield from (*bases, *twins)
        number += BLOCK


def _alone(rng: np.random.Generator, family: int, asked: set[str]) -> tuple[Question, None]:
    """A picture of its own, in words that were not used yet."""
    while True:
        scene = world.sample_scene(rng, split="test")
        text = world.caption(scene, int(rng.choice(world.FULL_PHRASINGS)))
        if text not in asked:
            asked.add(text)
            return Question(scene, text, SEEDS_FROM + family, family), None


def _pair(rng: np.random.Generator, family: int, asked: set[str]) -> tuple[Question, Question]:
    """A picture and its twin, both of scenes that are kept for testing, each said in full."""
    changed = CHANGES[family % len(CHANGES)]
    while True:
        scene, way = world.sample_scene(rng, split="test"), int(rng.choice(world.FULL_PHRASINGS))
        others = [other for other in _changed(scene, changed) if _may_be_asked(other)]
        if others:
            other = others[rng.integers(len(others))]
            texts = world.caption(scene, way), world.caption(other, way)
            if asked.isdisjoint(texts):
                asked.update(texts)
                seed = SEEDS_FROM + family
                twin = Question(other, texts[1], seed, family, changed=changed)
                return Question(scene, texts[0], seed, family), twin


def _may_be_asked(scene: world.Scene) -> bool:
    pairs = [(o.shape, o.color) for o in scene.objects]
    known = not any(pair in world.HELD_OUT for pair in pairs) and len(set(pairs)) == len(pairs)
    return known and world.split_of(scene) == "test"


def _changed(scene: world.Scene, attribute: str) -> list[world.Scene]:
    """All scenes that differ in this attribute, of the background or the first object, alone."""
    if attribute == "background":
        values = [value for value in world.BACKGROUNDS if value != scene.background]
        return [replace(scene, background=value) for value in values]
    first, *rest = scene.objects
    if attribute == "shape":
        firsts = [replace(first, shape=shape) for shape in world.SHAPES]
    elif attribute == "color":
        firsts = [replace(first, color=color) for color in world.COLORS]
    else:
        firsts = [replace(first, size=size) for size in world.SIZES]
    return [replace(scene, objects=(each, *rest)) for each in firsts if each != first]
