"""What a step is, and how one is run: what it reads is checked, fresh results are kept, the rest is made."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from pathlib import Path

from fluxscope.errors import MissingInputError
from fluxscope.run.context import Context
from fluxscope.run.freshness import Work
from fluxscope.run.inputs import command_for, digest_of, values_of
from fluxscope.run.rundir import RunDir
from fluxscope.run.step_log import StepLog


@dataclass(frozen=True)
class Step:
    """One step of the pipeline: it reads files and writes files.

    Attributes:
        number: 1 to 11.
        name: the command for it.
        module: the module that declares it, whose `run(context)` does the work and returns one line for the
            user. Importing it must import no torch, so that help comes at once.
        summary: one line: what it does.
        reads: the files that its results depend on, by their names in RunDir or in `run.inputs`.
        reads_if_there: those that it does without where they are missing.
        makes: the files that it always writes. Whatever else it writes is recorded with them.
        settings: the settings that it reads: its flags. Its results depend on them, but for those that say
            where and in what portions the work is done (`inputs.HOW`).
        shared: whether its results are the same for every site; they then lie with the first one's.
        both_layers: whether it compares two sites, so that both must have an SAE.
    """

    number: int
    name: str
    module: str
    summary: str
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    settings: tuple[str, ...]
    reads_if_there: tuple[str, ...] = ()
    shared: bool = False
    both_layers: bool = False

    def run(self, context: Context) -> str:
        outcome: str = importlib.import_module(self.module).run(context)
        return outcome


def run_step(step: Step, context: Context, all_steps: tuple[Step, ...]) -> None:
    """Run one step, unless its results are there, as they were made, and made from what it would read now.

    Raises:
        MissingInputError: a file that it needs is missing; the error names the command that makes it.
    """
    report = context.report
    title = f"[{step.number:2d}] {step.name:<14}"
    check_reads(step, context, all_steps)
    log = StepLog.open(context.files.step_log)
    work = work_of(step, context, log)
    reason = work.reason
    if not reason:
        report.say(f"{title} up to date")
        log.save_hashes()
        return
    report.say(f"{title} ..." + (f" ({reason})" if work.was_finished and not context.force else ""))
    with work.doing():
        outcome = step.run(replace(context, work=work))
        # A forced collection may have begun with another site, whose files then lie elsewhere.
        files = RunDir.of(context.config, context.files.site)
        files = RunDir.of(context.config, files.first_site) if step.shared else files
        work.products += [getattr(files, name) for name in step.makes]
    report.say(f"{' ' * len(title)} {outcome} ({work.seconds:.1f} s)")


def work_of(step: Step, context: Context, log: StepLog) -> Work:
    """The step as a piece of work: its place in the log, and the key of all that its results depend on."""
    config, files = context.config, context.files
    sites = config.collected_sites if step.shared else (files.site,)
    key = values_of(config, step.settings, config.compared_sites if step.both_layers else sites, log)
    if not step.shared:
        key["site"] = files.site
    for name in (*step.reads, *step.reads_if_there):
        key[name] = digest_of(name, context, log, step.both_layers)
    home = "" if step.shared or files.home == files.root else f"{files.relative(files.home)}/"
    return Work(log, f"{home}{step.name}", key, context.force)


def check_reads(step: Step, context: Context, all_steps: tuple[Step, ...]) -> None:
    """Raise MissingInputError for the first file that is needed and missing."""
    config, files = context.config, context.files
    for name in step.reads:
        path: Path | None = getattr(files, name, None)
        if path is None or path.exists():
            continue
        maker = next(other for other in all_steps if name in other.makes)
        raise MissingInputError(
            f"step {step.number} ({step.name}) needs {path}, which is not there",
            f"Run step {maker.number} first: {command_for(maker.name, files, config, maker.settings)}",
        )
