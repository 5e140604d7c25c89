"""The command line. Settings become flags from Config's own fields, so that help pages cannot go stale.

This is the one place that catches FluxscopeError and prints it: one line of what, one line of what to do.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from fluxscope import __version__
from fluxscope.commands import steering, training
from fluxscope.commands.options import Force, Quiet
from fluxscope.errors import ConfigError, FluxscopeError
from fluxscope.files import explain_os_error
from fluxscope.progress import Reporter
from fluxscope.quiet import quiet_imports
from fluxscope.settings.config import Config, make_config, settings_table
from fluxscope.settings.load import load_config
from fluxscope.steps.step import Step
from fluxscope.steps.table import STEPS

NO_FLAG = ("patch_size", "patch_grid")
"""Settings that follow from the model or from the picture's size."""

SHORT_NAMES = {"active_layer": "--layer", "saes": "--sae", "steer_steps": "--steps"}
"""Shorter flags, where a command has no option of that name."""

PROFILE_SETTINGS = (
    *("device", "dtype", "batch_size", "sae_device", "token_chunk_size"),
    *("saes", "site_pattern", "layer5_sae_path", "layer15_sae_path"),
    *("height", "width", "num_inference_steps", "guidance_scale", "max_sequence_length"),
    *("target_step_number", "capture_steps"),
)
"""What `steps-profile` depends on beside the run's folder."""

EVERYWHERE = ("out_dir", "model_id", "active_layer", "active_site")
"""Settings that every step takes, beside its own: they say whose files are meant."""

ConfigFile = Annotated[
    Optional[Path],  # noqa: UP045 -- read by typer at run time
    typer.Option("--config", help="Settings file: TOML, or a Python file like interp_scripts/config.py."),
]
Steps = Annotated[str, typer.Option("--steps", help="Steps to run, such as 1,2,3 or 1-4.")]
All = Annotated[bool, typer.Option("--all", help="Run all eleven steps.")]
KeepGoing = Annotated[
    bool, typer.Option("--keep-going", help="After a step that fails, go on with the next.")
]
Pictures = Annotated[
    int, typer.Option("--pictures", min=1, help="How many of the run's pictures to denoise again.")
]
Target = Annotated[Path, typer.Argument(help="Where the converted SAE goes: a file or a folder.")]
Form = Annotated[
    str, typer.Option("--to", help="Format: fluxscope, dictionary_learning, sae_lens or sparsify.")
]
Timestep = Annotated[
    Optional[float],  # noqa: UP045 -- read by typer at run time
    typer.Option(
        "--timestep", help="Where to read an SAE that depends on it (DifFRACT), from 1 (all noise) to 0."
    ),
]
Checkpoint = Annotated[Path, typer.Argument(help="An SAE checkpoint, or the folder of one.")]


def main() -> None:
    """The `fluxscope` command."""
    quiet_imports()
    build_app()()


def script(command: str, kind: type[Config]) -> None:
    """A front door in interp_scripts/: one command, with the settings of the Config class beside it."""
    quiet_imports()
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(commands(kind)[command])
    app(prog_name=Path(sys.argv[0]).name)


def build_app() -> typer.Typer:
    """The whole command line."""
    app = typer.Typer(
        add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
    )

    @app.callback(invoke_without_command=True)
    def fluxscope(
        version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    ) -> None:
        """Look inside FLUX image models with sparse autoencoders."""
        if version:
            print(f"fluxscope {__version__}")
            raise typer.Exit

    for name, command in commands(None).items():
        app.command(name)(command)
    app.command("sae-info")(sae_info)
    app.command("convert")(convert)
    return app


def commands(kind: type[Config] | None) -> dict[str, Callable[..., None]]:
    """Every command that takes settings: `run`, one for each step, and the others.

    Those that look at what a run left take its settings where none are given; `run`, `collect`, `train` and
    `doctor`, which say what is to be made, don't.

    Args:
        kind: the Config class that gives the defaults; None for the package's own and a --config flag.
    """
    made = {"run": with_settings(run, tuple(settings_table()), kind)}
    for step in STEPS:
        command = functools.partial(one_step, step)
        command.__doc__ = f"Step {step.number}: {step.summary}"
        made[step.name] = with_settings(
            command, (*EVERYWHERE, *step.settings), kind, of_run=step.name != "collect"
        )
    made["train"] = with_settings(training.train_saes, training.SETTINGS, kind)
    made["sweep"] = with_settings(training.sweep_saes, training.SETTINGS, kind)
    made["doctor"] = with_settings(doctor, (*EVERYWHERE, *STEPS[0].settings, "clip_model_id"), kind)
    looking: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {
        "steps-profile": (steps_profile, PROFILE_SETTINGS),
        "steer": (steering.steer, steering.SETTINGS),
        "steer-bench": (steering.steer_bench, steering.SETTINGS),
        "steering-sheet": (steering.steering_sheet, steering.SETTINGS),
    }
    for name, (function, settings) in looking.items():
        made[name] = with_settings(function, (*EVERYWHERE, *settings), kind, of_run=True)
    return made


def with_settings(
    function: Callable[..., None], settings: tuple[str, ...], kind: type[Config] | None, of_run: bool = False
) -> Callable[..., None]:
    """Turn function(config, ...) into a command that takes these settings, and its own options, as flags.

    A parameter that is a dataclass stands for its fields: each is a flag of its own.

    Args:
        of_run: settings that aren't given are those of the run in the output folder.
    """
    asked = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name != "config"]
    groups: dict[str, Any] = {p.name: p.annotation for p in asked if is_dataclass(p.annotation)}
    own = [flag for p in asked for flag in (_fields(p.annotation) if p.name in groups else [p])]
    taken = {f"--{p.name.replace('_', '-')}" for p in own}
    if kind is None:
        own.insert(0, _option("config", ConfigFile, None))
    flags = [_flag(name, taken) for name in dict.fromkeys(settings) if name not in NO_FLAG]

    def command(**given: Any) -> None:
        with clear_errors():
            chosen = {flag.name: given.pop(flag.name) for flag in flags}
            chosen = {name: value for name, value in chosen.items() if value not in (None, [])}
            if kind:
                config = make_config(kind, **chosen)
            else:
                config = settings_from(given.pop("config"), of_run, chosen)
            for name, group in groups.items():
                given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
            function(config, **given)

    parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in own] + flags
    command.__doc__ = function.__doc__
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def settings_from(file: Path | None, of_run: bool, flags: dict[str, Any]) -> Config:
    """The settings of a file and flags; with `of_run`, what they leave open is as the run there was made."""
    if not of_run:
        return load_config(file, **flags)
    from fluxscope.run.made_with import load_config_of_run

    return load_config_of_run(file, **flags)


def _option(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _fields(group: type) -> list[inspect.Parameter]:
    """A dataclass's fields as options."""
    return list(inspect.signature(group, eval_str=True).parameters.values())


def _flag(name: str, taken: set[str]) -> inspect.Parameter:
    """The flag of a setting: its name with dashes, its meaning as the help text."""
    field = settings_table()[name]
    kind: Any = list[str] if field.kind is dict else str if field.kind is tuple else field.kind
    dashed = "--" + name.replace("_", "-")
    names = [f"{dashed}/--no-{name.replace('_', '-')}"] if kind is bool else [dashed]
    if name in SHORT_NAMES and SHORT_NAMES[name] not in taken:
        names.append(SHORT_NAMES[name])
    help = field.metadata["help"]
    if "choices" in field.metadata:
        help += f" One of: {', '.join(str(choice) for choice in field.metadata['choices'])}."
    if field.default not in (None, ()):
        default: Any = field.default
        shown = ",".join(f"{n:g}" for n in default) if field.kind is tuple else default
        help += f" [default: {shown}]"
    option = typer.Option(*names, help=help, show_default=False, rich_help_panel="Settings")
    return _option(name, Annotated[Optional[kind], option], None)  # noqa: UP045


@contextmanager
def clear_errors() -> Iterator[None]:
    """Print users' mistakes in two lines and leave with a code that is not 0; ours keep their traceback."""
    try:
        yield
    except FluxscopeError as error:
        _complain(error)
        raise typer.Exit(1) from None
    except OSError as error:
        clear = explain_os_error(error, error.filename or "the output")
        if not isinstance(clear, FluxscopeError):
            raise
        _complain(clear)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print("\nStopped. Finished work is kept.\n  Run the same command again to go on.", file=sys.stderr)
        raise typer.Exit(130) from None


def _complain(error: FluxscopeError) -> None:
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"  {error.hint}", file=sys.stderr)


def run(
    config: Config,
    steps: Steps = "",
    all: All = False,
    keep_going: KeepGoing = False,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Run the pipeline: steps 1-6 and 8, or those asked for."""
    from fluxscope.steps.pipeline import DEFAULT_STEPS, parse_steps, run_pipeline

    if all and steps:
        raise ConfigError("both --all and --steps are given", "Give one of them.")
    wanted = STEPS if all else parse_steps(steps or DEFAULT_STEPS)
    run_pipeline(config, Reporter(quiet), wanted, force=force, keep_going=keep_going)


def one_step(step: Step, config: Config, force: Force = False, quiet: Quiet = False) -> None:
    from fluxscope.steps.pipeline import run_pipeline

    run_pipeline(config, Reporter(quiet), (step,), force=force)


def steps_profile(config: Config, pictures: Pictures = 32, quiet: Quiet = False) -> None:
    """Show when along denoising the features are active.

    Some of the run's pictures are denoised again; at each of --capture-steps (without them, at every step)
    the selected features' activity and the SAE's explained variance are measured, and drawn.
    """
    from fluxscope.commands import profile
    from fluxscope.run.context import Context
    from fluxscope.run.lock import lock_run
    from fluxscope.run.rundir import RunDir

    report = Reporter(quiet)
    with lock_run(config, report):
        report.say(profile.run(Context(config, RunDir.of(config), report), pictures))


def doctor(config: Config) -> None:
    """Say what is here, what a run needs, and what is missing."""
    from fluxscope.commands.doctor import examine

    if not examine(config):
        raise typer.Exit(1)


def sae_info(file: Checkpoint) -> None:
    """Print what an SAE checkpoint holds."""
    from fluxscope.sae.formats import describe

    with clear_errors():
        rows = describe(file)
        width = max(len(label) for label, _ in rows)
        for label, value in rows:
            print(f"{label:<{width}}  {value}")


def convert(
    file: Checkpoint,
    target: Target,
    to: Form = "fluxscope",
    timestep: Timestep = None,
    quiet: Quiet = False,
) -> None:
    """Read an SAE of any known format and write it in another."""
    from fluxscope.sae.formats import load, save

    with clear_errors():
        sae, info = load(file, timestep=timestep)
        written = save(target, sae, info.config, to)
        Reporter(quiet).say(
            f"{info.format} -> {to}: {info.architecture}, {info.input_dim} -> {info.hidden_dim}, {written}"
        )
