"""Step 11: labelled grids of the demos, from the pictures that step 10 kept; nothing is generated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from fluxscope.draw.grid import GridRow, labelled_grid
from fluxscope.draw.heatmap import create_feature_grid
from fluxscope.errors import FluxscopeError, MachineError, MissingInputError
from fluxscope.files import save_image
from fluxscope.measures.clip import open_picture
from fluxscope.progress import Reporter
from fluxscope.run.context import Context
from fluxscope.run.donor_table import in_words, verdict
from fluxscope.run.manifest import Manifest
from fluxscope.run.rundir import RunDir
from fluxscope.run.steering import heat_over, signed, unit_in_words
from fluxscope.run.steering_records import (
    Demo,
    DemoCandidates,
    DemoConfig,
    DemoGrid,
    FeatureDemos,
    GridsSummary,
)
from fluxscope.run.strict_json import Number
from fluxscope.settings.config import Config
from fluxscope.steps.step import Step

STEP = Step(
    number=11,
    name="assemble-grids",
    module=__name__,
    summary="Assemble labelled steering grids of the demos.",
    reads=("manifest", "codes", "best_demo_candidates", "best_demos"),
    makes=("steering_grids_summary",),
    settings=("alpha_scale", "clip_percentile", "height", "width", "site_pattern", "target_step_number"),
)


def run(context: Context) -> str:
    files = context.files
    demos = DemoCandidates.read(files.best_demo_candidates, files.root)
    manifest = Manifest.read(files.manifest, files.root)
    grids = []
    for record in demos.features:
        for number, demo in enumerate(record.best_demos):
            try:
                grids.append(assemble(context, manifest, record, number, demo, demos.config))
            except MachineError:
                raise
            except FluxscopeError as error:
                context.report.say(f"     warning: {error.message}")
    if demos.features and not grids:
        raise MissingInputError(
            f"{files.best_demo_candidates} lists no demo with pictures",
            "Run step 10 again.",
            redo="find-demos",
        )
    strengths = both_ways(demos.config.magnitudes)
    GridsSummary(layer_index=files.layer, strengths=strengths, grids=grids).write(
        files.steering_grids_summary
    )
    if not grids:
        return "there are no demos to lay out"
    return f"{len(grids)} grids in {files.steering_grids}"


def both_ways(magnitudes: Sequence[Number]) -> list[float]:
    """Strengths from the most negative to the most positive, the baseline in the middle."""
    ascending = sorted(map(float, magnitudes))
    return [*(-m for m in reversed(ascending)), 0.0, *ascending]


def assemble(
    context: Context,
    manifest: Manifest,
    record: FeatureDemos,
    number: int,
    demo: Demo,
    made_with: DemoConfig,
) -> DemoGrid:
    """Draw one demo's grid and its strip, and return its entry in the summary."""
    files, feature = context.files, record.feature_id
    strengths = both_ways(made_with.magnitudes)
    row = demo_row(context, manifest, record, demo, strengths)
    unit = unit_in_words(record.strength_unit or "absolute", record.unit or 1.0)
    grid = labelled_grid(
        [row],
        [signed(s) for s in strengths],
        title=f"Feature {feature}: demo {number + 1}{verdict(made_with.donor_score)}",
        subtitle=f"image {demo.image_id} · seed {demo.seed} · {unit} · best at ±{demo.best_strength:g}"
        f"{in_words(made_with.donor_score)}",
        footer=f"{made_with.setting('model_id')} · {made_with.site}, steps {made_with.setting('steer_steps')}"
        f" · distance: {made_with.distance or 'lpips'} · score {demo.combined_score:.3f}, "
        f"consistency {demo.consistency:.2f}",
        baseline=len(strengths) // 2,
    )
    path, strip = files.demo_grid(feature, number), files.demo_strip(feature, number, demo.image_id)
    save_image(path, grid)
    save_image(strip, Image.fromarray(create_feature_grid(list(row.pictures), len(strengths))))  # type: ignore[arg-type]
    return DemoGrid(
        feature_id=feature,
        demo_idx=number,
        image_id=demo.image_id,
        prompt=demo.prompt,
        seed=demo.seed,
        score=demo.combined_score,
        grid_path=files.relative(path),
        strip_path=files.relative(strip),
    )


def demo_row(
    context: Context, manifest: Manifest, record: FeatureDemos, demo: Demo, strengths: Sequence[float]
) -> GridRow:
    """A demo's pictures in the order of the strengths, its overlay beside them, distances below."""
    from fluxscope.run.codes import CodeStore

    config, files, feature = context.config, context.files, record.feature_id
    pictures = [np.asarray(open_picture(files.demo(feature, demo.image_id, s))) for s in strengths]
    store = CodeStore(files.codes, files.site, config.target_step_index)
    manifest.row(demo.image_id)  # raises where it is not listed
    heat = store.image(manifest.place[demo.image_id]).column(feature).numpy()
    overlay = heat_over(config, pictures[len(strengths) // 2], heat)
    return GridRow(pictures, demo.prompt, [distance_note(demo, s) for s in strengths], overlay)


def distance_note(demo: Demo, strength: Number) -> str:
    """How far the picture at a strength is from the baseline, where the record says so."""
    if strength == 0:
        return "unchanged"
    known = {t.strength: (t.pos_lpips, t.neg_lpips) for t in demo.tries or []}
    known.setdefault(demo.best_strength, (demo.pos_lpips, demo.neg_lpips))
    up, down = known.get(abs(strength), (None, None))
    distance = up if strength > 0 else down
    return "" if distance is None else f"distance {distance:.3f}"


def steering_sheet(config: Config, report: Reporter) -> None:
    """One labelled sheet of all the grids that step 11 made.

    Raises:
        MissingInputError: there are none.
    """
    files = RunDir.of(config)
    if not files.steering_grids_summary.is_file():
        raise MissingInputError(
            f"{files.steering_grids_summary} is not there", "Run step 11 first.", redo="assemble-grids"
        )
    context = Context(config, files, report)
    grids = GridsSummary.read(files.steering_grids_summary, files.root).grids
    wanted = {(grid.feature_id, grid.image_id) for grid in grids}
    demos = DemoCandidates.read(files.best_demo_candidates, files.root)
    if not demos.features:
        report.say("no feature has a demo, so there is no sheet of them")
        return
    manifest = Manifest.read(files.manifest, files.root)
    made_with, strengths = demos.config, both_ways(demos.config.magnitudes)
    units = {"activation": "each feature's 99th-percentile activation", "absolute": "activations"}
    rows = []
    for record in demos.features:
        for demo in record.best_demos:
            if (record.feature_id, demo.image_id) in wanted:
                row = demo_row(context, manifest, record, demo, strengths)
                label = f"feature {record.feature_id}: {row.label}"
                rows.append(GridRow(row.pictures, label, row.notes, row.beside))
    if not rows:
        raise MissingInputError(
            f"{files.best_demo_candidates} lists none of the grids",
            "Run steps 10 and 11 again.",
            redo="find-demos, assemble-grids",
        )
    sheet = labelled_grid(
        rows,
        [signed(s) for s in strengths],
        title=f"{len(rows)} steering demos of {len(demos.features)} features",
        subtitle=f"{config.model_id} · {made_with.site} · steps {made_with.setting('steer_steps')}",
        footer=f"distance: {made_with.distance or 'lpips'} · strengths in units of "
        + units[demos.features[0].strength_unit or "absolute"],
        baseline=len(strengths) // 2,
        tile=128,
    )
    save_image(files.steering_contact_sheet, sheet)
    report.say(f"{files.steering_contact_sheet}")
