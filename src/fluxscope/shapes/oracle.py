"""Reads pictures of the world back into objects, and judges pictures against captions.

Classical throughout, and made from the renderer alone: the background is the border's colour; what
differs from it falls into connected pieces; a piece's colour is the nearest of the palette; its shape
and size are those of the ideal shape that overlaps it best.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from scipy import ndimage

from fluxscope.shapes import world

_MIN_DISTANCE = 40.0  # in RGB, from the background: less is no object (the nearest two colours are 86 apart)
_MIN_AREA = 50  # pixels: the smallest object, a small star, covers 180
_BORDER = 3  # pixels at each side, where no object is
_PATCH = 80  # pixels along a template's side
_GRAIN = 4  # templates are placed to a quarter of a pixel
_ATTRIBUTES = ("shape", "color", "size")
_MOST_PIECES = 6  # of a broken picture, the largest pieces are enough


@dataclass(frozen=True)
class ReadObject:
    """An object as seen: `center` is (x, y) of the ideal shape, `iou` the overlap with it (0 to 1)."""

    shape: str
    color: str
    size: str
    center: tuple[float, float]
    box: tuple[int, int, int, int]
    mask: Bool[np.ndarray, "h w"]
    iou: float


@dataclass(frozen=True)
class Reading:
    """All that a picture shows, the largest object first."""

    background: str
    objects: tuple[ReadObject, ...]


@dataclass(frozen=True)
class Judgement:
    """A picture against what it should show.

    `shape`, `color` and `size` are the shares of the wanted objects that have them right. `relation` is
    None where none is asked for. `iou` is the mean overlap of the objects seen with their ideal shapes.
    """

    background: bool
    count: bool
    shape: float
    color: float
    size: float
    relation: bool | None
    iou: float

    @property
    def all_right(self) -> bool:
        attributes = self.shape == self.color == self.size == 1.0
        return self.background and self.count and attributes and self.relation is not False


def read(image: UInt8[np.ndarray, "h w 3"]) -> Reading:
    """Read a picture of 128 x 128 pixels, rendered or generated."""
    side = world.RESOLUTION
    assert image.shape == (side, side, 3), f"the oracle reads {side} x {side} pixels, got {image.shape}"
    pixels = image.astype(np.float32)
    plain = _border_color(pixels)
    differs = np.linalg.norm(pixels - plain, axis=-1) > _MIN_DISTANCE
    labels, _ = ndimage.label(differs, structure=np.ones((3, 3)))
    pieces = [part for piece in _large_pieces(labels) for part in _split_by_color(pixels, piece)]
    objects = [_read_object(pixels, plain, piece) for piece in pieces[:_MOST_PIECES]]
    objects.sort(key=lambda o: -int(o.mask.sum()))
    return Reading(_nearest(plain, world.BACKGROUNDS), tuple(objects))


def judge(wanted: world.Scene | world.Description, image: UInt8[np.ndarray, "h w 3"]) -> Judgement:
    """Compare a picture with a scene, or with what a caption says (`world.parse_caption`).

    Objects are matched so that the most attributes agree. What a caption leaves open counts as right.
    """
    seen = read(image)
    pairs = _match(wanted, seen)
    n = max(len(wanted.objects), 1)

    def share(attribute: str) -> float:
        right = sum(_agrees(getattr(w, attribute), getattr(s, attribute)) for w, s in pairs)
        return right / n if wanted.objects else 1.0

    relation = None
    if wanted.relation is not None:
        relation = len(pairs) == 2 and stands(pairs[0][1].center, wanted.relation, pairs[1][1].center)
    return Judgement(
        background=_agrees(wanted.background, seen.background),
        count=len(seen.objects) == len(wanted.objects),
        shape=share("shape"),
        color=share("color"),
        size=share("size"),
        relation=relation,
        iou=float(np.mean([o.iou for o in seen.objects])) if seen.objects else 0.0,
    )


def stands(first: tuple[float, float], relation: str, second: tuple[float, float]) -> bool:
    """Whether the first centre is in this relation to the second: more along its axis than across it."""
    dx, dy = first[0] - second[0], first[1] - second[1]
    along, across = (dx, dy) if relation in ("left of", "right of") else (dy, dx)
    return (along if relation in ("right of", "below") else -along) > abs(across)


def _agrees(wanted: str | None, seen: str) -> bool:
    return wanted is None or wanted == seen


def _match(
    wanted: world.Scene | world.Description, seen: Reading
) -> list[tuple[world.Object | world.ObjectPhrase, ReadObject]]:
    """The pairing of wanted and seen objects with the most attributes right."""
    n = min(len(wanted.objects), len(seen.objects))

    def score(order: tuple[int, ...]) -> tuple[int, bool]:
        pairs = [(wanted.objects[i], seen.objects[j]) for i, j in enumerate(order) if i < n]
        right = sum(_agrees(getattr(w, a), getattr(s, a)) for w, s in pairs for a in _ATTRIBUTES)
        placed = n == 2 and wanted.relation is not None
        return right, placed and stands(pairs[0][1].center, str(wanted.relation), pairs[1][1].center)

    best = max(itertools.permutations(range(len(seen.objects)), n), key=score)
    return [(wanted.objects[i], seen.objects[j]) for i, j in enumerate(best)]


def _border_color(pixels: Float32[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "3"]:
    edge = [*range(_BORDER), *range(-_BORDER, 0)]
    colour: np.ndarray = np.median(
        np.concatenate([pixels[edge].reshape(-1, 3), pixels[:, edge].reshape(-1, 3)]), axis=0
    )
    return colour


def _nearest(color: Float32[np.ndarray, "3"], palette: dict[str, tuple[int, int, int]]) -> str:
    distances = np.linalg.norm(np.array(list(palette.values()), np.float32) - color, axis=1)
    return list(palette)[int(distances.argmin())]


def _large_pieces(labels: np.ndarray) -> list[Bool[np.ndarray, "h w"]]:
    areas = np.bincount(labels.ravel())[1:]
    numbers = [i + 1 for i in np.argsort(-areas, kind="stable") if areas[i] >= _MIN_AREA]
    return [labels == number for number in numbers]


def _core(piece: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """A piece without its edge, where colours mix; thin pieces keep what they can."""
    for depth in (3, 2, 1):
        core: np.ndarray = ndimage.binary_erosion(piece, iterations=depth)
        if core.sum() >= 20:
            return core
    return piece


def _split_by_color(
    pixels: Float32[np.ndarray, "h w 3"], piece: Bool[np.ndarray, "h w"]
) -> list[Bool[np.ndarray, "h w"]]:
    """Part a piece where two objects touch: where two colours each fill a good part of its inside."""
    core = _core(piece)
    names, counts = np.unique([_nearest(color, world.COLORS) for color in pixels[core]], return_counts=True)
    order = np.argsort(-counts)
    if len(names) < 2 or counts[order[1]] < max(0.25 * counts.sum(), 60):
        return [piece]
    palette = np.array([world.COLORS[str(names[i])] for i in order[:2]], np.float32)
    nearer = np.linalg.norm(pixels[:, :, None] - palette, axis=-1).argmin(-1)
    parts = [ndimage.binary_opening(piece & (nearer == i)) for i in (0, 1)]
    return [part for part in parts if part.sum() >= _MIN_AREA]


def _read_object(
    pixels: Float32[np.ndarray, "h w 3"], plain: Float32[np.ndarray, "3"], piece: Bool[np.ndarray, "h w"]
) -> ReadObject:
    color = np.median(pixels[_core(piece)], axis=0)
    way = color - plain
    near = ndimage.binary_dilation(piece, iterations=2)
    # The share of the object's colour in each pixel: the anti-aliased coverage, read backwards.
    covered = np.where(near, ((pixels - plain) @ way / max(float(way @ way), 1.0)).clip(0, 1), 0)
    shape, size, center, iou = _best_template(covered.astype(np.float32))
    mask = covered >= 0.5
    if not mask.any():
        mask = piece
    return ReadObject(shape, _nearest(color, world.COLORS), size, center, world.mask_box(mask), mask, iou)


def _best_template(
    covered: Float32[np.ndarray, "h w"],
) -> tuple[str, str, tuple[float, float], float]:
    """The ideal shape with the largest overlap (sum of minima over sum of maxima), centroid on centroid."""
    total = max(float(covered.sum()), 1e-6)
    x = float(covered.sum(0) @ (np.arange(covered.shape[1]) + 0.5)) / total
    y = float(covered.sum(1) @ (np.arange(covered.shape[0]) + 0.5)) / total
    best: tuple[str, str, tuple[float, float], float] | None = None
    for shape, size in itertools.product(world.SHAPES, world.SIZES):
        off_x, off_y = _centroid_offset(shape, size)
        center = (x - off_x, y - off_y)
        iou = _overlap(covered, total, shape, size, center)
        if best is None or iou > best[3]:
            best = (shape, size, center, iou)
    assert best is not None
    return best


def _overlap(
    covered: Float32[np.ndarray, "h w"], total: float, shape: str, size: str, center: tuple[float, float]
) -> float:
    fine = [round((c - _PATCH / 2) * _GRAIN) for c in center]  # the patch's corner, in quarters of a pixel
    (left, right), (top, bottom) = (divmod(f, _GRAIN) for f in fine)
    template, area = _template(shape, size, right, bottom)
    window = np.zeros((_PATCH, _PATCH), np.float32)
    y0, x0 = max(top, 0), max(left, 0)
    part = covered[y0 : max(top + _PATCH, 0), x0 : max(left + _PATCH, 0)]
    window[y0 - top : y0 - top + part.shape[0], x0 - left : x0 - left + part.shape[1]] = part
    both = float(np.minimum(window, template).sum())
    return both / (total + area - both)


@cache
def _template(shape: str, size: str, right: int, down: int) -> tuple[Float32[np.ndarray, "p p"], float]:
    """An ideal shape in the middle of a patch, moved by so many quarters of a pixel; and its area."""
    middle = _PATCH / 2
    whole = world.coverage(shape, (middle + right / _GRAIN, middle + down / _GRAIN), world.SIZES[size])
    patch = whole[:_PATCH, :_PATCH].copy()
    return patch, float(patch.sum())


@cache
def _centroid_offset(shape: str, size: str) -> tuple[float, float]:
    patch, area = _template(shape, size, 0, 0)
    along = np.arange(_PATCH) + 0.5 - _PATCH / 2
    return float(patch.sum(0) @ along) / area, float(patch.sum(1) @ along) / area
