"""What a step's declaration of what it reads stands for: files, and their contents as a key holds them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fluxscope.errors import LONGEST_LINE, FluxscopeError, clean
from fluxscope.files import read_json
from fluxscope.run.context import Context
from fluxscope.run.made_with import load_config_of_run
from fluxscope.run.manifest import Manifest
from fluxscope.run.rundir import RunDir
from fluxscope.run.step_log import Key, StepLog, as_json, combined
from fluxscope.settings.config import Config, settings_table

HOW = frozenset(
    (
        *(
            "device",
            "placement",
            "sae_device",
            "clip_device",
            "batch_size",
            "clip_batch_size",
            "token_chunk_size",
        ),
        *("out_dir", "active_site", "active_layer"),
    )
)
"""Settings that say where and in what portions work is done: what comes of it does not depend on them."""

SAES = ("saes", "layer5_sae_path", "layer15_sae_path")
NAMES_OF_FILES = frozenset((*SAES, "sites", "prompts_path"))
"""Settings that name files of the user's: their contents count, and not their names."""

IDENTITY = (
    *("model_id", "dtype", "site_pattern", "height", "width", "num_inference_steps", "guidance_scale"),
    *("max_sequence_length", "target_step_number", "capture_steps", "reps_per_prompt", "base_seed"),
)
"""Settings that decide what pictures and codes a folder holds; one folder holds those of one identity."""

COLLECTED = (
    *IDENTITY,
    *("prompts_path", "max_prompts", "active_site", "active_layer"),
    *("saes", "layer5_sae_path", "layer15_sae_path", "compare_layers", "sites"),
)
"""Settings that say what a collection makes."""


def digest_of(name: str, context: Context, log: StepLog, both_layers: bool = False) -> str | None:
    """The hash of what a step reads under this name; None where nothing is there.

    Args:
        both_layers: what lies there of the two sites that are compared.
    """
    config, files = context.config, context.files
    if name == "prompts":
        return log.digest(Path(config.prompts_path or "").absolute())
    places = [RunDir.of(config, site) for site in config.compared_sites] if both_layers else [files]
    found = [path for place in places for path in paths_of(name, config, place)]
    paths = {files.relative(path): path.absolute() for path in found}  # out_dir may be relative
    if len(paths) == 1:
        return log.digest(next(iter(paths.values())))
    return combined((name, log.digest(path)) for name, path in paths.items()) if paths else None


def paths_of(name: str, config: Config, files: RunDir) -> list[Path]:
    """The files and folders that a step reads under this name.

    "codes" are those of the site at the target step, "pictures" those that the manifest lists;
    every other name is RunDir's.
    """
    if name == "codes":
        return [files.codes / files.site / f"step_{config.target_step_index}"]
    if name == "pictures":
        with suppress(FluxscopeError, OSError):
            manifest = Manifest.read(files.manifest, files.root)
            return [manifest.picture(row) for row in manifest.rows]
        return []
    path: Path = getattr(files, name)
    return [path]


def values_of(config: Config, names: Iterable[str], sites: Iterable[str], log: StepLog) -> Key:
    """The values of settings as a key holds them, with the contents of the files that they name.

    Args:
        sites: those whose SAEs count, where the names hold SAES.
    """
    names = list(names)
    key = {name: as_json(getattr(config, name)) for name in names if name not in HOW | NAMES_OF_FILES}
    if "sites" in names:
        entries = (entry.partition("=") for entry in config.sites)
        key["sites"] = [
            [site, log.digest(Path(path).absolute()) if path else None] for site, _, path in entries
        ]
    if any(name in SAES for name in names):
        paths = {site: config.sae_paths.get(site) for site in sites}
        found = {site: log.digest(Path(path).absolute()) for site, path in paths.items() if path}
        key |= {f"SAE of {site}": digest for site, digest in found.items()}
    return key


def command_for(name: str, files: RunDir, settings: Config | None = None, own: Iterable[str] = ()) -> str:
    """A command that makes what a step makes in this folder, for a user to type.

    It is given every setting that it would not take by itself: step 1 what the folder was collected with, and
    later steps what is in use, where that is not the run's or the default.

    Args:
        settings: those in use; to step 1 they count where the folder does not say what it was collected with.
        own: the settings that the step reads.
    """
    words = ["fluxscope", name]
    if str(files.root) != settings_table()["out_dir"].default:
        words += ["--out-dir", str(files.root)]
    if name == "collect":
        words += _flags(_collected_with(files.run_log) or (vars(settings) if settings else {}))
    elif files.site != files.first_site:
        words += ["--layer", str(files.layer)] if files.numbered else ["--active-site", files.site]
    if name != "collect" and settings:
        taken = load_config_of_run(None, out_dir=str(files.root), active_site=settings.active_site)
        words += _flags(vars(settings), [each for each in own if each not in COLLECTED], taken)
    return shlex.join(words)


def name_command(error: FluxscopeError, config: Config, settings_of: Mapping[str, Iterable[str]]) -> None:
    """Complete the hint of an error that says which steps to run by the commands for this run, to be typed.

    Args:
        settings_of: the settings that each step reads, by its name.
    """
    if not error.redo:
        return
    files, commands = RunDir.of(config), []
    for part in error.redo.split(", "):
        name, *flags = part.split()
        if flags == ["--force"]:
            commands.append(command_to_collect_anew(files.root))
            continue
        words = shlex.split(command_for(name, files, config, settings_of[name]))
        against = {flag.replace("--", "--no-", 1) for flag in flags}
        commands.append(shlex.join([word for word in words if word not in against] + flags))
    error.hint = clean(f"{error.hint.rstrip('.')}: {' && '.join(commands)}", LONGEST_LINE)
    error.redo = ""


def command_to_collect_anew(root: Path) -> str:
    """The command that makes everything of step 1 in this folder anew, with the settings it was made with."""
    flags: list[str] = []
    with suppress(FluxscopeError):
        flags = _flags(_collected_with(root / "run_log.json"))
    return shlex.join(["fluxscope", "collect", "--force", "--out-dir", str(root), *flags])


def _collected_with(run_log: Path) -> dict[str, Any]:
    """The settings that a folder's run_log.json states; none where it states none."""
    found: Any = {}
    with suppress(FluxscopeError, OSError):
        found = read_json(run_log)
    return found if isinstance(found, dict) else {}


def _flags(
    settings: dict[str, Any], names: Iterable[str] = COLLECTED, default: Config | None = None
) -> list[str]:
    """Flags for the settings of these names that are not as in `default`, or else as the model has them."""
    table = settings_table()
    default = default or Config(model_id=settings.get("model_id", table["model_id"].default))
    plain = as_json(vars(default))
    flags = []
    for name in names:
        value, flag = as_json(settings.get(name)), name.replace("_", "-")
        if value is None or value == plain[name]:
            continue
        if isinstance(value, dict):
            value = [f"{site}={path}" for site, path in value.items()]
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags.append(f"--{flag}={','.join(map(str, value)) if isinstance(value, list) else value}")
    return flags
