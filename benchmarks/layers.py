"""Both layers in one pass against two passes: the time that collecting takes.

Runs step 1 three times on flux-shapes: with both layers, with layer 15 alone, and with layer 5 alone, in
fresh folders, and compares. The claim is that one pass takes at most 0.55 of the time of two.

    python benchmarks/layers.py [--prompts 16] [--rounds 2]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from fluxscope.progress import Reporter
from fluxscope.settings.config import make_config
from fluxscope.steps.pipeline import parse_pipeline_steps, run_pipeline

RUNS = {
    "both layers": {"active_layer": 15, "compare_layers": True},
    "layer 15": {"active_layer": 15, "compare_layers": False},
    "layer 5": {"active_layer": 5, "compare_layers": False},
}


def seconds_of(settings: dict, prompts: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(out_dir=str(Path(folder) / "run"), max_prompts=prompts, **settings)
        began = time.perf_counter()
        run_pipeline(config, Reporter(quiet=True), parse_pipeline_steps("1"))
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    seconds_of(RUNS["layer 5"], 1)  # imports and first reads fall on nobody
    times: dict[str, list[float]] = {name: [] for name in RUNS}
    for _ in range(arguments.rounds):
        for name, settings in RUNS.items():
            times[name].append(seconds_of(settings, arguments.prompts))
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, seconds in medians.items():
        print(f"{name:<12} {seconds:.2f} s")
    ratio = medians["both layers"] / (medians["layer 15"] + medians["layer 5"])
    print(f"one pass / two passes  {ratio:.3f}  (claim: at most 0.55)")


if __name__ == "__main__":
    main()
