"""Kills at file operations of every step and of training: python -m tests.kills [--kills 500] [--seed 0].

Each job (a step of the pipeline, or a training) is begun in a copy of the folder that it starts from, killed
without warning just before one of its file operations (opening to write, renaming, removing, making a
folder, linking, cutting short), and run again. The folder must then hold the bytes of an uninterrupted run,
and nothing more. Jobs run in forked processes: what is imported once costs nothing.
"""

from __future__ import annotations

import os

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # a fork takes no threads along, and would wait for them for ever

import argparse
import importlib
import json
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fluxscope.commands.train_saes import Training, train
from fluxscope.measures.clip import load_clip
from fluxscope.models.model import open_model
from fluxscope.progress import Reporter
from fluxscope.sae.topk import TopK
from fluxscope.sae.train_config import TrainConfig
from fluxscope.settings.config import Config, make_config
from fluxscope.shapes.shipped import resolve
from fluxscope.steps.pipeline import parse_pipeline_steps, run_pipeline
from fluxscope.steps.table import STEPS

TINY = {
    "prompts_path": "prompts.txt",
    "num_inference_steps": 2,
    "target_step_number": 1,
    "batch_size": 2,
    "min_prompts": 2,
    "top_features": 2,
    "top_examples_per_feature": 1,
    "steer_features": 2,
    "steer_images": 1,
    "steer_scales": (0.0, 1.0),
    "steer_strengths": (-4.0, 4.0),
    "steer_steps": "1",
    "demo_candidates": 2,
    "demo_finalists": 1,
    "demo_kept": 1,
    "demo_strengths": (4.0,),
}
PROMPTS = """a large red circle on a white background
a small blue star on a gray background
a large green ring on a navy background
"""
TIMES = ("generation_time", "total_time_seconds", "seconds", "time", "created", "finished", "started")
"""Keys whose values tell how long something took, or when."""

EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class Job:
    """One thing to run in a folder, and the folders before and after it."""

    name: str
    run: Callable[[Path], None]
    before: Path
    after: Path


def config_of(folder: Path) -> Config:
    return make_config(out_dir=str(folder / "run"), **{**TINY, "prompts_path": str(folder / "prompts.txt")})


def run_step(number: int) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        run_pipeline(config_of(folder), Reporter(quiet=True), parse_pipeline_steps(str(number)))

    return run


def run_training(folder: Path) -> None:
    config = config_of(folder)
    model = open_model(
        config.model_id, "cpu", "float32", prompt_folder=folder / "activations" / "prompt_embeddings"
    )
    training = Training(
        sites=("double.15.ff",),
        sparsities=(4,),
        pictures=20,
        base=TrainConfig(TopK(), hidden_dim=128, steps=12, batch_size=64),
        activations=folder / "activations",
        saes=folder / "saes",
        stamp="1",
    )
    train(config, model, training, Reporter(quiet=True), (PROMPTS.splitlines() * 7)[:20])


JOBS: dict[str, Callable[[Path], None]] = {
    **{step.name: run_step(step.number) for step in STEPS},
    "train": run_training,
}


def import_all() -> None:
    """Import what the jobs import when they need it, so that no child has to; no thread may begin here."""
    for name in ("zarr", "matplotlib.figure", "scipy.sparse.csgraph", "fluxscope.run.codes"):
        importlib.import_module(name)
    model = open_model("flux-shapes", "cpu", "float32")
    model.encode(PROMPTS.splitlines())
    assert model.pipe is not None
    load_clip(resolve("clip-shapes"))


class Kills:
    """The jobs, each with the folder it starts from and the one it ends with, ready to be killed."""

    def __init__(self, place: Path) -> None:
        import_all()
        self.work = place / "work"
        self.place, self.jobs = place, []
        self.work.mkdir(parents=True)
        (self.work / "prompts.txt").write_text(PROMPTS)
        for name, run in JOBS.items():
            before, after = place / f"{name}.before", place / f"{name}.after"
            shutil.copytree(self.work, before)
            if in_child(run, self.work) != 0:
                raise RuntimeError(f"{name} fails where nothing kills it")
            shutil.copytree(self.work, after)
            print(f"{name} ran", flush=True)
            self.jobs.append(Job(name, run, before, after))

    def operations(self, job: Job) -> int:
        """How many file operations a job makes in its folder."""
        self.begin(job)
        notes = self.place / "operations"
        in_child(job.run, self.work, count_to=notes)
        return int(notes.read_text())

    def begin(self, job: Job) -> None:
        shutil.rmtree(self.work)
        shutil.copytree(job.before, self.work)

    def fault(self, job: Job, operation: int) -> str:
        """Kill a job before one of its file operations and run it again; what is wrong then, or nothing."""
        self.begin(job)
        in_child(job.run, self.work, kill_at=operation)
        if in_child(job.run, self.work) != 0:
            return "does not run again"
        return difference(contents(job.after), contents(self.work))


def in_child(
    run: Callable[[Path], None], folder: Path, kill_at: int | None = None, count_to: Path | None = None
) -> int:
    """Run in a forked process; returns its exit status, negative where a signal ended it."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        seen = watch(folder, kill_at)
        run(folder)
        code = 0
        if count_to:
            count_to.write_text(str(seen[0]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def watch(folder: Path, kill_at: int | None) -> list[int]:
    """Count this process's file operations in a folder from now on, and kill it before one of them."""
    seen, root = [0], str(folder)

    def hook(event: str, args: tuple[object, ...]) -> None:
        writes = event == "open" and isinstance(args[2], int) and args[2] & WRITES
        if not (writes or event in EVENTS) or not any(str(arg).startswith(root) for arg in args[:2]):
            return
        seen[0] += 1
        if seen[0] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return seen


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, without what tells times."""
    return {str(path.relative_to(folder)): timeless(path) for path in folder.rglob("*") if path.is_file()}


def timeless(path: Path) -> bytes:
    data = path.read_bytes()
    if path.name == "step_log.json":  # its hashes are of files that tell times, and of files compared here
        work = json.loads(data)["work"]
        return json.dumps({name: entry["finished"] for name, entry in sorted(work.items())}).encode()
    if path.suffix not in (".json", ".jsonl"):
        return data
    lines = data.splitlines() if path.suffix == ".jsonl" else [data]
    return b"\n".join(json.dumps(without_times(json.loads(line))).encode() for line in lines)


def without_times(value: object) -> object:
    if isinstance(value, dict):
        return {key: without_times(each) for key, each in value.items() if key not in TIMES}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def difference(wanted: dict[str, bytes], found: dict[str, bytes]) -> str:
    words = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    words += [f"{name} is left over" for name in found.keys() - wanted.keys()]
    words += [
        f"{name} has other bytes" for name in wanted.keys() & found.keys() if wanted[name] != found[name]
    ]
    return ", ".join(sorted(words))


def main(kills: int, seed: int, only: str, each: int = 0) -> int:
    with tempfile.TemporaryDirectory() as place:
        harness = Kills(Path(place).resolve() / "kills")
        jobs = [job for job in harness.jobs if only in job.name]
        counts = {job.name: harness.operations(job) for job in jobs}
        print(", ".join(f"{name} {count}" for name, count in counts.items()), "file operations", flush=True)
        moments = [(job, n) for job in jobs for n in range(1, counts[job.name] + 1)]
        draw = random.Random(seed)
        chosen = draw.sample(moments, min(kills, len(moments)))
        if each:
            chosen = [(job, n) for job in jobs for n in draw.sample(range(2, counts[job.name] + 1), each)]
        faults = 0
        for job, operation in sorted(chosen, key=lambda moment: (moment[0].name, moment[1])):
            if fault := harness.fault(job, operation):
                faults += 1
                print(f"{job.name} killed before operation {operation}: {fault}", flush=True)
        print(f"{len(chosen)} kills of {len(moments)} moments, {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--each", type=int, default=0, help="so many kills of every job instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="jobs whose name holds these words")
    options = parser.parse_args()
    sys.exit(main(options.kills, options.seed, options.only, options.each))
