"""What `fluxscope site-map` makes: its plan, batch by batch, and what every copy did to its picture.

A batch holds a donor and pictures of one prompt with the donor's seed, each of which is given the donor's
activations at the sites and steps of one cell. No activation is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from fluxscope.errors import RecordError
from fluxscope.files import save_image
from fluxscope.measures.clip import embed_images, open_picture
from fluxscope.measures.distance import Distance, Picture
from fluxscope.measures.donor_scores import are_one, closed, inside_and_outside
from fluxscope.models.cells import WHOLE, Cell
from fluxscope.models.denoising import Denoising
from fluxscope.models.donors import Donor
from fluxscope.models.model import Model
from fluxscope.models.prompts import Prompts
from fluxscope.models.spec import PictureSpec
from fluxscope.run.freshness import Work
from fluxscope.run.rundir import RunDir
from fluxscope.run.site_map_records import Control, Outcome, PromptPair
from fluxscope.run.strict_json import Place, plain
from fluxscope.shapes import oracle, world
from fluxscope.shapes.pairs import Wish, fulfilled, wish_of
from fluxscope.shapes.shipped import FLUX_SHAPES, resolve

ITSELF = "donor"
"""The name under which the donor's own picture is judged, in place of a cell's."""


@dataclass(frozen=True)
class Row:
    """One picture of a batch: what is copied into it, and from where."""

    cell: Cell
    control: Control


@dataclass(frozen=True)
class Batch:
    """Pictures that are made together.

    Attributes:
        pair: number of the pair of prompts.
        number: among the pair's batches; the first makes the pictures of source and donor too.
        donor: the prompt of the donor's row.
    """

    pair: int
    number: int
    donor: str
    rows: tuple[Row, ...]

    @property
    def size(self) -> int:
        return len(self.rows) + (2 if self.number == 0 else 1)


@dataclass(frozen=True)
class Plan:
    """All that a site map takes.

    Attributes:
        at_once: rows of a batch at most, the donor's included.
    """

    pairs: tuple[PromptPair, ...]
    cells: tuple[Cell, ...]
    denoising: Denoising
    at_once: int

    def batches(self) -> list[Batch]:
        return [batch for pair in range(len(self.pairs)) for batch in self._batches_of(pair)]

    def _batches_of(self, pair: int) -> Iterator[Batch]:
        rows = [Row(cell, "donor") for cell in self.cells]
        rows += [Row(cell, "noise") for cell in self.cells if is_held_against_controls(cell)]
        parts = list(split_evenly(rows, self.at_once - 1, self.at_once - 2))
        for number, part in enumerate(parts):
            yield Batch(pair, number, self.pairs[pair].target, part)
        stranger = self.stranger(pair)
        others = [Row(cell, "unrelated") for cell in self.cells if is_held_against_controls(cell)]
        if stranger is not None:
            for number, part in enumerate(split_evenly(others, self.at_once - 1), start=len(parts)):
                yield Batch(pair, number, stranger, part)

    def stranger(self, pair: int) -> str | None:
        """The prompt of an unrelated donor: that of another pair; None where there is none."""
        n, own = len(self.pairs), self.pairs[pair]
        for step in range(2, n + 2):
            target = self.pairs[(pair + step) % n].target
            if target not in (own.source, own.target):
                return target
        return None

    @property
    def pictures(self) -> int:
        """Pictures that are denoised, donors included."""
        return sum(batch.size for batch in self.batches())

    @property
    def calls(self) -> int:
        """Runs of the transformer."""
        return len(self.batches()) * self.denoising.calls


def is_held_against_controls(cell: Cell) -> bool:
    """Controls stand beside copies over all blocks and steps: where the least disturbs most."""
    return cell.window == WHOLE and cell.whole


def split_evenly(rows: Sequence[Row], most: int, most_first: int | None = None) -> Iterator[tuple[Row, ...]]:
    """The rows in as few parts as can be, of nearly equal sizes.

    Args:
        most_first: of the first part, which has to leave room.
    """
    lacking = most - (most if most_first is None else most_first)
    n = -(-(len(rows) + lacking) // most)
    ends = [max((i * (len(rows) + lacking)) // n - lacking, 0) for i in range(1, n + 1)]
    for first, last in zip([0, *ends], ends, strict=False):
        yield tuple(rows[first:last])


def wishes_of(pairs: Sequence[PromptPair], model_id: str, spec: PictureSpec) -> list[Wish | None]:
    """What the oracle is to look for in each pair's pictures; None where it cannot tell."""
    knows = resolve(model_id) == resolve(FLUX_SHAPES)
    knows = knows and (spec.height, spec.width) == (world.RESOLUTION, world.RESOLUTION)
    return [wish_of(pair.source, pair.target) if knows else None for pair in pairs]


@dataclass
class Bench:
    """All that is needed to make batches and to judge them.

    Attributes:
        clip: a CLIP model and its image processor.
        base_seed: of the first pair; each has a seed of its own.
    """

    model: Model
    prompts: Prompts
    spec: PictureSpec
    plan: Plan
    wishes: list[Wish | None]
    distance: Distance
    clip: tuple[Any, Any]
    base_seed: int
    files: RunDir

    def make(self, batch: Batch) -> list[Outcome]:
        """Make a batch and judge it; the pair's own pictures are written by its first one."""
        source, sigmas = self.plan.pairs[batch.pair].source, self.plan.denoising.sigmas
        before = batch.size - len(batch.rows)
        seed = self.base_seed + batch.pair
        hooks = [
            Donor(
                row.cell.sites,
                row.cell.window.steps(sigmas),
                {before + number: 0},
                noise=seed if row.control == "noise" else None,
            )
            for number, row in enumerate(batch.rows)
        ]
        embedded = [self.prompts[batch.donor], *[self.prompts[source]] * (batch.size - 1)]
        latents = self.model.sample(embedded, [seed] * batch.size, *hooks, spec=self.spec)
        names = [(row.cell.name, row.control) for row in batch.rows]
        own: list[tuple[str, Control]] = [(ITSELF, "donor")]
        if batch.number:
            pictures = list(self.model.decode(latents[before:], self.spec).numpy())
            return self.judge(batch.pair, names, pictures)
        donor, plain_source, *pictures = self.model.decode(latents, self.spec).numpy()
        save_image(self.files.site_map_picture(batch.pair, "source"), Image.fromarray(plain_source))
        save_image(self.files.site_map_picture(batch.pair, "donor"), Image.fromarray(donor))
        return self.judge(batch.pair, own + names, [donor, *pictures])

    def judge(
        self, pair: int, names: Sequence[tuple[str, Control]], pictures: Sequence[Picture]
    ) -> list[Outcome]:
        """What became of each picture, beside the pair's source and donor."""
        source, donor = (
            np.asarray(open_picture(self.files.site_map_picture(pair, which)))
            for which in ("source", "donor")
        )
        far = self.distance([source, *pictures], [donor])
        off = self._clip_distances([source, *pictures], donor)
        differ = not are_one(source, donor)
        found = []
        verdicts = self._verdicts(pair, source, pictures)
        for i, ((cell, control), picture, verdict) in enumerate(
            zip(names, pictures, verdicts, strict=True), 1
        ):
            inside, outside = inside_and_outside(picture, source, donor)
            found.append(
                Outcome(
                    cell=cell,
                    control=control,
                    became=verdict and verdict[0],
                    clean=verdict and verdict[1],
                    closed=closed(float(far[i]), float(far[0])) if differ else None,
                    clip=closed(float(off[i]), float(off[0])) if differ else None,
                    inside=inside,
                    outside=outside,
                )
            )
        return found

    def _verdicts(
        self, pair: int, source: Picture, pictures: Sequence[Picture]
    ) -> list[tuple[bool, bool] | None]:
        """What the oracle says of each picture: became, and clean; None where it cannot tell.

        A wish that the source fulfils already, by a mistake of the model's, cannot come about any more.
        """
        wish = self.wishes[pair]
        before = oracle.read(source) if wish else None
        if wish is None or before is None or fulfilled(wish, before, before)[0]:
            return [None] * len(pictures)
        return [fulfilled(wish, before, oracle.read(picture)) for picture in pictures]

    def _clip_distances(self, pictures: Sequence[Picture], donor: Picture) -> np.ndarray:
        """1 - the cosine of CLIP's embeddings."""
        rows = embed_images(*self.clip, [Image.fromarray(picture) for picture in (donor, *pictures)])
        distances: np.ndarray = 1 - rows[1:] @ rows[0]
        return distances


def part_of(work: Work, plan: Plan, batch: Batch) -> Work:
    """A batch as a part of the whole work."""
    pair = plan.pairs[batch.pair]
    own = {
        "pairs": [pair.source, pair.target, batch.donor],
        "cells": [f"{row.cell.name} {row.control}" for row in batch.rows],
        "batch": [batch.pair, batch.number],
    }
    return work.part(f"pair {batch.pair} batch {batch.number}", work.but(**own))


def outcomes_in(part: Work) -> list[Outcome] | None:
    """What the log keeps of a batch; None where it is to be made."""
    if not part.is_fresh or part.record is None:
        return None
    place = Place(part.log.path, key=part.name)
    try:
        result = part.record.result
        return [Outcome.from_json(value, place.at(i)) for i, value in enumerate(result)]
    except (RecordError, TypeError):
        return None


def make_part(part: Work, bench: Bench, batch: Batch) -> list[Outcome]:
    with part.doing():
        outcomes = bench.make(batch)
        part.result = plain(outcomes)
    return outcomes
