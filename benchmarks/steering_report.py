"""What the steering study found: shares with their intervals, tables, pictures, and the page in docs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fluxscope.draw.grid import GridRow, labelled_grid
from fluxscope.files import save_image, write_text
from fluxscope.measures.clip import open_picture
from fluxscope.settings.config import make_config
from steering_material import COVERED, Material

DOCS = Path(__file__).resolve().parent.parent / "docs"
TEMPLATE = Path(__file__).with_name("steering_page.md")
MARKS = ("<!-- the study: made by benchmarks/steering_study.py -->", "<!-- end of the study -->")
STEERED = ("color", "shape", "background")
ENOUGH, KEPT = 0.6, 0.8
"""A feature passes when at one strength so many attributes change while so many backgrounds stay right."""
DEFAULT = make_config().top_features
"""How many features a run selects by default."""
SHOWN = 3
"""Features of each attribute in the picture of steered features."""

Records = Sequence[dict[str, Any]]
Key = tuple[str, str, float]
"""A cell: way, window, dose."""


def rate(records: Records, *keys: str) -> float:
    """The share of records for which all keys hold."""
    return sum(all(record[key] for key in keys) for record in records) / max(len(records), 1)


def cells_of(records: Records) -> dict[Key, list[dict[str, Any]]]:
    """The records of each cell."""
    cells: dict[Key, list[dict[str, Any]]] = {}
    for record in records:
        cells.setdefault((record["way"], record["window"], record["dose"]), []).append(record)
    return cells


def best_cell(cells: Mapping[Key, Records], way: str = "", window: str = "") -> Key:
    """The cell that is worth most; of equals the weakest.

    Args:
        way, window: look among these only.
    """
    among = [key for key in cells if way in ("", key[0]) and window in ("", key[1])]
    return max(among, key=lambda key: (worth(cells[key]), -key[2]))


def worth(records: Records) -> tuple[float, float]:
    """How many wishes came true with the rest kept; among equals, how many attributes changed with it."""
    return rate(records, "became", "kept"), rate(records, "changed", "kept")


def of(records: Records, attribute: str) -> Records:
    return [record for record in records if record["attribute"] == attribute]


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95% score interval of a share (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    z, p = 1.96, hits / n
    middle, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max((middle - spread) / (1 + z * z / n), 0.0), min((middle + spread) / (1 + z * z / n), 1.0)


def share(records: Records, *keys: str) -> str:
    """A share with its interval, such as 60% (39-78)."""
    low, high = wilson(round(rate(records, *keys) * len(records)), len(records))
    return f"{rate(records, *keys):.0%} ({100 * low:.0f}-{100 * high:.0f})"


def screen_table(records: Records, windows: Sequence[str]) -> str:
    """One row a way, one column a window: wishes come true and the rest kept, at the best dose."""
    cells = cells_of(records)
    lines = ["| way | " + " | ".join(windows) + " |", "|---" * (len(windows) + 1) + "|"]
    for way in dict.fromkeys(key[0] for key in cells):
        keys = [best_cell(cells, way, window) for window in windows]
        shown = (f"{rate(cells[key], 'became', 'kept'):.0%} at {key[2]:g}" for key in keys)
        lines.append(f"| {way} | {' | '.join(shown)} |")
    return "\n".join(lines)


def full_table(records: Records) -> str:
    """One row a chosen cell, on pictures that played no part in the choice."""
    lines = [
        "| way | steps | dose | became, rest kept | changed, rest kept | changed, all kept | of colours "
        "| of shapes | of backgrounds |",
        "|---" * 9 + "|",
    ]
    cells = cells_of(records)
    order = sorted(cells, key=lambda key: worth(cells[key]), reverse=True)
    for key in order:
        own = cells[key]
        shown = [share(own, "became", "kept"), share(own, "changed", "kept"), share(own, "changed", "whole")]
        shown += [f"{rate(of(own, attribute), 'changed', 'kept'):.0%}" for attribute in STEERED]
        lines.append(f"| {key[0]} | {key[1]} | {key[2]:g} | {' | '.join(shown)} |")
    return "\n".join(lines)


def best_dose(records: Records) -> Records:
    """The records at one dose: of those at which the rest is kept often enough that with most attributes
    changed; where there is none, that with most changed and kept."""
    doses = [[r for r in records if r["dose"] == dose] for dose in sorted({r["dose"] for r in records})]

    def order(own: Records) -> tuple[bool, float]:
        enough = rate(own, "kept") >= KEPT
        return enough, rate(own, "changed") if enough else rate(own, "changed", "kept")

    return max(doses, key=order)


def by_control(records: Records) -> dict[tuple[int, str], Records]:
    """For each feature and control the records at its best dose."""
    found: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for record in records:
        found.setdefault((record["feature"], record["control"]), []).append(record)
    return {key: best_dose(own) for key, own in found.items()}


def controls_table(records: Records) -> str:
    lines = [
        "| feature | steered by | strength | changed | became the feature's | rest kept | all kept |",
        "|---|---|---|---|---|---|---|",
    ]
    for (feature, control), own in by_control(records).items():
        name = ""
        if control == "feature":
            name = f"{feature} ({own[0]['attribute']} {own[0]['value']})"
        shown = " | ".join(share(own, key) for key in ("changed", "became", "kept", "whole"))
        lines.append(f"| {name} | {control} | {own[0]['dose']:g} | {shown} |")
    return "\n".join(lines)


def table_ways(records: Records) -> str:
    """How each attribute was steered."""
    ways = {record["attribute"]: f"{record['way']}, {record['window']} steps" for record in records}
    return "; ".join(f"{attribute}: {way}" for attribute, way in ways.items())


def verdict(records: Records, material: Material) -> str:
    """How many features pass at one of their strengths, and how many times each control does."""
    controls = list(dict.fromkeys(record["control"] for record in records))
    first = {wish.feature for wish in material.selected if wish.rank is not None and wish.rank < DEFAULT}
    parts = {f"a {attribute}": of(records, attribute) for attribute in COVERED}
    parts["all"] = records
    parts[f"of the first {DEFAULT} selected"] = [r for r in records if r["feature"] in first]
    lines = [
        f"| features that share | how many | {' | '.join(controls)} |",
        "|---" * (len(controls) + 2) + "|",
    ]
    for name, part in parts.items():
        if not part:
            continue
        passed = [
            f"{passing(part, control, 'changed')}, {passing(part, control, 'became')}" for control in controls
        ]
        lines.append(f"| {name} | {len({r['feature'] for r in part})} | {' | '.join(passed)} |")
    return "\n".join(lines)


def passing(records: Records, control: str, goal: str) -> int:
    """For how many features there is a strength at which the goal, changed or became, is reached in enough
    pictures and the rest is kept in enough."""
    cells: dict[tuple[int, float], list[dict[str, Any]]] = {}
    for r in records:
        if r["control"] == control:
            cells.setdefault((r["feature"], r["dose"]), []).append(r)
    return len(
        {f for (f, _), own in cells.items() if rate(own, goal) >= ENOUGH and rate(own, "kept") >= KEPT}
    )


def write_page(out: Path, material: Material, results: Mapping[str, Records]) -> None:
    """Put the study into docs/steering.md, between its marks, and draw its pictures.

    Args:
        out: the study's folder.
        results: the records of screen, full and table.
    """
    screen, full, table = results["screen"], results["full"], results["table"]
    parts = {
        "screen": screen_table(screen, tuple(dict.fromkeys(record["window"] for record in screen))),
        "screen_trials": str(len(next(iter(cells_of(screen).values())))),
        "wishes": ", ".join(f"{wish.attribute} {wish.value} ({wish.feature})" for wish in material.wishes),
        "full": full_table(full),
        "full_trials": str(len(next(iter(cells_of(full).values())))),
        "table": controls_table(table),
        "table_pictures": str(max(len(own) for own in by_control(table).values())),
        "table_ways": table_ways(table),
        "verdict": verdict(table, material),
    }
    text = TEMPLATE.read_text()
    for name, part in parts.items():
        text = text.replace("{{" + name + "}}", part)
    assert "{{" not in text, "a place of the template is not filled"
    draw_ways(out, full)
    draw_features(out, table)
    page = DOCS / "steering.md"
    write_text(page, between_marks(page.read_text(), text))
    print(f"{page}\n{parts['verdict']}")


def between_marks(page: str, text: str) -> str:
    """The page with what stands between the marks replaced."""
    before, _, rest = page.partition(MARKS[0])
    _, mark, after = rest.partition(MARKS[1])
    assert mark, "docs/steering.md has lost its marks"
    return f"{before}{MARKS[0]}\n\n{text.strip()}\n\n{MARKS[1]}{after}"


def draw_ways(out: Path, records: Records) -> None:
    """For each wish its first picture under every way, in its best window and dose."""
    cells = cells_of(records)
    keys = [best_cell(cells, way) for way in dict.fromkeys(key[0] for key in cells)]
    rows = [steered_row(out, [one(own, key) for key in keys]) for own in shown_of(records).values()]
    sheet = labelled_grid(
        rows,
        ["before", *(key[0] for key in keys)],
        title="Ways to steer",
        subtitle="Each in the steps and at the strength at which it did best; ✓ became, the rest kept",
        footer="The first picture of each value, not a chosen one.",
        baseline=0,
        tile=144,
    )
    save_image(DOCS / "images" / "steering_ways.png", sheet)


def draw_features(out: Path, records: Records) -> None:
    """For the first selected features of each attribute a picture at the feature's best strength, beside the
    controls."""
    best = by_control(records)
    rows = []
    for attribute in COVERED:
        for feature, own in list(shown_of(of(records, attribute)).items())[:SHOWN]:
            dose = best[feature, "feature"][0]["dose"]
            rows.append(steered_row(out, [record for record in own if record["dose"] == dose]))
    sheet = labelled_grid(
        rows,
        ["before", "its feature", "random direction", "random feature"],
        title="Selected features, turned up",
        subtitle="At the strength that did best; ✓ became, the rest kept",
        footer="The first features of each attribute and the first picture of each, not chosen ones; the "
        "controls at the same norm.",
        baseline=0,
        tile=128,
    )
    save_image(DOCS / "images" / "steering_features.png", sheet)


def shown_of(records: Records) -> dict[int, list[dict[str, Any]]]:
    """The records with a kept picture, by feature."""
    shown: dict[int, list[dict[str, Any]]] = {}
    for record in records:
        if record["picture"]:
            shown.setdefault(record["feature"], []).append(record)
    return shown


def one(records: Iterable[dict[str, Any]], key: Key) -> dict[str, Any]:
    return next(r for r in records if (r["way"], r["window"], r["dose"]) == key)


def steered_row(out: Path, records: Records) -> GridRow:
    """A picture before and after, and what the oracle reads in it."""
    first = records[0]
    paths = [out / "baselines" / f"{first['seed']}.png", *(out / record["picture"] for record in records)]
    pictures = [np.asarray(open_picture(path)) for path in paths]
    marks = [" ✓" if r["became"] and r["kept"] else "" for r in records]
    notes = ["", *(f"{r['dose']:g}: {r['now']}{mark}" for r, mark in zip(records, marks, strict=True))]
    return GridRow(pictures, f"{first['prompt']} → {first['value']} ({first['feature']})", notes)
