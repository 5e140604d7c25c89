"""Where settings come from. Later ones win: defaults, the run in the output folder, a file, flags."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

from fluxscope.errors import ConfigError
from fluxscope.files import read_json
from fluxscope.run.rundir import RunDir
from fluxscope.settings.config import Config, make_config, reject_unknown, settings_table

OF_A_RUN = ("layer5_sae_path", "layer15_sae_path", "images_subdir", "overlays_subdir")
"""Settings of a run that do not tell one run from another, but are needed to go on with it."""


def load_config(path: Path | str | None, *, of_run: bool = False, **overrides: Any) -> Config:
    """Settings of a file, overridden by flags.

    Args:
        path: a TOML file with the settings' names as keys, a Python file that defines `Config` (it is
            executed: name only files that you trust), or None for the defaults.
        of_run: what neither says is as the run in the output folder was made, if there is one. A Python
            file says everything.
        overrides: settings that win over the file's.

    Raises:
        ConfigError: the file is missing, is neither, or holds an unknown or wrong setting.
    """
    path = Path(path) if path is not None else None
    if path is not None and not path.is_file():
        raise ConfigError(f"settings file not found: {path}", "Check the path given with --config.")
    if path is not None and path.suffix == ".py":
        return make_config(_config_class(path), **overrides)
    given = {**(_toml(path) if path is not None else {}), **overrides}
    return make_config(**{**(_settings_of_run(given) if of_run else {}), **given})


def _toml(path: Path) -> dict[str, Any]:
    if path.suffix != ".toml":
        raise ConfigError(
            f"{path} is neither a .toml nor a .py file", "Give a file of one of these two kinds."
        )
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}", "Mend that line.") from None


def _config_class(path: Path) -> type[Config]:
    import runpy

    kind = runpy.run_path(str(path)).get("Config")
    if not (isinstance(kind, type) and issubclass(kind, Config)):
        raise ConfigError(f"{path} defines no Config", "Start from interp_scripts/config.py.")
    reject_unknown(each.name for each in dataclasses.fields(kind))
    return kind


def _settings_of_run(given: dict[str, Any]) -> dict[str, Any]:
    """What the run in the output folder was made with; nothing where there is none, or of another model.

    Only runs of ours record an identity: those of other programs are read with the settings given.
    """
    folder = given.get("out_dir", settings_table()["out_dir"].default)
    log = RunDir(Path(folder), layer=0, first_layer=0).run_log
    recorded = read_json(log) if log.is_file() else {}
    identity = recorded.get("identity", {})
    if not identity or given.get("model_id", identity["model_id"]) != identity["model_id"]:
        return {}
    known = {name: value for name, value in identity.items() if name in settings_table()}
    known |= {name: recorded[name] for name in OF_A_RUN if name in recorded}
    known["active_layer"] = recorded["layer_index"]
    known.pop("capture_steps", None)  # to the commands after the first step it says which steps to look at
    return known
