"""What a step is, and how one is run: needs checked, fresh results kept, what it was made with recorded."""

from __future__ import annotations

import importlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxscope.errors import MissingInputError
from fluxscope.files import read_json, write_json
from fluxscope.run.context import Context
from fluxscope.run.rundir import RunDir
from fluxscope.settings.config import Config

INPUT_FILES = ("prompts_path", "layer5_sae_path", "layer15_sae_path")
"""Settings that name files of the user's."""


@dataclass(frozen=True)
class Step:
    """One step of the pipeline: it reads files and writes files.

    Attributes:
        number: 1 to 11.
        name: the command for it.
        module: the module of `fluxscope.steps` whose `run(context)` does the work and returns one line for
            the user; imported when the step runs, so that help pages need no torch. Empty: not built yet.
        summary: one line: what it does.
        needs, makes: the files it reads and writes, by their names in RunDir.
        settings: the settings that its results depend on.
        shared: whether its results are the same for every layer; they then lie with the first one's.
        both_layers: whether it looks at blocks 5 and 15 both, so that both must have an SAE.
    """

    number: int
    name: str
    module: str
    summary: str
    needs: tuple[str, ...]
    makes: tuple[str, ...]
    settings: tuple[str, ...]
    shared: bool = False
    both_layers: bool = False

    def run(self, context: Context) -> str:
        return importlib.import_module(f"fluxscope.steps.{self.module}").run(context)


def run_step(step: Step, context: Context, all_steps: tuple[Step, ...]) -> None:
    """Run one step, unless its results are there, newer than what it needs, and made with these settings.

    Raises:
        MissingInputError: a file that it needs is missing; the error names the step that makes it.
    """
    files, report = context.files, context.report
    title = f"[{step.number:2d}] {step.name:<14}"
    if not step.module:
        report.say(f"{title} not built yet")
        return
    check_needs(step, files, all_steps)
    if not context.force and is_fresh(step, context.config, files):
        report.say(f"{title} up to date")
        return
    report.say(f"{title} ...")
    forget(step, files)
    began = time.monotonic()
    outcome = step.run(context)
    seconds = time.monotonic() - began
    # A forced collection may have begun with another layer, whose files then lie elsewhere.
    record(step, context.config, RunDir.of(context.config, files.layer), seconds)
    report.say(f"{' ' * len(title)} {outcome} ({seconds:.1f} s)")


def check_needs(step: Step, files: RunDir, all_steps: tuple[Step, ...]) -> None:
    """Raise MissingInputError for the first file that is needed and missing."""
    for name in step.needs:
        path: Path = getattr(files, name)
        if path.exists():
            continue
        maker = next(other for other in all_steps if name in other.makes)
        layer = "" if files.layer == files.first_layer else f" --layer {files.layer}"
        raise MissingInputError(
            f"step {step.number} ({step.name}) needs {path}, which is not there",
            f"Run step {maker.number} first: fluxscope {maker.name}{layer}",
        )


def is_fresh(step: Step, config: Config, files: RunDir) -> bool:
    """Whether the step's results are complete, newer than its inputs, and made with the same settings."""
    made = [getattr(files, name) for name in step.makes]
    if not all(path.exists() for path in made):
        return False
    if _log(files).get(step.name, {}).get("settings") != settings_of(step, config):
        return False
    # A folder's time of change says nothing of the files inside it: only files are compared.
    read = [path for name in step.needs if (path := getattr(files, name)).is_file()]
    oldest = min(path.stat().st_mtime_ns for path in made if path.is_file())
    return all(path.stat().st_mtime_ns <= oldest for path in read)


def record(step: Step, config: Config, files: RunDir, seconds: float) -> None:
    """Note in step_log.json what the step was made with."""
    log = _log(files)
    log[step.name] = {"settings": settings_of(step, config), "seconds": round(seconds, 3)}
    write_json(files.step_log, log)


def forget(step: Step, files: RunDir) -> None:
    """Take the step out of step_log.json while it works: stopped halfway, it must not pass for finished."""
    log = _log(files)
    if log.pop(step.name, None):
        write_json(files.step_log, log)


def settings_of(step: Step, config: Config) -> dict[str, Any]:
    """The settings that the step's results depend on, as JSON keeps them.

    A setting that names a file comes with the file's size and time of change, so that a file edited under
    the same name counts as another.
    """
    values: dict[str, Any] = {}
    for name in step.settings:
        value = getattr(config, name)
        values[name] = list(value) if isinstance(value, tuple) else value
        if name in INPUT_FILES and value and Path(value).is_file():
            status = Path(value).stat()
            values[name] = [value, status.st_size, status.st_mtime_ns]
    return values


def _log(files: RunDir) -> dict[str, Any]:
    return read_json(files.step_log) if files.step_log.is_file() else {}
