"""`fluxscope run`, and one command for each step."""

from __future__ import annotations

from typing import Annotated

import typer

from fluxscope.commands.flags import Force, Quiet
from fluxscope.errors import ConfigError
from fluxscope.progress import Reporter
from fluxscope.settings.config import Config
from fluxscope.steps.step import Step
from fluxscope.steps.table import STEPS

Steps = Annotated[str, typer.Option("--steps", help="Steps of the pipeline to run, such as 1,2,3 or 1-4.")]
All = Annotated[bool, typer.Option("--all", help="Run all eleven steps.")]
KeepGoing = Annotated[
    bool, typer.Option("--keep-going", help="After a step that fails, go on with the next.")
]


def run_steps(
    config: Config,
    steps: Steps = "",
    all: All = False,
    keep_going: KeepGoing = False,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Run the pipeline: steps 1-6 and 8, or those asked for."""
    from fluxscope.steps.pipeline import DEFAULT_STEPS, parse_pipeline_steps, run_pipeline

    if all and steps:
        raise ConfigError("both --all and --steps are given", "Give one of them.")
    wanted = STEPS if all else parse_pipeline_steps(steps or DEFAULT_STEPS)
    run_pipeline(config, Reporter(quiet), wanted, force=force, keep_going=keep_going)


def run_one_step(step: Step, config: Config, force: Force = False, quiet: Quiet = False) -> None:
    from fluxscope.steps.pipeline import run_pipeline

    run_pipeline(config, Reporter(quiet), (step,), force=force)
