"""Step 11: labelled grids of the demos, from the pictures that step 10 kept; nothing is generated."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from fluxscope.draw.grid import GridRow, labelled_grid
from fluxscope.draw.heatmap import create_feature_grid
from fluxscope.errors import FluxscopeError, MissingInputError
from fluxscope.files import read_json, save_image, write_json
from fluxscope.measures.clip import open_picture
from fluxscope.progress import Reporter
from fluxscope.run.codes import CodeStore
from fluxscope.run.context import Context
from fluxscope.run.manifest import load_manifest
from fluxscope.run.rundir import RunDir
from fluxscope.run.steering import heat_over, signed, unit_in_words
from fluxscope.settings.config import Config


def run(context: Context) -> str:
    files = context.files
    demos = read_json(files.best_demo_candidates)
    strengths = both_ways(demos["config"]["strengths"])
    grids = []
    for record in demos["features"]:
        for number, demo in enumerate(record["best_demos"]):
            try:
                grids.append(assemble(context, record, number, demo, demos["config"]))
            except FluxscopeError as error:
                context.report.say(f"     warning: {error.message}")
    if not grids:
        raise MissingInputError(
            f"{files.best_demo_candidates} lists no demo with pictures", "Run step 10: fluxscope find-demos"
        )
    write_json(
        files.steering_grids_summary,
        {"layer_index": files.layer, "strengths": strengths, "grids": grids},
    )
    return f"{len(grids)} grids in {files.steering_grids}"


def both_ways(magnitudes: list[float]) -> list[float]:
    """Strengths from the most negative to the most positive, the baseline in the middle."""
    ascending = sorted(magnitudes)
    return [*(-m for m in reversed(ascending)), 0.0, *ascending]


def assemble(
    context: Context, record: dict[str, Any], number: int, demo: dict[str, Any], made_with: dict[str, Any]
) -> dict[str, Any]:
    """Draw one demo's grid and its strip, and return its entry in the summary."""
    files, feature, image_id = context.files, record["feature_id"], demo["image_id"]
    strengths, distance = both_ways(made_with["strengths"]), made_with["distance"]
    row = demo_row(context, record, demo, strengths)
    unit = unit_in_words(record["strength_unit"], record["unit"])
    grid = labelled_grid(
        [row],
        [signed(s) for s in strengths],
        title=f"Feature {feature}: demo {number + 1}",
        subtitle=f"image {image_id} · seed {demo['seed']} · {unit} · best at ±{demo['best_strength']:g}",
        footer=f"{made_with['model_id']} · {site_in(made_with)}, steps {made_with['steer_steps']} · "
        f"distance: {distance} · score {demo['combined_score']:.3f}, "
        f"consistency {demo['consistency']:.2f}",
        baseline=len(strengths) // 2,
    )
    path, strip = files.demo_grid(feature, number), files.demo_strip(feature, number, image_id)
    save_image(path, grid)
    save_image(strip, Image.fromarray(create_feature_grid(list(row.pictures), len(strengths))))  # type: ignore[arg-type]
    return {
        "feature_id": feature,
        "demo_idx": number,
        "image_id": image_id,
        "prompt": demo["prompt"],
        "seed": demo["seed"],
        "score": demo["combined_score"],
        "grid_path": files.relative(path),
        "strip_path": files.relative(strip),
    }


def demo_row(
    context: Context, record: dict[str, Any], demo: dict[str, Any], strengths: list[float]
) -> GridRow:
    """A demo's pictures in the order of the strengths, its overlay beside them, distances below."""
    config, files, feature = context.config, context.files, record["feature_id"]
    pictures = [np.asarray(open_picture(files.demo(feature, demo["image_id"], s))) for s in strengths]
    _, manifest = load_manifest(files.manifest, files.root)
    store = CodeStore(files.codes, files.site, config.target_step_index)
    heat = store.image(list(manifest).index(demo["image_id"])).column(feature).numpy()
    overlay = heat_over(config, pictures[len(strengths) // 2], heat)
    distances = {t["strength"]: t["pos_lpips"] for t in demo["tries"]}
    distances |= {-t["strength"]: t["neg_lpips"] for t in demo["tries"]}
    notes = ["unchanged" if s == 0 else f"distance {distances[s]:.3f}" for s in strengths]
    return GridRow(pictures, demo["prompt"], notes, overlay)


def site_in(made_with: dict[str, Any]) -> str:
    """Where the demos were steered."""
    elsewhere = made_with["steer_site"]
    return elsewhere.replace("{layer}", str(made_with["layer_index"])) if elsewhere else made_with["site"]


def steering_sheet(config: Config, report: Reporter) -> None:
    """One labelled sheet of all the grids that step 11 made.

    Raises:
        MissingInputError: there are none.
    """
    files = RunDir.of(config)
    if not files.steering_grids_summary.is_file():
        raise MissingInputError(
            f"{files.steering_grids_summary} is not there", "Run step 11 first: fluxscope assemble-grids"
        )
    context = Context(config, files, report)
    wanted = {(g["feature_id"], g["image_id"]) for g in read_json(files.steering_grids_summary)["grids"]}
    demos = read_json(files.best_demo_candidates)
    strengths = both_ways(demos["config"]["strengths"])
    units = {"activation": "each feature's 99th-percentile activation", "absolute": "activations"}
    rows = []
    for record in demos["features"]:
        for demo in record["best_demos"]:
            if (record["feature_id"], demo["image_id"]) in wanted:
                row = demo_row(context, record, demo, strengths)
                label = f"feature {record['feature_id']}: {row.label}"
                rows.append(GridRow(row.pictures, label, row.notes, row.beside))
    sheet = labelled_grid(
        rows,
        [signed(s) for s in strengths],
        title=f"{len(rows)} steering demos of {len(demos['features'])} features",
        subtitle=f"{config.model_id} · {site_in(demos['config'])} · steps {demos['config']['steer_steps']}",
        footer=f"distance: {demos['config']['distance']} · strengths in units of "
        + units[demos["features"][0]["strength_unit"]],
        baseline=len(strengths) // 2,
        tile=128,
    )
    save_image(files.steering_contact_sheet, sheet)
    report.say(f"{files.steering_contact_sheet}")
