"""Running several steps in order."""

from __future__ import annotations

import time

from fluxscope.config import Config
from fluxscope.errors import ConfigError, FluxscopeError
from fluxscope.progress import Reporter
from fluxscope.rundir import RunDir
from fluxscope.steps.step import Context, Step, run_step
from fluxscope.steps.table import STEPS

DEFAULT_STEPS = "1-6,8"
"""What a run without --steps or --all does."""


def parse_steps(text: str) -> tuple[Step, ...]:
    """The steps of a list such as "1,2,3" or "1-4,8", in order.

    Raises:
        ConfigError: it is no such list, or names a step that there is not.
    """
    numbers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ConfigError(f"--steps cannot be {text!r}", "Give numbers, such as 1,2,3 or 1-4.")
        numbers.update(range(int(first), int(last if dash else first) + 1))
    unknown = sorted(numbers - {step.number for step in STEPS})
    if unknown or not numbers:
        raise ConfigError(f"there is no step {', '.join(map(str, unknown))}", f"Steps are 1 to {len(STEPS)}.")
    return tuple(step for step in STEPS if step.number in numbers)


def run_pipeline(
    config: Config,
    report: Reporter,
    steps: tuple[Step, ...],
    *,
    force: bool = False,
    keep_going: bool = False,
) -> None:
    """Run the steps in order and end by saying where the contact sheet is.

    Raises:
        FluxscopeError: a step failed; the later ones were not run, unless `keep_going`.
    """
    began = time.monotonic()
    failures: list[FluxscopeError] = []
    for position, step in enumerate(steps):
        files = RunDir.of(config)
        if step.shared:
            files = RunDir.of(config, files.first_layer)
        context = Context(config, files, report, force)
        try:
            run_step(step, context, STEPS)
        except FluxscopeError as error:
            if not keep_going:
                _say_not_run(report, steps[position + 1 :])
                raise
            report.say(f"     failed: {error.message}")
            failures.append(error)
    if failures:
        raise FluxscopeError(f"{len(failures)} of {len(steps)} steps failed", "The lines above say why.")
    report.say(f"Finished in {time.monotonic() - began:.0f} s: {RunDir.of(config).home}")
    sheet = RunDir.of(config).contact_sheet
    if sheet.is_file():
        report.say(f"Contact sheet: {sheet}")


def _say_not_run(report: Reporter, steps: tuple[Step, ...]) -> None:
    if steps:
        report.say(f"Not run: {', '.join(f'{step.number} {step.name}' for step in steps)}")
