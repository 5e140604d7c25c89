"""The list of commands."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from fluxscope.commands import atlas, benchmarks, checkpoints, pipeline, reports, steering, training
from fluxscope.commands.flags import clear_errors, with_settings
from fluxscope.progress import quiet_imports, tell
from fluxscope.settings.config import Config, settings_table
from fluxscope.settings.load import config_class
from fluxscope.shapes.shipped import VERSION
from fluxscope.steps.table import STEPS

EVERYWHERE = ("out_dir", "model_id", "active_layer", "active_site")
"""Settings that every step takes, beside its own: they say whose files are meant."""


def build_app() -> typer.Typer:
    """The whole command line."""
    quiet_imports()
    app = typer.Typer(
        add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
    )

    @app.callback(invoke_without_command=True)
    def fluxscope(
        version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    ) -> None:
        """Look inside FLUX image models with sparse autoencoders."""
        if version:
            tell(f"fluxscope {VERSION}")
            raise typer.Exit

    for name, command in commands(None).items():
        app.command(name)(command)
    app.command("sae-info")(checkpoints.sae_info)
    app.command("convert")(checkpoints.convert)
    return app


def script(command: str, settings: Path) -> None:
    """A front door in interp_scripts/: one command, with the Config class of the file beside it."""
    quiet_imports()
    with clear_errors():
        kind = config_class(settings)
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(commands(kind)[command])
    app(prog_name=Path(sys.argv[0]).name)


def commands(kind: type[Config] | None) -> dict[str, Callable[..., None]]:
    """Every command that takes settings: `run`, one for each step, and the others.

    Those that look at what a run left take its settings where none are given; `run`, `collect`, `train` and
    `doctor`, which say what is to be made, don't.

    Args:
        kind: the Config class that gives the defaults; None for the package's own and a --config flag.
    """
    made = {"run": with_settings(pipeline.run_steps, tuple(settings_table()), kind)}
    for step in STEPS:
        command = functools.partial(pipeline.run_one_step, step)
        command.__doc__ = f"Step {step.number}: {step.summary}"
        made[step.name] = with_settings(
            command, (*EVERYWHERE, *step.settings), kind, of_run=step.name != "collect"
        )
    made["train"] = with_settings(training.train_saes, training.SETTINGS, kind)
    made["sweep"] = with_settings(training.sweep_saes, training.SETTINGS, kind)
    made["truth"] = with_settings(benchmarks.truth, benchmarks.SETTINGS, kind)
    made["doctor"] = with_settings(reports.doctor, (*EVERYWHERE, *STEPS[0].settings, "clip_model_id"), kind)
    looking: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {
        "atlas": (atlas.atlas, atlas.SETTINGS),
        "site-map": (reports.site_map, reports.SITE_MAP_SETTINGS),
        "name": (reports.name, reports.NAME_SETTINGS),
        "steps-profile": (reports.steps_profile, reports.PROFILE_SETTINGS),
        "steer": (steering.steer, steering.SETTINGS),
        "edit": (steering.edit, steering.SETTINGS),
        "steer-bench": (steering.steer_bench, steering.BENCH_SETTINGS),
        "steering-sheet": (steering.steering_sheet, steering.SETTINGS),
    }
    for name, (function, settings) in looking.items():
        made[name] = with_settings(function, (*EVERYWHERE, *settings), kind, of_run=True)
    return made
