"""Settings as flags: what turns a function of a Config into a command, and its errors into two clear lines.

Flags are made from Config's own fields, so that help pages cannot go stale. This is the one place that
catches FluxscopeError and prints it: one line of what, one line of what to do.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from fluxscope.errors import FluxscopeError, machine_fault, out_of_memory, ran_out_of_memory
from fluxscope.files import explain_os_error
from fluxscope.progress import tell
from fluxscope.settings.config import Config, make_config, settings_table
from fluxscope.settings.load import load_config

Force = Annotated[bool, typer.Option("--force", help="Make everything anew, even what is up to date.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]
"""Options that several commands share."""

ConfigFile = Annotated[
    Optional[Path],  # noqa: UP045 -- read by typer at run time
    typer.Option("--config", help="Settings file: TOML, or a Python file like interp_scripts/config.py."),
]

NO_FLAG = ("patch_size", "patch_grid")
"""Settings that follow from the model or from the picture's size."""

SHORT_NAMES = {"active_layer": "--layer", "saes": "--sae", "steer_steps": "--denoise-steps"}
"""Shorter or plainer flags for a setting, beside the one with its name."""

OLD_NAMES = {"steer_steps": "--steps"}
"""Flags of the release before, hidden but heard where a command has no option of that name."""


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
    shown = [name for name in dict.fromkeys(settings) if name not in NO_FLAG]
    flags = [_flag(name, taken) for name in shown]
    old = [_old_flag(name) for name in shown if OLD_NAMES.get(name, "") not in ("", *taken)]

    def command(**given: Any) -> None:
        with clear_errors():
            chosen = {flag.name: given.pop(flag.name) for flag in flags}
            for flag in old:
                _hear_old_flag(flag.name.removeprefix("old_"), given.pop(flag.name), chosen)
            chosen = {name: value for name, value in chosen.items() if value not in (None, [])}
            if kind:
                config = make_config(kind, **chosen)
            else:
                config = settings_from(given.pop("config"), of_run, chosen)
            for name, group in groups.items():
                given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
            with whole_hints(config):
                function(config, **given)

    parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in own] + flags + old
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


def _old_flag(name: str) -> inspect.Parameter:
    """The hidden flag by which the release before knew a setting."""
    return _option(f"old_{name}", Annotated[Optional[str], typer.Option(OLD_NAMES[name], hidden=True)], None)  # noqa: UP045


def _hear_old_flag(name: str, value: str | None, chosen: dict[str, Any]) -> None:
    """Take a setting from its old flag, unless the new one is given too, and say what it is called now."""
    if value is not None:
        tell(f"note: {OLD_NAMES[name]} is now {SHORT_NAMES[name]}", error=True)
        if chosen[name] is None:
            chosen[name] = value


@contextmanager
def whole_hints(config: Config) -> Iterator[None]:
    """Name the whole command for this run where an error says only which step to run again."""
    from fluxscope.run.inputs import name_command
    from fluxscope.steps.table import SETTINGS_OF

    try:
        yield
    except FluxscopeError as error:
        name_command(error, config, SETTINGS_OF)
        raise


@contextmanager
def clear_errors() -> Iterator[None]:
    """Print users' mistakes in two lines and leave with a code that is not 0; ours keep their traceback."""
    try:
        yield
    except FluxscopeError as error:
        _complain(error)
        raise SystemExit(1) from None
    except Exception as error:
        fault = _of_the_machine(error)
        if fault is None:
            raise
        _complain(fault)
        raise SystemExit(1) from None


def _of_the_machine(error: Exception) -> FluxscopeError | None:
    """What an error says in two lines that nobody below has explained; None for a mistake of ours."""
    if ran_out_of_memory(error):
        return out_of_memory(error, "doing this")
    if not isinstance(error, OSError):
        return None
    path = error.filename or "the output"
    clear = machine_fault(error, path, "use") or explain_os_error(error, path)
    return clear if isinstance(clear, FluxscopeError) else None


def _complain(error: FluxscopeError) -> None:
    tell(f"error: {error.message}", error=True)
    if error.hint:
        tell(f"  {error.hint}", error=True)
