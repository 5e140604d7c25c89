"""Draw docs/images/steering.png from a run's step 7: features turned down and up, one a row.

    fluxscope run --steps 1-4,7 --out-dir steering_run
    python docs/make_steering_picture.py steering_run

Of each feature that picture is shown which its strengths change most beside what a random direction of the
same norm does; of the features those for which that is most. Nothing is generated.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from fluxscope.draw.grid import GridRow, labelled_grid
from fluxscope.files import read_json, save_image
from fluxscope.measures.clip import open_picture
from fluxscope.run.rundir import RunDir, shown
from fluxscope.settings.config import make_config

TARGET = Path(__file__).with_name("images") / "steering.png"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a run's folder, with step 7 done")
    parser.add_argument("--rows", type=int, default=4, help="features shown")
    given = parser.parse_args()
    files = RunDir.of(make_config(out_dir=given.run))
    summary = read_json(files.steering_summary)
    best: dict[int, dict[str, Any]] = {}
    for experiment in sorted(summary["experiments"], key=effect, reverse=True):
        best.setdefault(experiment["feature_id"], experiment)
    strengths = sorted({0.0, *summary["strengths"]})
    made_with = summary["made_with"]
    sheet = labelled_grid(
        [row_of(files, experiment, strengths) for experiment in list(best.values())[: given.rows]],
        [f"{strength:+g}" if strength else "unchanged" for strength in strengths],
        title="Features turned down and up",
        subtitle=f"{made_with['model_id']} · {made_with['site']}, steps {made_with['steer_steps']} · "
        "strengths in units of the feature's 99th-percentile activation",
        baseline=strengths.index(0.0),
        tile=128,
    )
    save_image(TARGET, sheet)
    print(TARGET)


def effect(experiment: dict[str, Any]) -> float:
    """How much farther the strengths moved the picture than a random direction did; broken pictures don't
    count."""
    broken = experiment["distance_of_strangers"]
    pairs = zip(experiment["added"], experiment["random_direction"], strict=True)
    return sum(own["distance"] - other["distance"] for own, other in pairs if own["distance"] < broken)


def row_of(files: RunDir, experiment: dict[str, Any], strengths: list[float]) -> GridRow:
    feature, image_id = experiment["feature_id"], experiment["image_id"]
    names = [f"strength_{shown(strength, 1)}" if strength else "baseline" for strength in strengths]
    pictures = [np.asarray(open_picture(files.steered(feature, image_id, name))) for name in names]
    return GridRow(pictures, f"feature {feature}: {experiment['prompt']}")


if __name__ == "__main__":
    main()
