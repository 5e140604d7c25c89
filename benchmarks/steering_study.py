"""Which way of steering works? A study on flux-shapes, judged by the oracle that reads its pictures back.

    python benchmarks/steering_study.py --out study_output --processes 2

Parts, in order: `prepare` makes a run and finds features and pictures; `screen` tries every way, time and
strength on a few pictures; `full` tries each way, as it did best, on others; `table` holds the selected
features whose top images share an attribute against two controls of equal norm, in the way that did best of
those that steer by a single feature; `page` writes the study into docs/steering.md, with its pictures.
Results are kept picture by picture: a study that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fluxscope.files import append_jsonl, read_jsonl, save_image
from fluxscope.models.edits import Change, Row, Scope
from fluxscope.models.sites import parse_site
from fluxscope.models.steering import Steerer
from fluxscope.progress import Reporter
from fluxscope.run.context import open_model_of
from fluxscope.run.steering import load_steerer, random_direction
from fluxscope.settings.steering import parse_denoise_steps
from steering_material import Material, Picture, Wish, config_of, outcome, prepare
from steering_report import STEERED, Records, best_cell, cells_of, of, write_page

WINDOWS = {"early": "0-5", "middle": "6-12", "late": "13-19", "all but early": "6-19", "all": "0-19"}
PARTS = ("prepare", "screen", "full", "table", "page")
FF, BLOCK, TEXT_FF = "double.{layer}.ff", "double.{layer}", "double.{layer}.ff_context"


@dataclass(frozen=True)
class Way:
    """A way of steering.

    Attributes:
        doses: strengths in units of each feature's 99th-percentile activation; for scale, factors.
        sites: where; the same change acts at each.
        everywhere: on all image tokens; otherwise where the attribute is: the object's box, or outside it.
        several: steer by the eight best detectors of the value instead of one feature.
        suppress: push the eight best detectors of the present value as far the other way.
        means: add what all features' mean codes where the wanted value is have over those where the present
            one is; the dose multiplies this difference.
    """

    name: str
    doses: tuple[float, ...]
    sites: tuple[str, ...] = (FF,)
    kind: str = "add"
    everywhere: bool = False
    several: bool = False
    suppress: bool = False
    means: bool = False


ADD = Way("add", (8.0, 16.0, 32.0, 64.0, 128.0))
WAYS = (
    ADD,
    Way("add, all tokens", (8.0, 32.0), everywhere=True),
    Way("add at the block", (8.0, 32.0, 128.0, 512.0), (BLOCK,)),
    Way("add, both streams", (8.0, 32.0), (FF, TEXT_FF)),
    Way("scale", (15.0, 60.0), kind="scale"),
    Way("clamp", (8.0, 32.0), kind="clamp"),
    Way("eight", (2.0, 6.0, 16.0), several=True),
    Way("swapped", (2.0, 6.0, 16.0), several=True, suppress=True),
    Way("mean codes", (1.0, 4.0, 16.0, 32.0), means=True),
    Way("eight at the block", (3.0, 8.0, 24.0), (BLOCK,), several=True),
    Way("swapped, block", (3.0, 8.0, 24.0), (BLOCK,), several=True, suppress=True),
)
BY_NAME = {way.name: way for way in WAYS}
SINGLE = tuple(way.name for way in WAYS if way.kind == "add" and not (way.several or way.means))
CONTROLS = ("feature", "random direction", "random live feature")


@dataclass(frozen=True)
class Cell:
    """A way, a window of steps and a dose."""

    way: Way
    window: str
    dose: float


@dataclass
class Study:
    """The results on disk, and the model to add to them.

    Attributes:
        share: this process does every n-th job from the i-th on.
    """

    out: Path
    sizes: argparse.Namespace
    share: tuple[int, int] = (0, 1)
    report: Reporter = field(default_factory=Reporter)

    @cached_property
    def material(self) -> Material:
        return Material.read(self.out / "material.json")

    @cached_property
    def steerer(self) -> Steerer:
        config = config_of(self.out)
        prompts = [picture.prompt for picture in self.material.pictures]
        steerer = load_steerer(config, open_model_of(config), config.site, prompts)
        steerer.max_rows = 32
        return steerer

    def results(self, part: str) -> list[dict[str, Any]]:
        """A part's records, those of all processes."""
        return [record for path in sorted(self.out.glob(f"{part}.*.jsonl")) for record in read_jsonl(path)]

    # --- what is to be done ---
    def jobs(self, part: str) -> list[tuple[Wish, Picture]]:
        """The features and pictures of a part. Those of `full` are not those of `screen`."""
        first, last = {
            "screen": (0, self.sizes.screen_pictures),
            "full": (self.sizes.screen_pictures, self.sizes.screen_pictures + self.sizes.full_pictures),
            "table": (0, self.sizes.table_pictures),
        }[part]
        wishes = self.material.wishes
        if part == "table":
            wishes = self.material.selected[: self.sizes.table_features]
        return [(wish, p) for wish in wishes for p in self.material.lacking(wish)[first:last]]

    def missing(self, part: str) -> list[tuple[Wish, Picture]]:
        done = {(record["feature"], record["seed"]) for record in self.results(part)}
        return [(wish, p) for wish, p in self.jobs(part) if (wish.feature, p.seed) not in done]

    def cells(self, part: str) -> list[Cell]:
        """All cells to screen them; then each way as it did best, adding in every window, and what did best
        for each attribute of the ways with a single feature."""
        if part == "screen":
            return [Cell(way, window, dose) for way in WAYS for window in WINDOWS for dose in way.doses]
        records = self.results("screen")
        screened = cells_of(records)
        chosen = [self.best(screened, way=way.name) for way in WAYS]
        chosen += [self.best(screened, way=ADD.name, window=window) for window in WINDOWS]
        chosen += self.best_singles(records).values()
        return list(dict.fromkeys(chosen))

    def best(self, records: dict[Any, Any], **where: str) -> Cell:
        way, window, dose = best_cell(records, **where)
        return Cell(BY_NAME[way], window, dose)

    def best_singles(self, records: Records) -> dict[str, Cell]:
        """For each attribute the cell in which adding a single feature did best."""
        own = [record for record in records if record["way"] in SINGLE]
        return {attribute: self.best(cells_of(of(own, attribute))) for attribute in STEERED}

    @cached_property
    def setups(self) -> dict[str, tuple[Way, str]]:
        """For each attribute the way and the window of the table."""
        best = self.best_singles(self.results("full"))
        return {attribute: (cell.way, cell.window) for attribute, cell in best.items()}

    # --- doing it ---
    def run(self, part: str) -> None:
        """This process's share of a part."""
        number, n = self.share
        mine = [job for i, job in enumerate(self.jobs(part)) if i % n == number]
        missing = self.missing(part)
        path = self.out / f"{part}.{number}.jsonl"
        trying = self.controls if part == "table" else self.ways(self.cells(part))
        with self.report.progress(part, len(mine), "pictures") as advance:
            for wish, picture in mine:
                if (wish, picture) in missing:
                    append_jsonl(path, list(self.tried(part, wish, picture, trying)))
                advance()

    def ways(self, cells: Sequence[Cell]) -> Trying:
        """Trying cells; those that act in the same place at the same time run in one batch."""
        groups: dict[tuple[Any, ...], list[Cell]] = {}
        for cell in cells:
            groups.setdefault((cell.way.sites, cell.way.everywhere, cell.window), []).append(cell)

        def trying(wish: Wish, picture: Picture) -> Iterator[Tried]:
            for group in groups.values():
                scopes = self.scopes(group[0].way, group[0].window, wish, picture)
                rows = [self.row(cell, wish, picture) for cell in group]
                made = self.steerer.steer(picture.prompt, picture.seed, rows, *scopes)
                for cell, pixels in zip(group, made.pictures.numpy(), strict=True):
                    yield {"way": cell.way.name, "window": cell.window, "dose": cell.dose}, pixels

        return trying

    def controls(self, wish: Wish, picture: Picture) -> Iterator[Tried]:
        """The feature, a random direction and a random live feature, at the same norms."""
        way, window = self.setups["shape" if wish.attribute == "size" else wish.attribute]
        others = [feature for feature in self.material.live if feature != wish.feature]
        other = int(np.random.default_rng(wish.feature).choice(others))
        direction = random_direction(self.steerer.sae.input_dim, wish.feature)
        unit = self.material.units[wish.feature]
        told, rows = [], []
        for dose in way.doses:
            own = (
                Change("add", dose * unit, wish.feature),
                Change("add", dose * unit, direction=direction),
                Change("add", dose * unit, other),
            )
            rows += [[change] for change in own]
            told += [{"control": name, "way": way.name, "window": window, "dose": dose} for name in CONTROLS]
        made = self.steerer.steer(
            picture.prompt, picture.seed, rows, *self.scopes(way, window, wish, picture)
        )
        yield from zip(told, made.pictures.numpy(), strict=True)

    def scopes(self, way: Way, window: str, wish: Wish, picture: Picture) -> list[Scope]:
        steps = parse_denoise_steps(WINDOWS[window], self.steerer.spec.steps)
        sites = [parse_site(site.format(layer=config_of(self.out).active_layer)) for site in way.sites]
        tokens = None if way.everywhere else picture.tokens_of(wish.attribute)
        return [Scope(s, steps, region=tokens if s.kind.stream == "image" else None) for s in sites]

    def row(self, cell: Cell, wish: Wish, picture: Picture) -> Row:
        """The changes that a way makes for a wish."""
        way, units, detectors = cell.way, self.material.units, self.material.detectors
        value = f"{wish.attribute}: {wish.value}"
        present_value = f"{wish.attribute}: {getattr(picture, wish.attribute)}"
        if way.means:
            means = self.material.means
            between = torch.tensor(means[value]) - torch.tensor(means[present_value])
            direction = self.steerer.sae.decoder.weight @ between
            return [Change("add", cell.dose * float(direction.norm()), direction=direction)]
        wanted = detectors[value] if way.several else [wish.feature]
        present = detectors[present_value] if way.suppress else []
        amounts = {f: -cell.dose * units[f] for f in present if f not in wanted}
        amounts |= {f: cell.dose * (1.0 if way.kind == "scale" else units[f]) for f in wanted}
        return [Change(way.kind, amount, feature) for feature, amount in amounts.items()]

    def tried(self, part: str, wish: Wish, picture: Picture, trying: Trying) -> Iterator[dict[str, Any]]:
        """The records of a job; the pictures of each feature's first one are kept, for the page."""
        shown = picture == next(p for w, p in self.jobs(part) if w == wish)
        about = {"feature": wish.feature, "attribute": wish.attribute, "value": wish.value}
        about |= {"prompt": picture.prompt, "seed": picture.seed}
        for number, (told, pixels) in enumerate(trying(wish, picture)):
            record = {**about, **told, **outcome(wish, picture, pixels), "picture": None}
            if shown and part != "screen":
                record["picture"] = f"pictures/{part}_{wish.feature}_{number}.png"
                save_image(self.out / record["picture"], Image.fromarray(pixels))
            yield record


Tried = tuple[dict[str, Any], np.ndarray]
"""What was done, and the picture that came of it."""
Trying = Callable[[Wish, Picture], Iterator[Tried]]


def main() -> None:
    given = parsed()
    if given.share:
        number, n = map(int, given.share.split("/"))
        Study(given.out, given, (number, n)).run(given.only)
        return
    study = Study(given.out, given)
    for part in (given.only,) if given.only else PARTS:
        if part == "prepare":
            material = prepare(given.out, given.wishes)
            print(f"{len(material.pictures)} pictures, {len(material.selected)} selected features share")
        elif part == "page":
            write_page(given.out, study.material, {p: study.results(p) for p in ("screen", "full", "table")})
        elif study.missing(part):
            spread(part, given.processes)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("study_output"))
    parser.add_argument("--only", choices=PARTS, help="this part alone")
    parser.add_argument("--processes", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--share", help=argparse.SUPPRESS)
    parser.add_argument("--wishes", type=int, default=2, help="values of each attribute, screen and full")
    parser.add_argument("--screen-pictures", type=int, default=3, help="pictures of each value")
    parser.add_argument("--full-pictures", type=int, default=10)
    parser.add_argument("--table-features", type=int, default=24)
    parser.add_argument("--table-pictures", type=int, default=20)
    return parser.parse_args()


def spread(part: str, n: int) -> None:
    """Do a part in n processes; one thread each, as threads of two processes would hold each other up."""
    command = [sys.executable, __file__, *sys.argv[1:], "--only", part]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([*command, "--share", f"{number}/{n}"], env=environment) for number in range(n)
    ]
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit(f"a process of part {part} failed: run the same command again to go on")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
