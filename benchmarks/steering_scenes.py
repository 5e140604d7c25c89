"""What the steering study works on: scenes with a wish, what came of it, and features that say where.

Three kinds of scene: one object, of which one attribute shall change; two objects, of which one shall change
and the other stay; and two equal objects, of which the left one shall change: no prompt says which.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fluxscope.models.capture import Capture
from fluxscope.models.model import Model
from fluxscope.models.sites import parse_site
from fluxscope.models.spec import PictureSpec
from fluxscope.sae import LinearSae
from fluxscope.shapes import oracle, world
from fluxscope.shapes.oracle import Reading, ReadObject

OBJECT = ("color", "shape", "size")
VALUES = {
    "color": tuple(world.COLORS),
    "shape": world.SHAPES,
    "size": tuple(world.SIZES),
    "background": tuple(world.BACKGROUNDS),
}
CELL, GRID = 16, 8


@dataclass(frozen=True)
class Scene:
    """A prompt, a wish, and the prompt that tells of it.

    Attributes:
        number: which of the scene's objects shall change.
        held_out: whether the wish makes a pair of shape and colour that the model never saw.
    """

    source: str
    target: str
    seed: int
    attribute: str
    value: str
    number: int
    held_out: bool


@dataclass(frozen=True)
class Outcome:
    """What became of a wish: the wished value came, and which other attributes changed."""

    became: bool
    changed: tuple[str, ...]

    @property
    def clean(self) -> bool:
        return self.became and not self.changed


def single_scenes(seed: int, held_out: bool = False) -> Iterator[Scene]:
    """One object; the four attributes take turns."""
    rng, number = np.random.default_rng(seed), 0
    while True:
        attribute = ("color", "shape", "size", "background")[number % 4]
        before = world.sample_scene(rng, n_objects=1)
        value = str(rng.choice(VALUES[attribute]))
        after = changed(before, attribute, value, 0)
        strange = any((o.shape, o.color) in world.HELD_OUT for o in after.objects)
        if after != before and strange == held_out:
            yield _scene(before, after, seed * 1000 + number, attribute, value, 0, strange)
            number += 1
        elif held_out:
            number += 1


def double_scenes(seed: int) -> Iterator[Scene]:
    """Two objects; one attribute of one of them shall change."""
    rng, number = np.random.default_rng(seed), 0
    while True:
        attribute, which = OBJECT[number % 3], int(rng.integers(2))
        before = world.sample_scene(rng, n_objects=2)
        value = str(rng.choice(VALUES[attribute]))
        after = changed(before, attribute, value, which)
        one, two = after.objects
        strange = any((o.shape, o.color) in world.HELD_OUT for o in after.objects)
        differ = (
            before.objects[0].color != before.objects[1].color
            and one.shape + one.color != two.shape + two.color
        )
        if after != before and differ and not strange:
            yield _scene(before, after, seed * 1000 + number, attribute, value, which, False)
            number += 1


def equal_scenes(seed: int) -> Iterator[Scene]:
    """Two equal objects beside each other, both changed by the target prompt; the left one alone shall."""
    rng, number = np.random.default_rng(seed), 0
    while True:
        attribute = ("color", "shape")[number % 2]
        drawn = world.sample_scene(rng, n_objects=2)
        twin = drawn.objects[0]
        before = dataclasses.replace(drawn, objects=(twin, twin), relation="left of")
        value = str(rng.choice(VALUES[attribute]))
        after = changed(changed(before, attribute, value, 0), attribute, value, 1)
        strange = (after.objects[0].shape, after.objects[0].color) in world.HELD_OUT
        if after != before and not strange:
            yield _scene(before, after, seed * 1000 + number, attribute, value, 0, False)
            number += 1


def changed(scene: world.Scene, attribute: str, value: str, number: int) -> world.Scene:
    if attribute == "background":
        return dataclasses.replace(scene, background=value)
    objects = list(scene.objects)
    objects[number] = dataclasses.replace(objects[number], **{attribute: value})
    return dataclasses.replace(scene, objects=tuple(objects))


def _scene(
    before: world.Scene, after: world.Scene, seed: int, attribute: str, value: str, number: int, strange: bool
) -> Scene:
    source, target = world.caption(before), world.caption(after)
    return Scene(source, target, seed, attribute, value, number, strange)


def is_as_told(prompt: str, reading: Reading) -> bool:
    """Whether a picture shows what its prompt says: only such scenes are steered."""
    said = world.parse_caption(prompt)
    if len(said.objects) != len(reading.objects) or reading.background != said.background:
        return False
    told = sorted((o.shape, o.color, o.size) for o in said.objects)
    return told == sorted((o.shape, o.color, o.size) for o in reading.objects)


def object_of(scene: Scene, reading: Reading, wished: bool = False) -> ReadObject:
    """The object that shall change, in the picture as it was, or in that of the target prompt."""
    said = world.parse_caption(scene.target if wished else scene.source).objects
    one = said[scene.number]
    alike = [o for o in reading.objects if (o.shape, o.color, o.size) == (one.shape, one.color, one.size)]
    return min(alike, key=lambda o: o.center[0])  # of two equal ones the left


def outcome(scene: Scene, before: Reading, after: Reading) -> Outcome:
    """Objects are taken for the same where their centres are nearest; one too many or few is a change."""
    wished = object_of(scene, before)
    moved = ["background"] if before.background != after.background else []
    if len(before.objects) != len(after.objects):
        moved.append("count")
    became = scene.attribute == "background" and after.background == scene.value
    for own in before.objects:
        now = min(after.objects, key=lambda o: np.hypot(*np.subtract(o.center, own.center)), default=None)
        for name in OBJECT:
            if now is None or getattr(now, name) != getattr(own, name):
                moved.append(name if own is wished else f"other {name}")
        if own is wished and now is not None and scene.attribute != "background":
            became = getattr(now, scene.attribute) == scene.value
    return Outcome(became, tuple(each for each in dict.fromkeys(moved) if each != scene.attribute))


def tokens_of(mask: np.ndarray, share: float = 0.1) -> Tensor:
    """The tokens that a mask of pixels covers by this share or more."""
    covered = mask.reshape(GRID, CELL, GRID, CELL).mean((1, 3)).reshape(-1)
    return torch.from_numpy(covered >= share)


@dataclass(frozen=True)
class Detector:
    """Features of one site that fire on a value, and their natural sizes."""

    features: tuple[int, ...]
    naturals: tuple[float, ...]


def detectors(
    model: Model, sae: LinearSae, site: str, spec: PictureSpec, steps: list[int], pictures: int = 192
) -> dict[str, Detector]:
    """For every colour and shape the features that say it best (F1 on tokens of pictures of their own)."""
    rng = np.random.default_rng(90_000)
    scenes = [world.sample_scene(rng, n_objects=1 + i % 2, split="train") for i in range(pictures)]
    texts = [world.caption(scene) for scene in scenes]
    prompts, codes, told = model.encode(texts), [], {name: [] for name in ("color", "shape")}
    for first in range(0, pictures, 16):
        heard: dict[int, Tensor] = {}
        capture = Capture(
            [parse_site(site)], steps, lambda _, i, x, heard=heard: heard.update({i: x.clone()})
        )
        part = texts[first : first + 16]
        seeds = [900_000 + first + i for i in range(len(part))]
        made = model.decode(model.sample([prompts[t] for t in part], seeds, capture, spec=spec), spec)
        codes += [sae.encode(heard[step]).detach() for step in steps]
        readings = [oracle.read(pixels) for pixels in made.numpy()]
        for name in told:
            here = torch.stack([_values(reading, name) for reading in readings])
            told[name] += [here] * len(steps)
    z = torch.cat(codes).flatten(0, 1)  # tokens x f
    return {
        f"{name}: {value}": _detector(z, torch.cat(told[name]).flatten() == number)
        for name in told
        for number, value in enumerate(VALUES[name])
    }


def _values(reading: Reading, name: str) -> Tensor:
    """The number of the value of the object on every token; -1 on the background."""
    found = torch.full((GRID * GRID,), -1)
    for each in reading.objects:
        found[tokens_of(each.mask, 0.25)] = VALUES[name].index(getattr(each, name))
    return found


def _detector(z: Tensor, there: Tensor, most: int = 4) -> Detector:
    """The features whose firing says best whether the value is there, none much worse than the best."""
    fires = z > 0
    f1 = 2 * fires[there].sum(0) / (fires.sum(0) + there.sum())
    best = [int(i) for i in f1.topk(most).indices if f1[i] >= 0.6 * f1.max()]
    naturals = [float(z[there][:, i][fires[there][:, i]].mean()) for i in best]
    return Detector(tuple(best), tuple(naturals))
