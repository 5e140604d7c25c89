"""What a site map is made of: kinds of site, the blocks that are copied together, and windows of noise.

A cell is one of each: `attn:0-3@0.72-0.38` copies the attention outputs of blocks 0 to 3 while the noise
level is between these. Windows are given by noise level: a step's number means little on another schedule.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fluxscope.errors import ConfigError
from fluxscope.models.sites import Site, parse_site
from fluxscope.models.spec import ModelSpec

TOGETHER = 4
"""Blocks of a group, where blocks are copied in groups."""


@dataclass(frozen=True)
class CellKind:
    """Sites of one kind along the depth of a model.

    Attributes:
        name: as flags and files have it.
        words: as pictures and sentences have it.
        patterns: the sites of one block that are copied together, with L for its number.
        stream: whether a copy in a later block makes those in earlier ones needless: groups say no more then.
    """

    name: str
    words: str
    patterns: tuple[str, ...]
    stream: bool = False

    @property
    def single(self) -> bool:
        """Whether it is of single blocks."""
        return self.patterns[0].startswith("single")


KINDS = (
    CellKind("ff", "feed-forward (image)", ("double.L.ff",)),
    CellKind("attn", "attention output (image)", ("double.L.attn",)),
    CellKind("text_kv", "text keys and values", ("double.L.k_context", "double.L.v_context")),
    CellKind("text", "text stream", ("double.L.context",), stream=True),
    CellKind("image", "image stream", ("double.L",), stream=True),
    CellKind("single_text", "text stream, single blocks", ("single.L.context",), stream=True),
    CellKind("single", "image stream, single blocks", ("single.L",), stream=True),
)


@dataclass(frozen=True)
class Window:
    """The steps whose noise level is above `low` and not above `high`."""

    high: float
    low: float

    def steps(self, sigmas: Sequence[float]) -> tuple[int, ...]:
        return tuple(i for i, sigma in enumerate(sigmas) if self.low < sigma <= self.high)

    def steps_on(self, sigmas: Sequence[float]) -> tuple[int, ...]:
        """The same.

        Raises:
            ConfigError: no step of the schedule lies there.
        """
        steps = self.steps(sigmas)
        if not steps:
            raise ConfigError(
                f"no step lies between the noise levels {self.high:g} and {self.low:g}",
                f"The steps are at {', '.join(f'{sigma:.2f}' for sigma in sigmas[:40])}.",
            )
        return steps

    @property
    def name(self) -> str:
        return "" if self == WHOLE else f"@{self.high:g}-{self.low:g}"


WHOLE = Window(1.0, 0.0)
PARTS = (Window(1.0, 0.725), Window(0.725, 0.375), Window(0.375, 0.0))
"""Beginning, middle and end: steps 0-5, 6-12 and 13-19 of flux-shapes."""


@dataclass(frozen=True)
class Cell:
    """One square of a site map.

    Attributes:
        blocks: the first and the last block.
        whole: whether they are all that the model has.
    """

    kind: CellKind
    blocks: tuple[int, int]
    window: Window
    whole: bool = False

    @property
    def sites(self) -> tuple[Site, ...]:
        first, last = self.blocks
        numbers = range(first, last + 1)
        return tuple(parse_site(p.replace("L", str(n))) for n in numbers for p in self.kind.patterns)

    @property
    def name(self) -> str:
        first, last = self.blocks
        blocks = "all" if self.whole else f"{first}" if first == last else f"{first}-{last}"
        return f"{self.kind.name}:{blocks}{self.window.name}"

    @property
    def alone(self) -> bool:
        """Whether it is one block over the whole of denoising: a place to put an edit."""
        return self.blocks[0] == self.blocks[1] and self.window == WHOLE


def usual_cells(spec: ModelSpec) -> list[Cell]:
    """Every kind of site: each block alone, groups of four, all; all of them in three windows too."""
    cells = []
    for kind in KINDS:
        n = blocks_of(kind, spec)
        together = "" if kind.single else ",all" if kind.stream else ",groups,all"
        cells += cells_of(spec, [kind], f"each{together}", [WHOLE]) if n else []
        cells += cells_of(spec, [kind], "all", PARTS) if n > 1 and not kind.single else []
    return list(dict.fromkeys(cells))


def cells_of(
    spec: ModelSpec, kinds: Sequence[CellKind], blocks: str, windows: Sequence[Window]
) -> list[Cell]:
    """The cells of these kinds, blocks and windows, those left out that a model of this shape lacks.

    Args:
        blocks: numbers, ranges such as 4-7, each, groups, all; with commas.

    Raises:
        ConfigError: the blocks are none of these, or lie outside the model for every kind.
    """
    cells = [
        Cell(kind, span, window, span == (0, blocks_of(kind, spec) - 1) and span[1] > 0)
        for kind in kinds
        for window in windows
        for span in spans(blocks, blocks_of(kind, spec))
        if not (kind.name == "single_text" and span[0] == spec.n_single - 1)  # nothing reads it any more
    ]
    if not cells:
        raise ConfigError(
            f"the model has no blocks {blocks} of {', '.join(kind.name for kind in kinds)}",
            f"It has {spec.n_double} double blocks and {spec.n_single} single blocks, counted from 0.",
        )
    return list(dict.fromkeys(cells))


def cells_named(text: str, spec: ModelSpec, sigmas: Sequence[float]) -> list[Cell]:
    """The cells of a list of names such as "ff:15,attn:0-3@0.7-0.4"; `groups` and `each` stand for several.

    Raises:
        ConfigError: one is no name of a cell, or of none that the model has.
    """
    found: list[Cell] = []
    for name in (part.strip() for part in text.split(",")):
        kind, colon, rest = name.partition(":")
        blocks, _, window = rest.partition("@")
        if not colon:
            raise ConfigError(
                f"{name!r} names no cell", "Give KIND:BLOCKS, such as ff:15 or attn:0-3@0.7-0.4."
            )
        windows = windows_named(window or "whole", sigmas)
        found += cells_of(spec, kinds_named(kind), blocks, windows)
    return list(dict.fromkeys(found))


def blocks_of(kind: CellKind, spec: ModelSpec) -> int:
    """How many blocks have such sites."""
    return spec.n_single if kind.single else spec.n_double


def spans(text: str, n: int) -> list[tuple[int, int]]:
    """First and last block of every entry of a list such as "each,groups,all" or "15,4-7".

    Raises:
        ConfigError: an entry is none of these.
    """
    found: list[tuple[int, int]] = []
    for part in (part.strip() for part in text.split(",")):
        match = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", part)
        if match:
            first, last = int(match[1]), int(match[2] or match[1])
            if first > last:
                raise ConfigError(f"blocks {part} run backwards", f"Write {last}-{first}.")
            found += [(first, last)] if last < n else []
        elif part == "all":
            found += [(0, n - 1)] if n else []
        elif part in ("each", "groups"):
            size = 1 if part == "each" else TOGETHER
            found += [(i, min(i + size, n) - 1) for i in range(0, n, size)]
        else:
            raise ConfigError(
                f"there are no blocks {part!r}", "Give numbers, ranges such as 4-7, each, groups or all."
            )
    return list(dict.fromkeys(found))


def kinds_named(text: str) -> list[CellKind]:
    """The kinds of a list such as "ff,attn"; all where it is empty.

    Raises:
        ConfigError: there is no such kind.
    """
    by_name = {kind.name: kind for kind in KINDS}
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    for name in wanted:
        if name not in by_name:
            raise ConfigError(f"there is no kind of site {name!r}", f"Kinds are: {', '.join(by_name)}.")
    return [by_name[name] for name in wanted] or list(KINDS)


def windows_named(text: str, sigmas: Sequence[float]) -> list[Window]:
    """The windows of a list such as "whole,1-0.7,0.7-0"; `parts` stands for beginning, middle and end.

    Raises:
        ConfigError: one is no window, or no step of the schedule lies in it.
    """
    return without_steps_refused(parse_windows(text), sigmas)


def parse_windows(text: str) -> list[Window]:
    """The same for any schedule."""
    found: list[Window] = []
    for part in (part.strip() for part in text.split(",")):
        match = re.fullmatch(r"([01](?:\.[0-9]{1,6})?)-([01](?:\.[0-9]{1,6})?)", part)
        if part == "whole":
            found.append(WHOLE)
        elif part == "parts":
            found += PARTS
        elif match and 1 >= float(match[1]) > float(match[2]) >= 0:
            found.append(Window(float(match[1]), float(match[2])))
        else:
            raise ConfigError(
                f"{part!r} is no window of noise levels",
                "Give whole, parts, or two levels such as 0.7-0.4: from 1, all noise, down to 0, none.",
            )
    return found


def without_steps_refused(windows: Iterable[Window], sigmas: Sequence[float]) -> list[Window]:
    for window in windows:
        window.steps_on(sigmas)
    return list(dict.fromkeys(windows))
