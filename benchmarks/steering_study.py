"""Which way of steering works? A study on flux-shapes, judged by the oracle that reads its pictures back.

    python benchmarks/steering_study.py all --out study_output     # both parts, then the page
    python benchmarks/steering_study.py methods | table | page

`methods` compares ways, places and times on features whose attribute is known. `table` holds every selected
feature whose top images share an attribute against two controls of equal norm. `page` writes docs/steering.md
and its pictures from the two results. Stopped parts go on where they were.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from fluxscope.config import Config, make_config
from fluxscope.draw.grid import GridRow, labelled_grid
from fluxscope.files import append_jsonl, load_npy, read_json, read_jsonl, save_image, write_text
from fluxscope.measures.clip import open_picture
from fluxscope.measures.compare import sparse_S
from fluxscope.measures.selection import rank_images
from fluxscope.measures.truth import ConceptScores, concept_matrix, concept_scores
from fluxscope.models.edits import Change, Row, Scope, parse_steps
from fluxscope.models.sites import parse_site
from fluxscope.models.steering import Steerer
from fluxscope.progress import Reporter
from fluxscope.records import load_manifest
from fluxscope.rundir import RunDir
from fluxscope.shapes import oracle, world
from fluxscope.steps.pipeline import parse_steps as pipeline_steps
from fluxscope.steps.pipeline import run_pipeline
from fluxscope.steps.steering import load_steerer, random_direction, strength_units
from fluxscope.store import CodeStore

PAGE = Path(__file__).resolve().parent.parent / "docs" / "steering.md"
TEMPLATE = Path(__file__).with_name("steering_page.md")
WINDOWS = {"early": "0-5", "middle": "6-12", "late": "13-19", "all": "0-19"}
DOSES = {
    "add": (4.0, 12.0),
    "scale": (40.0,),
    "clamp": (4.0, 12.0),
    "several": (2.0, 6.0),
    "several, present ones suppressed": (2.0, 6.0),
    "add at the block": (2.0, 6.0),
    "add, both streams": (4.0, 12.0),
}
"""Strengths in units of the feature's 99th-percentile activation, and factors (scale)."""

SEVERAL = 8
"""How many features are amplified, and how many suppressed, where several are steered at once."""

TABLE_DOSES = (4.0, 8.0, 12.0)

ATTRIBUTES = ("shape", "color", "size")
SHARED = 0.8
"""A feature stands for a concept when so many of its ten top images show it ..."""
LIFT = 0.7
"""... and so much of the room above the concept's base rate is filled."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("methods", "table", "page", "all"))
    parser.add_argument("--out", type=Path, default=Path("study_output"))
    parser.add_argument("--features", type=int, default=4, help="features of the methods part")
    parser.add_argument("--prompts", type=int, default=8, help="prompts for each of them")
    parser.add_argument("--table-features", type=int, default=10)
    parser.add_argument("--table-prompts", type=int, default=20)
    parser.add_argument("--table-steps", default="0-19", help="steps that the table steers")
    given = parser.parse_args()
    study = Study(given.out)
    if given.part in ("methods", "all"):
        study.methods(given.features, given.prompts)
    if given.part in ("table", "all"):
        study.table(given.table_features, given.table_prompts, given.table_steps)
    if given.part in ("page", "all"):
        write_page(study)


@dataclass(frozen=True)
class Wish:
    """A feature and the attribute that it should bring about."""

    feature: int
    attribute: str
    value: str

    @property
    def words(self) -> str:
        return f"feature {self.feature}: {self.attribute} {self.value}"


@dataclass
class Study:
    """A run on many captions, its features' concepts, and the model to steer."""

    out: Path

    @cached_property
    def config(self) -> Config:
        prompts = self.out / "prompts.txt"
        if not prompts.is_file():
            rng = np.random.default_rng(5)
            captions = [world.caption(world.sample_scene(rng)) for _ in range(160)]
            write_text(prompts, "\n".join(dict.fromkeys(captions)) + "\n")
        return make_config(
            out_dir=str(self.out / "run"),
            prompts_path=str(prompts),
            reps_per_prompt=1,
            top_m_per_feature=10,
            top_features=20,
            top_examples_per_feature=1,
            compare_layers=False,
        )

    @cached_property
    def files(self) -> RunDir:
        run_pipeline(self.config, Reporter(), pipeline_steps("1-4"))
        return RunDir.of(self.config)

    @cached_property
    def scores(self) -> ConceptScores:
        """Every feature against every shape, colour, size and background that the pictures show."""
        records, _ = load_manifest(self.files.manifest, self.files.root)
        seen = [oracle.read(np.asarray(open_picture(row["image_path"]))) for row in records]
        attributes = [
            {name: [getattr(o, name) for o in one.objects] for name in ATTRIBUTES}
            | {"background": [one.background]}
            for one in seen
        ]
        concepts, present = concept_matrix(attributes)
        s = load_npy(self.files.s_matrix)
        ranked = rank_images(s, np.array([row["prompt_idx"] for row in records]), 1e-4, 10)
        return concept_scores(sparse_S(s), ranked.image, concepts, present)

    @cached_property
    def steerer(self) -> Steerer:
        rng = np.random.default_rng(11)
        self.scenes = [world.sample_scene(rng, n_objects=1) for _ in range(120)]
        captions = list(dict.fromkeys(world.caption(scene) for scene in self.scenes))
        steerer, _ = load_steerer(self.config, self.config.active_layer, captions)
        steerer.max_rows = 32
        return steerer

    @cached_property
    def units(self) -> dict[int, float]:
        store = CodeStore(
            self.files.codes, self.config.site_of(self.files.layer), self.config.target_step_index
        )
        return strength_units(self.config, store, range(store.n_features))

    def scope(self, window: str, site: str = "double.{layer}.ff") -> Scope:
        steps = parse_steps(window, self.config.num_inference_steps)
        return Scope(parse_site(site.format(layer=self.files.layer)), steps)

    def prompts_without(self, wish: Wish, count: int) -> list[tuple[str, int]]:
        """Captions of one object that lacks the wished attribute, each with a seed of its own."""
        _ = self.steerer
        others = [s for s in self.scenes if value_of(s, wish.attribute) != wish.value]
        captions = list(dict.fromkeys(world.caption(s) for s in others))
        return [(caption, 1000 + number) for number, caption in enumerate(captions[:count])]

    # --- which features ---
    def best_feature(self, attribute: str, value: str) -> int:
        column = self.scores.concepts.index(f"{attribute}: {value}")
        return int((self.scores.f1 * (self.scores.top_share >= SHARED))[:, column].argmax())

    def wishes(self, count: int) -> list[Wish]:
        """Colours and shapes in turn, each with the feature that detects it best, the surest first."""
        found = []
        for attribute, values in (("color", world.COLORS), ("shape", world.SHAPES)):
            surest = []
            for value in values:
                if f"{attribute}: {value}" not in self.scores.concepts:
                    continue
                feature = self.best_feature(attribute, value)
                column = self.scores.concepts.index(f"{attribute}: {value}")
                if self.scores.top_share[feature, column] >= SHARED:
                    surest.append((float(self.scores.f1[feature, column]), Wish(feature, attribute, value)))
            found.append([wish for _, wish in sorted(surest, key=lambda pair: -pair[0])])
        return [wish for pair in zip(*found, strict=False) for wish in pair][:count]

    def selected_wishes(self, count: int) -> list[Wish]:
        """The selected features whose top images share an attribute, in the selection's order."""
        wishes = []
        lift = self.scores.lift()
        for record in read_json(self.files.selected_features)["features"]:
            feature = record["feature_id"]
            concept = int(lift[feature].argmax())
            shared = self.scores.top_share[feature, concept] >= SHARED and lift[feature, concept] >= LIFT
            if shared:
                attribute, value = self.scores.concepts[concept].split(": ")
                wishes.append(Wish(feature, attribute, value))
        return wishes[:count]

    # --- part one ---
    def methods(self, n_features: int, n_prompts: int) -> None:
        path = self.out / "methods.jsonl"
        done = {(r["feature"], r["prompt"]) for r in (read_jsonl(path) if path.is_file() else [])}
        wishes = self.wishes(n_features)
        with Reporter().progress("methods", n_features * n_prompts, "prompts") as advance:
            for wish in wishes:
                for prompt, seed in self.prompts_without(wish, n_prompts):
                    if (wish.feature, prompt) not in done:
                        append_jsonl(path, list(self.try_methods(wish, prompt, seed)))
                    advance()

    def try_methods(self, wish: Wish, prompt: str, seed: int) -> Iterable[dict[str, Any]]:
        for window, steps in WINDOWS.items():
            ff = self.scope(steps)
            groups: list[tuple[dict[tuple[str, float], Row], tuple[Scope, ...]]] = [
                (self.rows_at_ff(wish, prompt), (ff,)),
                (
                    {("add at the block", d): self.added(wish, d) for d in DOSES["add at the block"]},
                    (self.scope(steps, "double.{layer}"),),
                ),
                (
                    {("add, both streams", d): self.added(wish, d) for d in DOSES["add"]},
                    (ff, self.scope(steps, "double.{layer}.ff_context")),
                ),
            ]
            for rows, scopes in groups:
                made = self.steerer.steer(prompt, seed, list(rows.values()), *scopes)
                for (method, dose), picture in zip(rows, made.pictures.numpy(), strict=True):
                    told = {"method": method, "window": window, "dose": dose}
                    yield self.record(wish, prompt, seed, made.baseline.numpy(), picture) | told

    def rows_at_ff(self, wish: Wish, prompt: str) -> dict[tuple[str, float], Row]:
        unit, f = self.units[wish.feature], wish.feature
        rows: dict[tuple[str, float], Row] = {}
        rows |= {("add", d): self.added(wish, d) for d in DOSES["add"]}
        rows |= {("scale", d): [Change("scale", d, f)] for d in DOSES["scale"]}
        rows |= {("clamp", d): [Change("clamp", d * unit, f)] for d in DOSES["clamp"]}
        wanted, present = self.detectors(wish, wish.value), self.present_features(wish, prompt)
        for d in DOSES["several"]:
            amplified = [Change("add", d * self.units[other], other) for other in wanted]
            suppressed = [
                Change("add", -d * self.units[other], other) for other in present if other not in wanted
            ]
            rows["several", d] = amplified
            rows["several, present ones suppressed", d] = [*amplified, *suppressed]
        return rows

    def added(self, wish: Wish, dose: float) -> Row:
        return [Change("add", dose * self.units[wish.feature], wish.feature)]

    def present_features(self, wish: Wish, prompt: str) -> list[int]:
        """The features that best detect the attribute which the prompt's object has now."""
        return self.detectors(wish, value_of(world.parse_caption(prompt), wish.attribute))

    def detectors(self, wish: Wish, value: str | None) -> list[int]:
        """The features that best detect a value: few false alarms, pure top images."""
        concept = f"{wish.attribute}: {value}"
        if concept not in self.scores.concepts:
            return []
        column = self.scores.concepts.index(concept)
        worth = self.scores.lift()[:, column] * self.scores.precision[:, column]
        return [int(f) for f in np.argsort(-worth, kind="stable")[:SEVERAL]]

    def record(
        self,
        wish: Wish,
        prompt: str,
        seed: int,
        baseline: UInt8[np.ndarray, "h w 3"],
        picture: UInt8[np.ndarray, "h w 3"],
    ) -> dict[str, Any]:
        """What the oracle reads in a picture: whether the wish came true, and whether the rest was kept.

        To be kept is the background that was asked for; where the wish is a background, the object.
        """
        before, after = oracle.read(baseline), oracle.read(picture)
        wanted = world.parse_caption(prompt)
        things = [name for name in ("shape", "color") if name != wish.attribute]
        same = bool(before.objects and after.objects) and all(
            getattr(after.objects[0], name) == getattr(before.objects[0], name) for name in things
        )
        background = after.background == wanted.background
        return {
            **{"feature": wish.feature, "attribute": wish.attribute, "value": wish.value},
            **{"prompt": prompt, "seed": seed},
            "became": wish.value in values_in(after, wish.attribute),
            "was": wish.value in values_in(before, wish.attribute),
            "changed": values_in(after, wish.attribute)[:1] != values_in(before, wish.attribute)[:1],
            "kept": same if wish.attribute == "background" else background,
            "one_object": len(after.objects) == 1,
        }

    # --- part two ---
    def table(self, n_features: int, n_prompts: int, steps: str) -> None:
        path = self.out / "table.jsonl"
        done = {(r["feature"], r["prompt"]) for r in (read_jsonl(path) if path.is_file() else [])}
        wishes = self.selected_wishes(n_features)
        with Reporter().progress("table", len(wishes) * n_prompts, "prompts") as advance:
            for wish in wishes:
                for prompt, seed in self.prompts_without(wish, n_prompts):
                    if (wish.feature, prompt) not in done:
                        append_jsonl(path, self.try_controls(wish, prompt, seed, steps))
                    advance()

    def try_controls(self, wish: Wish, prompt: str, seed: int, steps: str) -> list[dict[str, Any]]:
        """The feature, a random direction and a random live feature, at the same norms."""
        unit = self.units[wish.feature]
        live = np.flatnonzero(load_npy(self.files.s_matrix).max(0) > 0)
        other = int(np.random.default_rng(wish.feature).choice(live[live != wish.feature]))
        direction = random_direction(self.steerer.sae.input_dim, wish.feature)
        rows: dict[tuple[str, float], Row] = {}
        for dose in TABLE_DOSES:
            rows["feature", dose] = [Change("add", dose * unit, wish.feature)]
            rows["random direction", dose] = [Change("add", dose * unit, direction=direction)]
            rows["random live feature", dose] = [Change("add", dose * unit, other)]
        made = self.steerer.steer(prompt, seed, list(rows.values()), self.scope(steps))
        return [
            self.record(wish, prompt, seed, made.baseline.numpy(), picture)
            | {"method": method, "dose": dose, "window": steps}
            for (method, dose), picture in zip(rows, made.pictures.numpy(), strict=True)
        ]


def value_of(scene: world.Scene | world.Description, attribute: str) -> str | None:
    return scene.background if attribute == "background" else getattr(scene.objects[0], attribute)


def values_in(seen: oracle.Reading, attribute: str) -> list[str]:
    """The attribute's values in a picture, the largest object's first."""
    if attribute == "background":
        return [seen.background]
    return [getattr(thing, attribute) for thing in seen.objects]


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95% score interval of a share (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    z, p = 1.96, hits / n
    middle, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - spread) / (1 + z * z / n), (middle + spread) / (1 + z * z / n)


def share(records: Sequence[dict[str, Any]], *keys: str) -> str:
    """The share of records for which all keys hold, with its interval."""
    hits = sum(all(record[key] for key in keys) for record in records)
    low, high = wilson(hits, len(records))
    return f"{hits / max(len(records), 1):.0%} ({low:.0%}-{high:.0%})"


def rate(records: Sequence[dict[str, Any]], *keys: str) -> float:
    return sum(all(record[key] for key in keys) for record in records) / max(len(records), 1)


def best_dose(records: list[dict[str, Any]], *keys: str) -> tuple[float, list[dict[str, Any]]]:
    """The dose at which most records have all keys, and its records."""
    doses = sorted({record["dose"] for record in records})
    by_dose = {dose: [r for r in records if r["dose"] == dose] for dose in doses}
    best = max(doses, key=lambda dose: rate(by_dose[dose], *keys))
    return best, by_dose[best]


def methods_table(records: list[dict[str, Any]]) -> list[str]:
    """One row a method, one column a window, at the best dose of each."""
    fresh = [record for record in records if not record["was"]]
    lines = ["| way | " + " | ".join(f"{w}, steps {s}" for w, s in WINDOWS.items()) + " |", "|---" * 5 + "|"]
    for method in dict.fromkeys(record["method"] for record in fresh):
        cells = []
        for window in WINDOWS:
            own = [r for r in fresh if r["method"] == method and r["window"] == window]
            dose, at_dose = best_dose(own, "became", "kept")
            cells.append(f"{share(at_dose, 'became', 'kept')} at {dose:g}")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


def controls_table(records: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| feature | way | best dose | attribute changed | became the feature's | rest kept |",
        "|---|---|---|---|---|---|",
    ]
    for feature in dict.fromkeys(record["feature"] for record in records):
        own = [r for r in records if r["feature"] == feature and not r["was"]]
        for method in dict.fromkeys(record["method"] for record in own):
            dose, at_dose = best_dose([r for r in own if r["method"] == method], "changed", "kept")
            name = f"{feature} ({own[0]['attribute']} {own[0]['value']})" if method == "feature" else ""
            cells = (share(at_dose, key) for key in ("changed", "became", "kept"))
            lines.append(f"| {name} | {method} | {dose:g} | {' | '.join(cells)} |")
    return lines


def verdict(records: list[dict[str, Any]]) -> str:
    """How many features pass: some dose changes the attribute in 60% while the background holds in 80%."""
    features = list(dict.fromkeys(record["feature"] for record in records))

    def passes(feature: int, method: str) -> bool:
        own = [r for r in records if (r["feature"], r["method"]) == (feature, method) and not r["was"]]
        doses = {r["dose"] for r in own}
        at = [[r for r in own if r["dose"] == dose] for dose in doses]
        return any(rate(part, "changed") >= 0.6 and rate(part, "kept") >= 0.8 for part in at)

    counts = {
        method: sum(passes(feature, method) for feature in features)
        for method in ("feature", "random direction", "random live feature")
    }
    return ", ".join(f"{method}: {count} of {len(features)}" for method, count in counts.items())


def write_page(study: Study) -> None:
    """Write docs/steering.md from the results that are there."""
    methods = read_jsonl(study.out / "methods.jsonl")
    table = read_jsonl(study.out / "table.jsonl")
    pairs = {(record["feature"], record["prompt"]) for record in methods}
    features = {feature for feature, _ in pairs}
    tabled = {record["feature"] for record in table}
    parts = {
        "sizes": f"{len(features)} features, {len(pairs)} (feature, prompt, seed) triples in all.",
        "methods": "\n".join(methods_table(methods)),
        "table": "\n".join(controls_table(table)),
        "table_prompts": str(max(len({r["prompt"] for r in table if r["feature"] == f}) for f in tabled)),
        "table_steps": table[0]["window"],
        "verdict": verdict(table),
    }
    text = TEMPLATE.read_text()
    for name, part in parts.items():
        text = text.replace("{{" + name + "}}", part)
    draw_examples(study, methods)
    write_text(PAGE, text)
    print(f"{PAGE}\n{verdict(table)}")


def draw_examples(study: Study, methods: list[dict[str, Any]]) -> None:
    """One prompt of each feature under every way of steering, early, each at its best dose."""
    doses = {
        method: best_dose([r for r in methods if r["method"] == method and r["window"] == "early"], "became")[
            0
        ]
        for method in dict.fromkeys(record["method"] for record in methods)
    }
    rows = []
    for feature in dict.fromkeys(record["feature"] for record in methods):
        own = [r for r in methods if r["feature"] == feature and not r["was"]]
        prompt, seed = own[0]["prompt"], own[0]["seed"]
        wish = Wish(feature, own[0]["attribute"], own[0]["value"])
        pictures, notes = pictures_of(study, wish, prompt, seed, doses)
        rows.append(GridRow(pictures, f"{prompt} -> {wish.value}", notes))
    sheet = labelled_grid(
        rows,
        ["baseline", *doses],
        title="Seven ways to steer",
        subtitle=f"flux-shapes, block {study.files.layer}, steps {WINDOWS['early']}",
        footer="Strengths in units of the feature's 99th-percentile activation; scale: factor.",
        baseline=0,
        tile=128,
    )
    save_image(PAGE.with_name("steering_methods.png"), sheet)


def pictures_of(
    study: Study, wish: Wish, prompt: str, seed: int, doses: dict[str, float]
) -> tuple[list[np.ndarray], list[str]]:
    early = WINDOWS["early"]
    rows = study.rows_at_ff(wish, prompt)
    pictures: list[np.ndarray] = []
    for method, dose in doses.items():
        scopes = [study.scope(early)]
        if method == "add at the block":
            scopes = [study.scope(early, "double.{layer}")]
        if method == "add, both streams":
            scopes.append(study.scope(early, "double.{layer}.ff_context"))
        row = rows.get((method, dose)) or study.added(wish, dose)
        made = study.steerer.steer(prompt, seed, [row], *scopes)
        pictures = pictures or [made.baseline.numpy()]
        pictures.append(made.pictures[0].numpy())
    return pictures, ["unchanged", *(f"{dose:g}" for dose in doses.values())]


if __name__ == "__main__":
    with torch.inference_mode():
        main()
