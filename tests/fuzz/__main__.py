"""The harness: see the package's docstring."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # a fork takes no threads along, and would wait for them for ever
os.environ["HF_HUB_OFFLINE"] = "1"

import argparse
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

from fluxscope.commands.main import build_app
from fluxscope.progress import Reporter
from fluxscope.settings.config import make_config
from fluxscope.shapes.shipped import shipped_sae
from fluxscope.steps.pipeline import parse_pipeline_steps, run_pipeline
from tests.fuzz.damage import CANARY, damaged, fresh_copy
from tests.fuzz.texts import hostile_flags, hostile_prompts, hostile_settings
from tests.kills import EVENTS, PROMPTS, TINY, WRITES, import_all, timeless

FOREIGN = Path(__file__).parents[1] / "conformance" / "foreign"
SECONDS, GIBIBYTES = 60, 2.5
"""A case that takes longer, or more memory than this beyond what every process has, is at fault."""

OURS = {CANARY, "good", "work", "told", "told.refused"}
RUNS = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork")

READERS = {
    "S_matrix.npy": "2,4,9,10",
    "manifest.jsonl": "3,4,5,7",
    "run_log.json": "1,2,5,7,10",
    "clip_embeddings.npy": "4",
    "selected_features.json": "5,7,8,10",
    "overlay_summary.json": "6",
    "best_demo_candidates.json": "11",
    "step_log.json": "1,2,4,6",
}
"""The steps that read a file; of others those that read codes and pictures are drawn."""


@dataclass(frozen=True)
class Case:
    """One thing to try.

    Attributes:
        what: in words.
        commands: run in order; each must end well or clearly.
        mended: files that must have their good bytes where the last command succeeds.
    """

    what: str
    commands: tuple[tuple[str, ...], ...]
    mended: tuple[str, ...] = ()


class Fuzz:
    """Good files, and cases made of them."""

    def __init__(self, place: Path) -> None:
        import_all()
        self.place, self.good, self.work = place, place / "good", place / "work"
        os.environ["FUZZ_PLACE"] = str(place)
        (place / CANARY).write_text("not yours")
        self.good.mkdir()
        (self.good / "prompts.txt").write_text(PROMPTS)
        in_child(self.make, SECONDS * 10)
        self.makers = self._makers()

    def make(self) -> None:
        """A whole run, and checkpoints of every library."""
        config = make_config(out_dir=str(self.good / "run"), **self.settings())
        run_pipeline(config, Reporter(quiet=True), parse_pipeline_steps("1-11"))
        fresh_copy(FOREIGN, self.good / "saes")
        (self.good / "saes" / "ours").mkdir()
        (self.good / "saes" / "ours" / "sae_best.pt").write_bytes(shipped_sae(5).read_bytes())

    def settings(self) -> dict[str, object]:
        return {**TINY, "active_layer": 15, "prompts_path": str(self.good / "prompts.txt")}

    def _makers(self) -> dict[str, str]:
        """By file of the run, the number of the step that made it, as its log says."""
        import json

        from fluxscope.steps.table import STEPS

        numbers = {step.name: str(step.number) for step in STEPS}
        found = {}
        log = json.loads((self.good / "run" / "step_log.json").read_text())
        for work, entry in log["work"].items():
            step = work.rsplit("/", 1)[-1].split(" ")[0]
            for name in entry["made"] if step in numbers else ():
                found[name] = numbers[step]
        return found

    def begin(self, draw: random.Random) -> Case:
        """Fresh files, damaged as the draw says."""
        fresh_copy(self.good, self.work)
        kind = draw.choices(("run", "sae", "settings", "flags", "prompts"), (60, 25, 8, 5, 2))[0]
        made: Case = getattr(self, f"_{kind}")(draw)
        return made

    def _run(self, draw: random.Random) -> Case:
        run = self.work / "run"
        files = sorted(path for path in run.rglob("*") if path.is_file())
        named = [path for path in files if path.name in READERS]
        path = draw.choice(named if draw.random() < 0.5 else files)
        name = path.relative_to(run).as_posix()
        what = f"{name}: {damaged(path, draw)}"
        maker = self.makers.get(name)
        if maker and draw.random() < 0.4:
            return Case(what, (self._steps(maker),), (name,))
        readers = READERS.get(path.name, "4,5,9").split(",")
        return Case(what, (self._steps(draw.choice(readers)),))

    def _steps(self, numbers: str) -> tuple[str, ...]:
        flags = [f"--{name.replace('_', '-')}={_flag(value)}" for name, value in self.settings().items()]
        return ("run", "--steps", numbers, f"--out-dir={self.work / 'run'}", *flags)

    def _sae(self, draw: random.Random) -> Case:
        files = sorted(path for path in (self.work / "saes").rglob("*") if path.is_file())
        path = draw.choice(files)
        what = f"{path.relative_to(self.work)}: {damaged(path, draw)}"
        target = path.parent if draw.random() < 0.5 else path
        out = str(self.work / "out" / "sae_best.pt")
        command = ("sae-info", str(target)) if draw.random() < 0.6 else ("convert", str(target), out)
        return Case(what, (command,))

    def _settings(self, draw: random.Random) -> Case:
        name, text = hostile_settings(draw)
        path = self.work / name
        path.write_bytes(text)
        command = ("analyze", "--config", str(path), f"--out-dir={self.work / 'run'}")
        return Case(f"{name}: {text[:200]!r}", (command,))

    def _flags(self, draw: random.Random) -> Case:
        command = hostile_flags(draw, self.work / "run")
        return Case(f"flags {command}", (command,))

    def _prompts(self, draw: random.Random) -> Case:
        path = self.work / "hostile.txt"
        path.write_bytes(hostile_prompts(draw))
        steps = self._steps("1")[:-1]
        new = (*steps[:3], f"--out-dir={self.work / 'new'}", *steps[4:], f"--prompts-path={path}")
        return Case(f"prompts {path.read_bytes()[:80]!r}", (new,))

    def fault(self, draw: random.Random) -> tuple[str, str]:
        """Try one case: what it is, and what is wrong with how it ends, or nothing."""
        case = self.begin(draw)
        told = self.place / "told"
        told.write_text("")
        status, mebibytes = in_child(lambda: attempt(case, self.work, told), SECONDS)
        words = told.read_text()
        if status:
            words = f"ended by {status}: {words}"
        if mebibytes > GIBIBYTES * 1024:
            words += f" took {mebibytes} MiB"
        there = {path.name for path in self.place.iterdir()}
        if (self.place / CANARY).read_text() != "not yours" or there - OURS:
            words += f" something outside was touched: {there - OURS}"
        if not words and case.mended:
            words = self._not_mended(case)
        return case.what, words

    def _not_mended(self, case: Case) -> str:
        if (self.place / "told.refused").exists():
            return ""
        for name in case.mended:
            good, now = self.good / "run" / name, self.work / "run" / name
            moved = (
                f"{place}/run".encode() for place in (self.good, self.work)
            )  # run_log.json says where it lies
            if not now.is_file() or timeless(good).replace(*moved) != timeless(now):
                return f"{name} has other bytes after the step that makes it"
        return ""


def _flag(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def attempt(case: Case, work: Path, told: Path) -> None:
    """Run a case's commands, and write down what is wrong; in a process of its own."""
    os.chdir(work)  # where paths that are not absolute lead to
    touched = watch(work)
    refused = told.with_name("told.refused")
    refused.unlink(missing_ok=True)
    wrong = []
    for command in case.commands:
        result = CliRunner().invoke(build_app(), list(command))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            wrong.append("".join(traceback.format_exception(result.exception))[-1500:])
        elif result.exit_code not in (0, 1, 2):
            wrong.append(f"exit code {result.exit_code}")
        elif result.exit_code == 1 and not is_answer(command, result.stderr):
            wrong += [bad] if (bad := unclear(result.stderr)) else []
        if unclean(result.output):
            wrong.append(f"control characters: {result.output!r}"[:500])
        if result.exit_code:
            refused.touch()
    wrong += [f"touched {each}" for each in sorted(touched)]
    told.write_text("; ".join(wrong))


def is_answer(command: tuple[str, ...], complaint: str) -> bool:
    """Whether a command that ends with 1 says so as its answer: doctor, that something is missing."""
    return command[0] == "doctor" and not complaint


def unclear(complaint: str) -> str:
    """What is wrong with an error's two lines."""
    lines = complaint.rstrip("\n").splitlines()
    errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    if len(errors) != 1 or errors[0] != len(lines) - 2 or not lines[-1].startswith("  "):
        return f"not an error and a hint: {complaint[-500:]!r}"
    if max(map(len, lines[-2:])) > 1010:
        return "a line without end"
    return ""


def unclean(text: str) -> bool:
    return any(not letter.isprintable() and letter not in "\n\r" for letter in text)


def watch(folder: Path) -> set[str]:
    """What is written, renamed or removed outside a folder from now on, and what is run."""
    seen: set[str] = set()
    root = str(folder)
    quiet = ("/dev/null", tempfile.gettempdir() + "/matplotlib", str(folder.parent / "told"))

    def hook(event: str, args: tuple[object, ...]) -> None:
        if event in RUNS:
            seen.add(f"{event} {args[:1]}")
        writes = event == "open" and isinstance(args[2], int) and args[2] & WRITES
        if not (writes or event in EVENTS) or not isinstance(args[0], str | Path):
            return
        paths = [str(arg) for arg in args[:2] if isinstance(arg, str | Path)][: 1 if event == "open" else 2]
        if any(Path(path).is_absolute() and not path.startswith((root, *quiet)) for path in paths):
            seen.add(f"{event} {paths}")

    sys.addaudithook(hook)
    return seen


def in_child(run: Callable[[], None], seconds: int) -> tuple[str, int]:
    """Run in a forked process: what ended it if it did not end by itself, and its peak memory in MiB."""
    sys.stdout.flush()
    child = os.fork()
    if not child:
        code = 1
        try:
            run()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    end, usage = time.monotonic() + seconds, None
    while usage is None:
        found, status, resources = os.wait4(child, os.WNOHANG)
        if found:
            usage = resources
        elif time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.wait4(child, 0)
            return f"more than {seconds} seconds", 0
        else:
            time.sleep(0.01)
    code = os.waitstatus_to_exitcode(status)
    return (f"exit code {code}" if code else ""), usage.ru_maxrss // 1024


def main(cases: int, seed: int, only: str, single: int | None) -> int:
    with tempfile.TemporaryDirectory() as place:
        fuzz = Fuzz(Path(place).resolve())
        faults = tried = 0
        for number in range(cases) if single is None else [single]:
            draw = random.Random(f"{seed} {number}")
            if only and only not in fuzz.begin(random.Random(f"{seed} {number}")).what:
                continue
            what, wrong = fuzz.fault(draw)
            tried += 1
            if wrong:
                faults += 1
                print(f"case {number}: {what[:200]}\n    {wrong}", flush=True)
            if tried % 100 == 0:
                print(f"... {tried} cases, {faults} faults", flush=True)
        print(f"{tried} cases, {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Try damaged and hostile files.")
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="cases whose description holds these words")
    parser.add_argument("--case", type=int, help="this one alone, to see it again")
    options = parser.parse_args()
    sys.exit(main(options.cases, options.seed, options.only, options.case))
