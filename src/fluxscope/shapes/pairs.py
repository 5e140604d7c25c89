"""Pairs of captions of the world of flux-shapes that differ in one thing, and whether a picture shows it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fluxscope.shapes import world
from fluxscope.shapes.oracle import Reading

ATTRIBUTES = ("color", "shape", "size", "background")
_VALUES: dict[str, tuple[str, ...]] = {
    "color": tuple(world.COLORS),
    "shape": world.SHAPES,
    "size": tuple(world.SIZES),
    "background": tuple(world.BACKGROUNDS),
}


@dataclass(frozen=True)
class Wish:
    """What the second caption of a pair asks for and the first one does not."""

    attribute: str
    value: str


def caption_pairs(count: int, attributes: Sequence[str] = ATTRIBUTES, seed: int = 0) -> list[tuple[str, str]]:
    """Captions of scenes of one object, and the same scenes with one attribute changed.

    The attributes take turns; no scene has a pair of shape and colour that the model never saw.
    """
    rng = np.random.default_rng(seed)
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        attribute = attributes[len(pairs) % len(attributes)]
        before = world.sample_scene(rng, n_objects=1)
        value = str(rng.choice(_VALUES[attribute]))
        after = _changed(before, attribute, value)
        known = (after.objects[0].shape, after.objects[0].color) not in world.HELD_OUT
        pair = world.caption(before), world.caption(after)
        if after != before and known and pair not in pairs:
            pairs.append(pair)
    return pairs


def _changed(scene: world.Scene, attribute: str, value: str) -> world.Scene:
    if attribute == "background":
        return dataclasses.replace(scene, background=value)
    changes: dict[str, str] = {attribute: value}
    return dataclasses.replace(scene, objects=(dataclasses.replace(scene.objects[0], **changes),))  # type: ignore[arg-type]


def wish_of(source: str, target: str) -> Wish | None:
    """What the target asks for, where both captions are of one object and differ in one attribute."""
    before, after = (_attributes(world.parse_caption(text)) for text in (source, target))
    if before is None or after is None:
        return None
    differing = [name for name in ATTRIBUTES if before[name] != after[name]]
    if len(differing) != 1 or (value := after[differing[0]]) is None:
        return None
    return Wish(differing[0], value)


def _attributes(said: world.Description) -> dict[str, str | None] | None:
    if len(said.objects) != 1:
        return None
    thing = said.objects[0]
    return {"color": thing.color, "shape": thing.shape, "size": thing.size, "background": said.background}


def fulfilled(wish: Wish, before: Reading, after: Reading) -> tuple[bool, bool]:
    """Whether a wish came true in a picture, and whether nothing else changed.

    Args:
        before: the picture without the change.
        after: the picture with it.

    Returns:
        became: the picture (its largest object) has the wished value.
        clean: it became, shows one object, and its other attributes are those of the picture before.
    """
    old, new = _seen(before), _seen(after)
    if new is None:
        became = wish.attribute == "background" and after.background == wish.value
        return became, False
    became = new[wish.attribute] == wish.value
    others = [name for name in ATTRIBUTES if name != wish.attribute]
    same = old is not None and all(old[name] == new[name] for name in others)
    return became, became and same and len(after.objects) == 1


def _seen(reading: Reading) -> dict[str, str] | None:
    if not reading.objects:
        return None
    thing = reading.objects[0]
    return {
        "color": thing.color,
        "shape": thing.shape,
        "size": thing.size,
        "background": reading.background,
    }
