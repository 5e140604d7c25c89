"""Running several steps in order."""

from __future__ import annotations

import time
from dataclasses import replace

from fluxscope.errors import ConfigError, FluxscopeError, MissingInputError, brief
from fluxscope.fields import to_range
from fluxscope.progress import Reporter
from fluxscope.run.context import Context
from fluxscope.run.inputs import name_command
from fluxscope.run.lock import lock_run
from fluxscope.run.rundir import RunDir
from fluxscope.settings.config import Config
from fluxscope.steps.step import Step, run_step
from fluxscope.steps.table import SETTINGS_OF, STEPS

DEFAULT_STEPS = "1-6,8"
"""What a run without --steps or --all does."""


def parse_pipeline_steps(text: str) -> tuple[Step, ...]:
    """The steps of a list such as "1,2,3" or "1-4,8", in order.

    Raises:
        ConfigError: it is no such list, or names a step that there is not.
    """
    try:
        ranges = [to_range(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--steps cannot be {brief(text)}", "Give numbers, such as 1,2,3 or 1-4.") from None
    known = {step.number for step in STEPS}
    unknown = sorted({end for wanted in ranges for end in (wanted[0], wanted[-1])} - known)
    if unknown:
        raise ConfigError(f"there is no step {', '.join(map(str, unknown))}", f"Steps are 1 to {len(STEPS)}.")
    return tuple(step for step in STEPS if any(step.number in wanted for wanted in ranges))


def run_pipeline(
    config: Config,
    report: Reporter,
    steps: tuple[Step, ...],
    *,
    force: bool = False,
    keep_going: bool = False,
) -> None:
    """Run the steps in order, the folder being locked, and end by saying where the contact sheet is.

    Raises:
        FluxscopeError: a step failed; the later ones were not run, unless `keep_going`.
        RunDirError: another process works in the folder.
    """
    if not keep_going:
        check_layers(config, report, steps)
    with lock_run(config, report):
        _run_in_order(config, report, steps, force, keep_going)


def _run_in_order(
    config: Config, report: Reporter, steps: tuple[Step, ...], force: bool, keep_going: bool
) -> None:
    began = time.monotonic()
    failures: list[FluxscopeError] = []
    run = Context(config, RunDir.of(config), report, force)  # one for all steps: they share its model
    for position, step in enumerate(steps):
        files = RunDir.of(config)
        if step.shared:
            files = RunDir.of(config, files.first_site)
        context = replace(run, files=files)
        try:
            run_step(step, context, STEPS)
        except FluxscopeError as error:
            name_command(error, config, SETTINGS_OF)
            if not keep_going:
                _say_not_run(report, steps[position + 1 :])
                raise
            report.say(f"     failed: {error.message}")
            report.say(f"       {error.hint}")
            failures.append(error)
    if failures:
        raise FluxscopeError(f"{len(failures)} of {len(steps)} steps failed", "The lines above say why.")
    report.say(f"Finished in {time.monotonic() - began:.0f} s: {RunDir.of(config).home}")
    sheet = RunDir.of(config).contact_sheet
    if sheet.is_file():
        report.say(f"Contact sheet: {sheet}")


def check_layers(config: Config, report: Reporter, steps: tuple[Step, ...]) -> None:
    """Find out before the first step that a later one will lack an SAE.

    Raises:
        MissingInputError: a step compares two sites' SAEs, and one isn't set.
    """
    blocks = [block for block in (5, 15) if config.numbered_site(block) not in config.sae_paths]
    missing = [] if len(config.compared_sites) == 2 else blocks or [5]
    for step in steps:
        if step.both_layers and missing:
            _say_not_run(report, steps)
            others = ",".join(str(other.number) for other in steps if not other.both_layers)
            raise MissingInputError(
                f"step {step.number} ({step.name}) compares two SAEs, such as those of blocks 5 and 15, but "
                f"no SAE is set for block {missing[0]}",
                f"Set layer{missing[0]}_sae_path, or saes"
                + (f", or leave step {step.number} out: --steps {others}" if others else "."),
            )


def _say_not_run(report: Reporter, steps: tuple[Step, ...]) -> None:
    if steps:
        report.say(f"Not run: {', '.join(f'{step.number} {step.name}' for step in steps)}")
