"""`fluxscope site-map`: where does this model decide what? A donor's activations are copied in everywhere.

The work is done in batches, each a part of it in the log of the folder: killed anywhere it goes on there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxscope.errors import ConfigError
from fluxscope.files import save_image
from fluxscope.models.cells import Cell, cells_named, cells_of, kinds_named, usual_cells, windows_named
from fluxscope.models.denoising import Denoising, denoising_of
from fluxscope.run.context import Context, clip_of, picture_spec
from fluxscope.run.freshness import Work
from fluxscope.run.prompt_pairs import pairs_for
from fluxscope.run.site_map import Bench, Plan, make_part, outcomes_in, part_of, wishes_of
from fluxscope.run.site_map_picture import picture_of
from fluxscope.run.site_map_records import Outcome, SiteMap
from fluxscope.run.site_map_scores import cell_scores, donors_score, in_words, measure_of, places
from fluxscope.run.steering import load_distance
from fluxscope.run.step_log import StepLog
from fluxscope.shapes.pairs import Wish

SETTINGS_OF_PICTURES = (
    *("model_id", "dtype", "height", "width", "num_inference_steps", "guidance_scale"),
    *("max_sequence_length", "base_seed", "clip_model_id"),
)
"""Settings that the map depends on."""


@dataclass(frozen=True)
class Request:
    """What is asked for on the command line; empty texts leave the usual ones."""

    pairs: Path | None = None
    pair_count: int | None = None
    kinds: str = ""
    blocks: str = ""
    windows: str = ""
    cells: str = ""


def site_map(context: Context, request: Request, cost_only: bool = False) -> str:
    """Make the map, or say what it costs; returns a line for the user.

    Raises:
        ConfigError: pairs that don't differ, kinds, blocks or windows that there are not.
    """
    config, files, report = context.config, context.files, context.report
    plan = plan_of(context, request)
    report.say(cost_in_words(plan))
    if cost_only:
        return "Nothing was made."
    wishes = wishes_of(plan.pairs, config.model_id, picture_spec(config))
    if None in wishes and any(wishes):
        report.say(f"warning: {wishes.count(None)} pairs differ in more than one attribute: not judged")
    distance = load_distance(config)
    work = work_of(context, plan, distance.name)
    if not work.is_fresh:
        with work.doing():
            outcomes = outcomes_of(context, plan, wishes, work, distance)
            write(context, plan, wishes, outcomes, work.key)
            work.products += [files.site_map, files.site_map.with_suffix(".png")]
    found = SiteMap.read(files.site_map)
    return f"{found.words} {files.site_map.with_suffix('.png')}"


def plan_of(context: Context, request: Request) -> Plan:
    """All that is to be made, known before any weights are loaded."""
    config, model = context.config, context.model
    pairs = pairs_for(config.model_id, request.pairs, request.pair_count)
    denoising = denoising_of(model, picture_spec(config))
    cells = chosen_cells(context, request, denoising)
    return Plan(tuple(pairs), tuple(cells), denoising, max(config.batch_size or 1, 2))


def chosen_cells(context: Context, request: Request, denoising: Denoising) -> list[Cell]:
    """The usual cells where no flag says more; those named; or every kind by all blocks by all windows."""
    spec, sigmas = context.model.spec, denoising.sigmas
    if request.cells:
        if request.kinds or request.blocks or request.windows:
            raise ConfigError(
                "the cells are named twice", "Give --cells alone, or --kinds, --blocks, --windows."
            )
        return cells_named(request.cells, spec, sigmas)
    kinds = kinds_named(request.kinds)
    if request.blocks or request.windows:
        windows = windows_named(request.windows or "whole", sigmas)
        return cells_of(spec, kinds, request.blocks or "each,groups,all", windows)
    usual = [cell for cell in usual_cells(spec) if cell.kind in kinds]
    return [cell for cell in usual if cell.window.steps(sigmas)]


def cost_in_words(plan: Plan) -> str:
    rows = (row for batch in plan.batches() for row in batch.rows)
    controls = " with controls" if any(row.control != "donor" for row in rows) else ""
    return (
        f"{len(plan.cells)} cells{controls} x {len(plan.pairs)} pairs of prompts: {plan.pictures} pictures "
        f"of {len(plan.denoising.sigmas)} steps, {plan.calls} calls of the transformer, each of at most "
        f"{plan.at_once} pictures"
    )


def work_of(context: Context, plan: Plan, distance: str) -> Work:
    """The map as a piece of work, with all that it depends on."""
    config = context.config
    key: dict[str, Any] = {name: getattr(config, name) for name in SETTINGS_OF_PICTURES}
    key |= {"distance": distance, "cells": [cell.name for cell in plan.cells]}
    key["pairs"] = [[pair.source, pair.target] for pair in plan.pairs]
    return Work(StepLog.open(context.files.step_log), "site-map", key, context.force)


def outcomes_of(
    context: Context, plan: Plan, wishes: list[Wish | None], work: Work, distance: Any
) -> dict[int, list[Outcome]]:
    """What every copy did, by pair; what the log holds already is not made again."""
    config, model = context.config, context.model
    batches = plan.batches()
    parts = [(batch, part_of(work, plan, batch)) for batch in batches]
    known = {(batch.pair, batch.number): outcomes_in(part) for batch, part in parts}
    done = sum(batch.size for batch in batches if known[batch.pair, batch.number] is not None)
    bench: Bench | None = None
    found: dict[int, list[Outcome]] = {pair: [] for pair in range(len(plan.pairs))}
    with context.report.progress("pictures", plan.pictures, "pictures", done) as advance:
        for batch, part in parts:
            outcomes = known[batch.pair, batch.number]
            if outcomes is None:
                if bench is None:
                    prompts = model.encode(
                        [text for pair in plan.pairs for text in (pair.source, pair.target)],
                        config.max_sequence_length,
                    )
                    for warning in prompts.warnings:
                        context.report.say(f"warning: {warning}")
                    bench = Bench(
                        model,
                        prompts,
                        picture_spec(config),
                        plan,
                        wishes,
                        distance,
                        clip_of(config),
                        config.base_seed,
                        context.files,
                    )
                outcomes = make_part(part, bench, batch)
                advance(batch.size)
            found[batch.pair] += outcomes
    return found


def write(
    context: Context,
    plan: Plan,
    wishes: list[Wish | None],
    outcomes: dict[int, list[Outcome]],
    made_with: dict[str, Any],
) -> None:
    """Write site_map.json and its picture."""
    config, files = context.config, context.files
    sigmas = plan.denoising.sigmas
    scores = cell_scores(plan.cells, sigmas, outcomes, wishes)
    ranked = places(scores, context.model.spec)
    found = SiteMap(
        model_id=config.model_id,
        measure=measure_of(wishes),
        words=in_words(ranked, scores),
        distance=made_with["distance"],
        made_with={name: made_with[name] for name in SETTINGS_OF_PICTURES},
        sigmas=[round(sigma, 6) for sigma in sigmas],
        pairs=list(plan.pairs),
        donors=donors_score(sigmas, outcomes, wishes),
        ranked=[each.name for each in ranked],
        cells=scores,
    )
    found.write(files.site_map)
    save_image(files.site_map.with_suffix(".png"), picture_of(found, ranked))
