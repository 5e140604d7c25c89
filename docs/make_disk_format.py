"""Write the tables of JSON keys in disk-format.md from the records; with --check, fail when they differ."""

from __future__ import annotations

import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from fluxscope.run import name_records, recipe_records, records, site_map_records, steering_records
from fluxscope.run.manifest import ManifestRow
from fluxscope.run.strict_json import Number, Record, parts, without_none
from fluxscope.run.truth_records import TruthReport

TARGET = Path(__file__).with_name("disk-format.md")
BEGIN, END = "<!-- made by docs/make_disk_format.py: do not edit -->\n", "<!-- end -->\n"

FILES: dict[str, type[Record]] = {
    "manifest.jsonl": ManifestRow,
    "run_log.json": records.RunLog,
    "feature_analysis_summary.json": records.FeatureAnalysis,
    "clip_meta.json": records.ClipMeta,
    "selected_features.json": records.Selection,
    "overlays/overlay_summary.json": records.OverlaySummary,
    "steering/steering_summary.json": steering_records.SteeringSummary,
    "decoder_stats.json": records.DecoderStats,
    "layer_comparison/comparison_summary.json": records.ComparisonSummary,
    "layer_comparison/comparison.json": records.Comparison,
    "best_demos/best_demo_candidates.json": steering_records.DemoCandidates,
    "best_demos/best_demo_ids.json": steering_records.DemoIds,
    "steering_grids/steering_grids_summary.json": steering_records.GridsSummary,
    "steps_profile.json": records.StepsProfile,
    "site_map.json": site_map_records.SiteMap,
    "names.json": name_records.Names,
    "NAME.recipe.json": recipe_records.Recipe,
    "truth.json": TruthReport,
}

NAMES: dict[Any, str] = {int: "int", Number: "number", str: "string", bool: "bool", Any: "any"}


def tables() -> str:
    """The tables of all files, as Markdown."""
    return "\n".join(table(name, kind) for name, kind in FILES.items())


def table(name: str, kind: type[Record]) -> str:
    head = f"### `{name}`\n\n| key | type | meaning |\n|---|---|---|\n"
    return head + "".join(f"| {key} | {type_} | {meaning} |\n" for key, type_, meaning in rows(kind))


def rows(kind: type[Record], before: str = "") -> Iterator[tuple[str, str, str]]:
    """Key, type and meaning of every field, and of those of the records in it."""
    for each in parts(kind):
        plain, null = without_none(each.kind)
        key = f"{before}*" if each.others else f"{before}{each.name}"
        held = typing.get_args(plain)[1] if each.others else plain
        question = "?" if (null and not each.ours) or each.null else ""
        yield key, f"{type_name(held)}{question}{' (optional)' if each.ours else ''}", each.meaning
        yield from inner(held, key)


def inner(kind: Any, key: str) -> Iterator[tuple[str, str, str]]:
    """The rows of the records that a type holds."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        yield from inner(without_none(arguments[0])[0], f"{key}[]")
    elif origin is dict:
        yield from inner(arguments[1], f"{key}.*")
    elif isinstance(kind, type) and issubclass(kind, Record):
        yield from rows(kind, f"{key}.")


def type_name(kind: Any) -> str:
    origin = typing.get_origin(kind)
    if origin is Literal:
        return "string"
    if origin in (list, dict):
        return "list" if origin is list else "object"
    return NAMES.get(kind, "object")


def main() -> None:
    page = TARGET.read_text()
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"{TARGET} has no place for the tables"
    made = f"{before}{BEGIN}\n{tables()}\n{END}{after}"
    if "--check" not in sys.argv:
        TARGET.write_text(made)
    elif page != made:
        sys.exit("docs/disk-format.md is stale\n  Run: make docs")


if __name__ == "__main__":
    main()
