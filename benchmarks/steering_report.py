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
from steering_material import Material

DOCS = Path(__file__).resolve().parent.parent / "docs"
TEMPLATE = Path(__file__).with_name("steering_page.md")
MARKS = ("<!-- the study: made by benchmarks/steering_study.py -->", "<!-- end of the study -->")
ENOUGH, KEPT = 0.6, 0.8
"""A feature passes when at one strength so many attributes change while so many backgrounds stay right."""

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
    """The cell with most wishes come true and the rest kept; of equals that with most changed and kept, then
    the weakest.

    Args:
        way, window: look among these only.
    """
    among = [key for key in cells if way in ("", key[0]) and window in ("", key[1])]

    def worth(key: Key) -> tuple[float, float, float]:
        return rate(cells[key], "became", "kept"), rate(cells[key], "changed", "kept"), -key[2]

    return max(among, key=worth)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95% score interval of a share (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    z, p = 1.96, hits / n
    middle, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - spread) / (1 + z * z / n), (middle + spread) / (1 + z * z / n)


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
        "| way | steps | dose | became | became, rest kept | of colours | of shapes | of backgrounds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    cells = cells_of(records)
    order = sorted(cells, key=lambda key: -rate(cells[key], "became", "kept"))
    for key in order:
        own = cells[key]
        parts = [[r for r in own if r["attribute"] == a] for a in ("color", "shape", "background")]
        shown = [share(own, "became"), share(own, "became", "kept")]
        shown += [f"{rate(part, 'became', 'kept'):.0%}" for part in parts]
        lines.append(f"| {key[0]} | {key[1]} | {key[2]:g} | {' | '.join(shown)} |")
    return "\n".join(lines)


def best_dose(records: Records) -> Records:
    """The records at one dose: of those at which the rest is kept often enough that with most attributes
    changed; where there is none, that with most changed and kept."""
    doses = [[r for r in records if r["dose"] == dose] for dose in sorted({r["dose"] for r in records})]

    def worth(own: Records) -> tuple[bool, float]:
        enough = rate(own, "kept") >= KEPT
        return enough, rate(own, "changed") if enough else rate(own, "changed", "kept")

    return max(doses, key=worth)


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


def verdict(records: Records, goal: str) -> str:
    """How many features pass at one of their strengths, and how many times each control does.

    Args:
        goal: what must come about: changed or became.
    """
    doses: dict[tuple[str, int, float], list[dict[str, Any]]] = {}
    for r in records:
        doses.setdefault((r["control"], r["feature"], r["dose"]), []).append(r)
    passing = {
        (control, feature)
        for (control, feature, _), own in doses.items()
        if rate(own, goal) >= ENOUGH and rate(own, "kept") >= KEPT
    }
    n = len({feature for _, feature, _ in doses})
    controls = dict.fromkeys(control for control, _, _ in doses)
    return ", ".join(f"{name} {sum(c == name for c, _ in passing)} of {n}" for name in controls)


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
        "changed": verdict(table, "changed"),
        "became": verdict(table, "became"),
    }
    text = TEMPLATE.read_text()
    for name, part in parts.items():
        text = text.replace("{{" + name + "}}", part)
    assert "{{" not in text, "a place of the template is not filled"
    draw_ways(out, full)
    draw_features(out, table)
    page = DOCS / "steering.md"
    write_text(page, between_marks(page.read_text(), text))
    print(f"{page}\nchanged: {parts['changed']}\nbecame: {parts['became']}")


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
    """For each selected feature its first picture at the feature's best strength, beside the controls."""
    best = by_control(records)
    rows = []
    for feature, own in shown_of(records).items():
        dose = best[feature, "feature"][0]["dose"]
        rows.append(steered_row(out, [record for record in own if record["dose"] == dose]))
    sheet = labelled_grid(
        rows,
        ["before", "its feature", "random direction", "random feature"],
        title="Selected features, turned up",
        subtitle="At the strength that did best; ✓ became, the rest kept",
        footer="The first picture of each feature, not a chosen one; the controls at the same norm.",
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
