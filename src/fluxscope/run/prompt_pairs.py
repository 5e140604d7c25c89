"""The pairs of prompts of a site map: those of a file, or those that ship."""

from __future__ import annotations

from pathlib import Path

from fluxscope.errors import ConfigError
from fluxscope.run.site_map_records import PromptPair, PromptPairs
from fluxscope.shapes.pairs import caption_pairs
from fluxscope.shapes.shipped import FLUX_SHAPES, NATURAL_PAIRS, resolve

MOST = 1000
"""Pairs of a file at most."""

USUAL = 12
"""Pairs of flux-shapes where no number is given: three for each attribute, eight minutes on two cores."""


def pairs_for(model_id: str, file: Path | None, count: int | None) -> list[PromptPair]:
    """The pairs of a file; without one, captions that differ in one attribute for flux-shapes, and a dozen
    pairs of natural prompts for other models.

    Args:
        count: how many; None: all that there are, or the usual number.

    Raises:
        FluxscopeError: the file is missing or holds something else.
        ConfigError: it holds no pair, too many, or one of equal prompts; or fewer than are asked for.
    """
    if file is None and resolve(model_id) == resolve(FLUX_SHAPES):
        captions = caption_pairs(count or USUAL)
        return [PromptPair(source=source, target=target) for source, target in captions]
    place = file or NATURAL_PAIRS
    pairs = PromptPairs.read(place).pairs
    check(place, pairs)
    if count is not None and count > len(pairs):
        raise ConfigError(f"{place} holds {len(pairs)} pairs, not {count}", "Leave out --pair-count.")
    return pairs[:count]


def check(place: Path, pairs: list[PromptPair]) -> None:
    if not 0 < len(pairs) <= MOST:
        raise ConfigError(f"{place} holds {len(pairs)} pairs", f"Give from 1 to {MOST}.")
    for number, pair in enumerate(pairs):
        if not pair.source.strip() or not pair.target.strip():
            raise ConfigError(f"pairs[{number}] of {place} has an empty prompt", "Give both prompts.")
        if " ".join(pair.source.split()) == " ".join(pair.target.split()):
            raise ConfigError(
                f"the prompts of pairs[{number}] of {place} don't differ: {pair.source}",
                "Let the target ask for one thing that the source does not.",
            )
