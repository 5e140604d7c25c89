"""The scores of a site map laid out for its picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL.Image import Image

from fluxscope.draw.site_map import Ranked, Squares, site_map
from fluxscope.models.cells import KINDS, WHOLE
from fluxscope.run.site_map_records import CellScore, SiteMap
from fluxscope.run.site_map_scores import is_alone

MEANINGS = {
    "oracle": "share of pictures that got what the donor's prompt asks for, read by the oracle",
    "distance": "share of pictures that came nearer to the donor's than to their own",
}


def picture_of(found: SiteMap, ranked: Sequence[CellScore]) -> Image:
    """The map's picture.

    Args:
        ranked: the places, best first.
    """
    maps = [squares for squares in (each_block(found.cells), together(found.cells)) if squares]
    foot = (
        f"{found.model_id} · {len(found.pairs)} pairs of prompts, same seed · {MEANINGS[found.measure]}, in "
        "percent, with Wilson's 95% interval · grey: not measured"
    )
    listed = [(" + ".join(each.sites), *_numbers(each)) for each in ranked]
    best = Ranked("The best single blocks", listed)
    return site_map(maps, best, "Where does the model decide? A donor's activations copied in", foot)


def each_block(scores: Sequence[CellScore]) -> Squares | None:
    """Kinds of site by blocks, each block alone over all of denoising; single blocks stand on the right."""
    alone = [each for each in scores if each.control == "donor" and is_alone(each)]
    if not alone:
        return None
    columns = sorted({(each.kind.startswith("single"), each.blocks[0]) for each in alone})
    rows = dict.fromkeys(_row(each.kind) for kind in KINDS for each in alone if each.kind == kind.name)
    shares = np.full((len(rows), len(columns), 3), np.nan)
    for each in alone:
        place = (
            list(rows).index(_row(each.kind)),
            columns.index((each.kind.startswith("single"), each.blocks[0])),
        )
        shares[place] = _numbers(each)
    names = [f"s{block}" if single else f"{block}" for single, block in columns]
    return Squares("One block alone, all steps (s: single blocks)", list(rows), names, shares)


def together(scores: Sequence[CellScore]) -> Squares | None:
    """Kinds of site by ranges of blocks, by windows, and the controls."""
    several = [each for each in scores if each.control != "donor" or not is_alone(each)]
    if not several:
        return None
    columns = list(dict.fromkeys(_column(each) for each in sorted(several, key=_column_order)))
    rows = dict.fromkeys(_row(each.kind) for kind in KINDS for each in several if each.kind == kind.name)
    shares = np.full((len(rows), len(columns), 3), np.nan)
    for each in several:
        shares[list(rows).index(_row(each.kind)), columns.index(_column(each))] = _numbers(each)
    return Squares("Blocks together, windows of noise levels, and controls", list(rows), columns, shares)


def _row(kind: str) -> str:
    """A kind's row; those of single blocks go on in the row of the same stream."""
    kind = {"single": "image", "single_text": "text"}.get(kind, kind)
    return next(each.words for each in KINDS if each.name == kind)


def _column(score: CellScore) -> str:
    blocks = score.name.partition(":")[2].partition("@")[0]
    words = f"single {blocks}" if score.kind.startswith("single") else blocks
    if score.window != [WHOLE.high, WHOLE.low]:
        words += f"\n{score.window[0]:g}-{score.window[1]:g}"
    return words if score.control == "donor" else f"{words}\n{score.control}"


def _column_order(score: CellScore) -> tuple[bool, bool, bool, int, int, float, str]:
    """Ranges first, from the front to the back, then windows, then controls."""
    first, last = score.blocks
    window = score.window != [WHOLE.high, WHOLE.low]
    single = score.kind.startswith("single")
    return (
        score.control != "donor",
        window,
        single,
        last - first > 3,
        first,
        -float(score.window[0]),
        score.control,
    )


def _numbers(score: CellScore) -> tuple[float, float, float]:
    found = score.score
    return (found.share, found.low, found.high) if found else (np.nan, np.nan, np.nan)
