"""What is true of a picture, token by token: the concepts that a detector can be held against.

A concept is a name such as "color: red". It lies on tokens, the cells of 16 x 16 pixels that FLUX works on:

    shape, color, size   those that an object of this kind covers by a quarter or more
    background           all others, where the picture's background is this one
    pair                 the tokens of an object of this colour and shape
    relation             "left of": the tokens of the object that is left of the other
    place                object; edge and inside of an object; corner of its outline; border and quadrants
                         of the picture, which are the same tokens in every picture

All is read by the oracle from the picture itself, not from its caption.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from fluxscope.shapes import world
from fluxscope.shapes.oracle import Reading, ReadObject, stands

CELL = 16
"""Pixels along a token's side."""

GRID = world.RESOLUTION // CELL
TOKENS = GRID * GRID

COVERED = 0.25
"""A token is an object's when the object covers such a share of it."""

EDGE = (0.1, 0.9)
"""An object's outline passes a token of which it covers a share between these; above, one is inside."""

QUADRANTS = ("upper left", "upper right", "lower left", "lower right")

ATTRIBUTES = (
    *(f"shape: {shape}" for shape in world.SHAPES),
    *(f"color: {color}" for color in world.COLORS),
    *(f"size: {size}" for size in world.SIZES),
    *(f"background: {background}" for background in world.BACKGROUNDS),
)
"""The 23 values that a caption can ask for."""

PAIRS = tuple(f"pair: {color} {shape}" for color in world.COLORS for shape in world.SHAPES)
RELATIONS = tuple(f"relation: {relation}" for relation in world.RELATIONS)
PLACES = (
    *(f"place: {place}" for place in ("object", "edge", "inside", "corner", "border")),
    *(f"place: {quadrant}" for quadrant in QUADRANTS),
)

CONCEPTS = ATTRIBUTES + PAIRS + RELATIONS + PLACES
"""All concepts, in the order of the columns of `token_truth`."""

FIXED = PLACES[-5:]
"""Those that lie on the same tokens of every picture."""

OF_PICTURES = (*ATTRIBUTES, *PAIRS, "relation: left of", "relation: above")
"""Those that a whole picture has or lacks. Where one object is left of another, the other is right of it."""


def token_truth(seen: Reading) -> Bool[np.ndarray, "t c"]:
    """Which tokens of a picture, row by row, have which of CONCEPTS.

    Args:
        seen: the picture, as `oracle.read` reads it.
    """
    truth = dict.fromkeys(CONCEPTS, np.zeros((GRID, GRID), bool))

    def add(concept: str, tokens: Bool[np.ndarray, "y x"]) -> None:
        truth[concept] = truth[concept] | tokens

    for thing in seen.objects:
        share = cell_shares(thing.mask)
        covered = share >= COVERED
        for concept in (f"shape: {thing.shape}", f"color: {thing.color}", f"size: {thing.size}"):
            add(concept, covered)
        add(f"pair: {thing.color} {thing.shape}", covered)
        for relation in _relations(thing, seen):
            add(f"relation: {relation}", covered)
        add("place: object", covered)
        add("place: edge", (share >= EDGE[0]) & (share < EDGE[1]))
        add("place: inside", share >= EDGE[1])
        add("place: corner", _corner_cells(thing))
    add(f"background: {seen.background}", ~truth["place: object"])
    for concept, tokens in zip(FIXED, _fixed_places(), strict=True):
        add(concept, tokens)
    return np.stack([truth[concept].reshape(-1) for concept in CONCEPTS], axis=1)


def columns(concepts: tuple[str, ...]) -> list[int]:
    """Where these concepts stand among CONCEPTS."""
    return [CONCEPTS.index(concept) for concept in concepts]


def cell_shares(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "y x"]:
    """The share of each token's pixels that lie in a mask."""
    shares: np.ndarray = mask.reshape(GRID, CELL, GRID, CELL).mean((1, 3))
    return shares


def _relations(thing: ReadObject, seen: Reading) -> list[str]:
    """How an object stands to the other, where there are two."""
    others = [other for other in seen.objects if other is not thing]
    if len(others) != 1:
        return []
    return [relation for relation in world.RELATIONS if stands(thing.center, relation, others[0].center)]


def _corner_cells(thing: ReadObject) -> Bool[np.ndarray, "y x"]:
    """The tokens in which a corner of the ideal shape lies."""
    cells = np.zeros((GRID, GRID), bool)
    radius = world.SIZES[thing.size]
    for u, v in world.corners(thing.shape):
        x, y = int((thing.center[0] + radius * u) // CELL), int((thing.center[1] + radius * v) // CELL)
        if 0 <= x < GRID and 0 <= y < GRID:
            cells[y, x] = True
    return cells


def _fixed_places() -> list[Bool[np.ndarray, "y x"]]:
    y, x = np.indices((GRID, GRID))
    border = (y % (GRID - 1) == 0) | (x % (GRID - 1) == 0)
    upper, left = y < GRID // 2, x < GRID // 2
    return [border, upper & left, upper & ~left, ~upper & left, ~upper & ~left]
