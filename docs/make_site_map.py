"""Write what flux-shapes' site map says into the docs and the package.

    fluxscope site-map --pair-count 16 --out-dir map
    python docs/make_site_map.py map

The tables of docs/explanation/site-map.md, its picture, and the donor scores that steps 4, 7 and 10 warn by.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path

from fluxscope.models.cells import KINDS
from fluxscope.run.donor_table import table_of
from fluxscope.run.site_map_records import CellScore, Share, SiteMap
from fluxscope.run.site_map_scores import is_alone
from fluxscope.shapes.pairs import ATTRIBUTES
from fluxscope.shapes.shipped import DONOR_SCORES

PAGE = Path(__file__).parent / "explanation" / "site-map.md"
PICTURE = Path(__file__).parent / "images" / "site_map.png"
BEGIN, END = "<!-- made by docs/make_site_map.py: do not edit -->\n", "<!-- end -->\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the folder of a site map of flux-shapes")
    given = parser.parse_args()
    found = SiteMap.read(given.run / "site_map.json")
    table_of(found).write(DONOR_SCORES)
    shutil.copyfile(given.run / "site_map.png", PICTURE)
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"{PAGE} has no place for the tables"
    PAGE.write_text(f"{before}{BEGIN}\n{measured(found)}\n{END}{after}")


def measured(found: SiteMap) -> str:
    """All that was measured, as Markdown."""
    settings = found.made_with
    head = (
        f"`fluxscope site-map --pair-count {len(found.pairs)}`, {found.model_id}: "
        f"{settings['num_inference_steps']} steps, guidance {settings['guidance_scale']:g}, seeds from "
        f"{settings['base_seed']}. {found.words}\n"
    )
    return "\n".join([head, *each_block(found), "", *together(found)])


def each_block(found: SiteMap) -> Iterator[str]:
    """A table of kinds by blocks: became, in percent, each block alone."""
    alone = {
        (each.kind, each.blocks[0]): each
        for each in found.cells
        if each.control == "donor" and is_alone(each)
    }
    yield "One block alone, all steps: became, in percent."
    yield ""
    for single in (False, True):
        kinds = [kind for kind in KINDS if kind.single == single and any(k == kind.name for k, _ in alone)]
        blocks = sorted({block for name, block in alone if name in [kind.name for kind in kinds]})
        yield f"| {'single' if single else 'double'} block | " + " | ".join(map(str, blocks)) + " |"
        yield "|---|" + "---|" * len(blocks)
        for kind in kinds:
            shares = (alone[kind.name, b].score if (kind.name, b) in alone else None for b in blocks)
            cells = (f"{100 * share.share:.0f}" if share else "" for share in shares)
            yield f"| `{kind.name}` | " + " | ".join(cells) + " |"
        yield ""


def together(found: SiteMap) -> Iterator[str]:
    """A table of blocks copied together, windows and controls."""
    yield "Blocks together, windows of noise levels, controls: percent, with Wilson's 95% interval."
    yield ""
    names = " / ".join(ATTRIBUTES)
    yield f"| copied in | became | clean | clean: {names} | distance closed | change outside |"
    yield "|---|---|---|---|---|---|"
    yield row("the donor's own picture", found.donors)
    for each in found.cells:
        if each.control != "donor":
            yield row(f"`{each.name}`, {each.control}", each)
        elif not is_alone(each):
            yield row(f"`{each.name}`", each)


def row(name: str, score: CellScore) -> str:
    by = score.by_attribute or {}
    attributes = " / ".join(f"{100 * by[name].share:.0f}" if name in by else "-" for name in ATTRIBUTES)
    closed, outside = (
        f"{100 * float(x):.0f}" if x is not None else "-" for x in (score.closed, score.outside)
    )
    return (
        f"| {name} | {percent(score.score)} | {percent(score.clean)} | {attributes} | {closed} | {outside} |"
    )


def percent(share: Share | None) -> str:
    if share is None:
        return "-"
    return f"{100 * share.share:.0f} ({100 * share.low:.0f}-{100 * share.high:.0f})"


if __name__ == "__main__":
    main()
