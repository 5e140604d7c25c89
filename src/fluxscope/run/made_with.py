"""The settings that a run was made with: what later commands take where nothing else is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fluxscope.files import read_json
from fluxscope.run.records import RunLog
from fluxscope.settings.config import Config, make_config, overridden, settings_table
from fluxscope.settings.load import given, is_python, load_config
from fluxscope.settings.saes import NUMBERED_BLOCKS

OF_A_RUN = ("layer5_sae_path", "layer15_sae_path", "compare", "images_subdir", "overlays_subdir")
"""Settings of a run that do not tell one run from another, but are needed to go on with it."""


def load_config_of_run(path: Path | str | None, **overrides: Any) -> Config:
    """As `load_config`, but what neither file nor flags say is as the run in the output folder was made.

    A Python file says everything.
    """
    if is_python(path):
        return load_config(path, **overrides)
    said = given(path, **overrides)
    return make_config(**overridden(settings_of_run(said), said))


def settings_of_run(said: dict[str, Any]) -> dict[str, Any]:
    """What the run in the output folder was made with; nothing where there is none, or of another model.

    Only runs of ours record an identity: those of other programs are read with the settings given, and where
    these say nothing of it, as of the block that the run names.
    """
    folder = said.get("out_dir", settings_table()["out_dir"].default)
    log = Path(folder) / "run_log.json"
    if not log.is_file():
        return {}
    if not is_ours(log):
        return block_of_theirs(read_json(log), said)
    recorded = RunLog.read(log)
    identity = recorded.identity or {}
    made_by = identity.get("model_id")
    if made_by is None or said.get("model_id", made_by) != made_by:
        return {}
    known = {name: value for name, value in identity.items() if name in settings_table()}
    known |= {name: value for name, value in recorded.settings.items() if name in OF_A_RUN}
    if recorded.layer_index is not None:
        known["active_layer"] = recorded.layer_index
    known |= sites_of_run(Path(folder), recorded)
    if "saes" in said:
        known.pop("compare", None)  # it names sites of the run
    known.pop("capture_steps", None)  # to the commands after the first step it says which steps to look at
    return known


def sites_of_run(folder: Path, recorded: RunLog) -> dict[str, Any]:
    """The SAEs that a run has by their sites, those collected later too; nothing where it has none."""
    logs = [recorded, *(RunLog.read(log) for log in sorted(folder.glob("*/run_log.json")))]
    saes = {site: path for log in logs for site, path in log.saes.items()}
    return {"saes": saes, "active_site": recorded.site} if saes else {}


def block_of_theirs(recorded: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    """The block that a run of another program is about, unless the settings given say which."""
    block = recorded.get("layer_index")
    said_which = not {"saes", "active_site", "active_layer"}.isdisjoint(said)
    return {} if said_which or block not in NUMBERED_BLOCKS else {"active_layer": block}


def is_ours(log: Path) -> bool:
    """Whether a run_log.json records an identity, as runs of other programs don't."""
    found = read_json(log)
    return not isinstance(found, dict) or bool(found.get("identity"))
