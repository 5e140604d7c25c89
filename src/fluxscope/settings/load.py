"""Where settings come from. Later ones win: defaults, a file, flags.

What a run in the output folder was made with comes in between where a command asks: `run/made_with.py`.
"""

from __future__ import annotations

import runpy
import tomllib
import traceback
from pathlib import Path
from typing import Any

from fluxscope.errors import ConfigError, FluxscopeError, brief
from fluxscope.settings.config import Config, make_config, overridden, reject_unknown

LARGEST_FILE = 1 << 20


def load_config(path: Path | str | None, **overrides: Any) -> Config:
    """Settings of a file, overridden by flags.

    Args:
        path: a TOML file with the settings' names as keys, a Python file that defines `Config` (it is
            executed: name only files that you trust), or None for the defaults.
        overrides: settings that win over the file's.

    Raises:
        ConfigError: the file is missing, is neither, or holds an unknown or wrong setting.
    """
    if is_python(path):
        assert path is not None
        return make_config(config_class(Path(path)), **overrides)
    return make_config(**given(path, **overrides))


def is_python(path: Path | str | None) -> bool:
    """Whether a settings file is Python, and so says everything."""
    return path is not None and Path(path).suffix == ".py"


def given(path: Path | str | None, **overrides: Any) -> dict[str, Any]:
    """What a TOML file, if one is named, and flags say, without what neither of them does."""
    settings = overridden(_toml(_existing(Path(path))) if path is not None else {}, overrides)
    reject_unknown(settings)
    return settings


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ConfigError(f"settings file not found: {path}", "Check the path given with --config.")
    if path.stat().st_size > LARGEST_FILE:
        raise ConfigError(f"{path} is too large to be a file of settings", "Check the path.")
    return path


def _toml(path: Path) -> dict[str, Any]:
    if path.suffix != ".toml":
        raise ConfigError(
            f"{path} is neither a .toml nor a .py file", "Give a file of one of these two kinds."
        )
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply", "Settings are numbers, texts and lists.") from None
    except ValueError as error:  # wrong TOML, no UTF-8, a number of thousands of digits
        raise ConfigError(f"{path} is not valid TOML: {error}", "Mend that line.") from None


def config_class(path: Path) -> type[Config]:
    """The Config class of a Python settings file, which is executed.

    Raises:
        ConfigError: the file is missing, fails, or defines no Config.
    """
    try:
        kind = runpy.run_path(str(_existing(path))).get("Config")
    except FluxscopeError:
        raise
    except (Exception, SystemExit) as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
        where = f"line {line} of {path}" if line else str(path)
        raise ConfigError(f"{where} fails: {type(error).__name__}: {brief(str(error))}", "Mend it.") from None
    if not (isinstance(kind, type) and issubclass(kind, Config)):
        raise ConfigError(f"{path} defines no Config", "Start from interp_scripts/config.py.")
    return kind
