"""Writes the steering study's results into docs/studies/steering.md, between its marks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import comb
from pathlib import Path
from typing import Any

import numpy as np

from fluxscope.files import write_text
from fluxscope.measures.certainty import holm
from fluxscope.measures.donor_scores import rate

PAGE = Path(__file__).resolve().parents[1] / "docs" / "studies" / "steering.md"
BEGIN, END = "<!-- made by benchmarks/steering_study.py -->", "<!-- end -->"
ATTRIBUTES = ("color", "shape", "size", "background")
TITLES = {
    "single": "One attribute of a single object",
    "text": "One attribute of a single object, in the text stream",
    "learned": "One attribute of a single object, by amounts that are fitted",
    "held-out": "In the text stream, where a pair of shape and colour comes about that the model never saw",
    "two": "One of two objects",
    "equal": "The left one of two equal objects",
}
CONTROLS = (", control", ", elsewhere")
Records = Sequence[Mapping[str, Any]]


def write_page(results: Mapping[str, Records], level: float) -> None:
    """Put these results' tables between the page's marks; parts without results keep the tables they have."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    old, _, after = rest.partition(END)
    kept = {part.partition("\n")[0]: part.rstrip() for part in old.split("### ")[1:]}
    tables = [
        section(title, results[part]) if results.get(part) else f"### {kept[title]}"
        for part, title in TITLES.items()
        if results.get(part) or title in kept
    ]
    text = "\n\n".join([f"Masks begin at a height of {level:g} of the features' map.", *tables])
    write_text(PAGE, f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
    print(PAGE)


def section(title: str, records: Records) -> str:
    """A table of one part's cells, and what is monotone in dose."""
    cells = list(dict.fromkeys(record["cell"] for record in records))
    kinds = [kind for kind in ATTRIBUTES if any(record["attribute"] == kind for record in records)]
    n = len({record["seed"] for record in records})
    head = (
        f"| edit | became | clean | {' | '.join(kinds)} | what else changed |\n"
        + "|---" * (4 + len(kinds))
        + "|"
    )
    rows = [row(cell, [r for r in records if r["cell"] == cell], kinds) for cell in cells]
    lines = [f"### {title}", f"{n} scenes.", "\n".join([head, *rows])]
    doses = [words for name in bases(cells) if (words := in_doses(name, records))]
    return "\n\n".join([*lines, *doses, *against_controls(records, cells)])


def against_controls(records: Records, cells: Sequence[str]) -> list[str]:
    """Clean changes of every edit against those of its control, scene by scene."""
    pairs = [(cell, f"{cell}{end}") for cell in cells for end in CONTROLS if f"{cell}{end}" in cells]
    if not pairs:
        return []
    clean = {(r["cell"], r["seed"]): is_clean(r) for r in records}
    seeds = {r["seed"] for r in records}
    chances = holm(np.array([sign_test([(clean[a, s], clean[b, s]) for s in seeds]) for a, b in pairs]))
    words = [f"*{edit}* {p:.2g}" for (edit, _), p in zip(pairs, chances, strict=True)]
    return [
        "Chance of such a difference from the control, were both as often clean (sign test over scenes, "
        f"two-sided, corrected by Holm over this part's {len(pairs)}): {', '.join(words)}."
    ]


def sign_test(pairs: Sequence[tuple[bool, bool]]) -> float:
    """Of pairs that differ, the chance of a split as uneven, were both sides as likely (McNemar, exact)."""
    one, other = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    n = one + other
    return min(1.0, 2 * sum(comb(n, i) for i in range(min(one, other) + 1)) / 2**n)


def row(cell: str, records: Records, kinds: Sequence[str]) -> str:
    became = share([record["became"] for record in records])
    all_clean = share([is_clean(record) for record in records])
    by_kind = [share([is_clean(r) for r in records if r["attribute"] == kind], False) for kind in kinds]
    changed = Counter(name for record in records for name in record["changed"])
    words = ", ".join(f"{name} {n / len(records):.0%}" for name, n in changed.most_common(3))
    return f"| {cell} | {became} | {all_clean} | {' | '.join(by_kind)} | {words} |"


def is_clean(record: Mapping[str, Any]) -> bool:
    return bool(record["became"] and not record["changed"])


def share(happened: Sequence[bool], interval: bool = True) -> str:
    """A share with Wilson's interval, in percent."""
    found = rate(happened)
    if found is None:
        return "-"
    words = f"{found.share:.0%}"
    return f"{words} ({found.low * 100:.0f}-{found.high * 100:.0f})" if interval else words


def bases(cells: Sequence[str]) -> list[str]:
    """The edits that were tried in several doses."""
    return list(dict.fromkeys(cell.rpartition(" x ")[0] for cell in cells if " x " in cell))


def in_doses(name: str, records: Records) -> str:
    """Up to natural size: of the scenes in which some dose brought the change about, how often no larger one,
    up to 1, took it back; and the doses at which the change is most often clean."""
    by_seed: dict[int, dict[float, Mapping[str, Any]]] = {}
    for record in records:
        base, _, dose = record["cell"].rpartition(" x ")
        if name in (base, record["cell"]):
            by_seed.setdefault(record["seed"], {})[float(dose) if base else 1.0] = record
    monotone = []
    for doses in by_seed.values():
        came = [doses[dose]["became"] for dose in sorted(doses) if dose <= 1]
        if any(came):
            monotone.append(all(came[came.index(True) :]))
    clean = {
        dose: sum(is_clean(doses[dose]) for doses in by_seed.values())
        for dose in sorted(next(iter(by_seed.values())))
    }
    best = max(clean.values())
    useful = [f"{dose:g}" for dose, n in clean.items() if n >= 0.9 * best and best]
    return (
        f"*{name}*: in {share(monotone)} of {len(monotone)} scenes in which a dose up to 1 brought the "
        f"change about, more dose up to 1 never undid it. Doses with at least nine tenths of the most clean "
        f"changes: {', '.join(useful) or 'none'}."
    )
