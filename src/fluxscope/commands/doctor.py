"""What is here, what a run with these settings will need, and what is missing; nothing is fetched to tell."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fluxscope.errors import FluxscopeError
from fluxscope.models.families.family import check_weights
from fluxscope.models.here import folder_here, missing_of_clip, missing_of_pipeline
from fluxscope.models.model import open_model
from fluxscope.models.placement import Placement, pick_device, pick_dtype, pick_placement
from fluxscope.models.spec import ModelSpec
from fluxscope.progress import tell
from fluxscope.run.context import picture_spec
from fluxscope.run.jobs import plan_jobs
from fluxscope.run.rundir import RunDir
from fluxscope.sae.formats import SaeInfo, load
from fluxscope.sae.formats.hub import resolve as local_path
from fluxscope.settings.config import Config
from fluxscope.shapes.shipped import VERSION, resolve

GIB = 2**30
FLUX_TEXT_ENCODERS = 9.2 * GIB
"""Bytes of FLUX.1's T5 and CLIP in bfloat16."""


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        what, found: the label and what was found.
        mend: the command or setting that mends it; empty when nothing is wrong.
    """

    what: str
    found: str
    mend: str = ""


def examine(config: Config) -> bool:
    """Print the report; returns whether a run can start."""
    saes = find_saes(config)
    spec, model = find_model(config)
    sections = {
        "Here": [
            *find_machine(config),
            model,
            *(finding for finding, _ in saes.values()),
            find_clip(config),
            find_lpips(),
        ],
        "A run with these settings": needs_of(config, spec, {site: info for site, (_, info) in saes.items()}),
    }
    findings = [finding for rows in sections.values() for finding in rows]
    width = max(len(finding.what) for finding in findings)
    for title, rows in sections.items():
        tell(title)
        for row in rows:
            tell(f"  {row.what:<{width}}  {row.found}")
    missing = [finding for finding in findings if finding.mend]
    tell("Missing" if missing else "Nothing is missing.")
    for finding in missing:
        tell(f"  {finding.what}: {finding.mend}")
    return not missing


def find_machine(config: Config) -> list[Finding]:
    device = pick_device(config.device)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    where = f"{device}, {str(pick_dtype(config.dtype, device)).removeprefix('torch.')}"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        where += f", {properties.name}, {properties.total_memory / GIB:.0f} GiB"
    versions = [
        f"{name} {importlib.metadata.version(name)}" for name in ("torch", "diffusers", "transformers")
    ]
    return [
        Finding("fluxscope", f"{VERSION}, Python {platform.python_version()}"),
        Finding("libraries", ", ".join(versions)),
        Finding("device", where),
        Finding("memory", f"{memory / GIB:.0f} GiB, {torch.get_num_threads()} threads"),
    ]


def find_model(config: Config) -> tuple[ModelSpec | None, Finding]:
    """The model's shape, where its config is here, and whether its files are."""
    folder = folder_here(config.model_id)
    if folder is None:
        return None, not_here("model", config.model_id)
    try:
        spec = open_model(str(folder), config.device, config.dtype).spec
        missing = missing_of_pipeline(folder)
        check_weights(folder)
    except FluxscopeError as error:
        return None, Finding("model", f"{config.model_id}: {error.message}", error.hint)
    if missing:
        return spec, incomplete("model", config.model_id, folder, missing)
    blocks = f"{spec.n_double} double and {spec.n_single} single blocks of width {spec.width}"
    return spec, Finding("model", f"{config.model_id}: {blocks}")


def not_here(what: str, name: str) -> Finding:
    """The finding of a model of which there is nothing."""
    return Finding(what, f"{name} is not here", mend_of(name))


def incomplete(what: str, name: str, folder: Path, missing: Sequence[str]) -> Finding:
    """The finding of a model of which files are missing."""
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    return Finding(what, f"{name}: {folder} lacks {', '.join(missing[:3])}{more}", mend_of(name))


def mend_of(name: str) -> str:
    """What to do about a model whose files are not here."""
    if resolve(name) != name:
        return "install fluxscope again: it ships with it"
    if Path(name).exists() or name.count("/") != 1 or name.startswith((".", "/")):
        return "copy or download the whole folder again, and see to the setting's path"
    return f"hf download {name}"


def find_saes(config: Config) -> dict[str, tuple[Finding, SaeInfo | None]]:
    """What there is of each site's SAE."""
    found: dict[str, tuple[Finding, SaeInfo | None]] = {}
    for site, path in config.sae_paths.items():
        what = f"SAE of {RunDir.of(config, site).name}"
        try:
            _, info = load(local_path(path, fetch=False))
        except FluxscopeError as error:
            found[site] = Finding(what, error.message, error.hint), None
            continue
        k = f", k = {info.k}" if info.k else ""
        found[site] = (
            Finding(what, f"{info.architecture}, {info.input_dim} -> {info.hidden_dim}{k}: {path}"),
            info,
        )
    if config.site not in found:
        numbered = config.number_of(config.site)
        mend = f"set layer{numbered}_sae_path, or saes" if numbered else "set saes"
        found[config.site] = Finding(f"SAE of {RunDir.of(config).name}", "not set", mend), None
    return found


def find_clip(config: Config) -> Finding:
    """Whether CLIP's files are here, weights too."""
    name = config.clip_model_id
    assert name is not None
    folder = folder_here(name)
    if folder is None:
        return not_here("CLIP", name)
    try:
        missing = missing_of_clip(folder)
        check_weights(folder)
    except FluxscopeError as error:
        return Finding("CLIP", f"{name}: {error.message}", error.hint)
    return incomplete("CLIP", name, folder, missing) if missing else Finding("CLIP", name)


def find_lpips() -> Finding:
    """LPIPS is optional: without it steering distances use CLIP, so it is never missing."""
    if importlib.util.find_spec("lpips"):
        return Finding("LPIPS", "installed")
    return Finding("LPIPS", "not installed; distances use CLIP (optional: pip install 'fluxscope[lpips]')")


def needs_of(config: Config, spec: ModelSpec | None, saes: dict[str, SaeInfo | None]) -> list[Finding]:
    """Pictures, transformer calls, memory by phase and disk."""
    try:
        jobs = plan_jobs(config)
    except FluxscopeError as error:
        return [Finding("prompts", error.message, error.hint)]
    batch = config.batch_size or 1
    calls = math.ceil(len(jobs) / batch) * picture_spec(config).steps
    infos = [info for site, info in saes.items() if info and site in config.collected_sites]
    try:
        infos += [load(local_path(path, fetch=False))[1] for _, path in further_sites(config) if path]
    except FluxscopeError as error:
        return [Finding("sites", error.message, error.hint)]
    width = spec.width if spec else 0
    rows = [
        Finding(
            "pictures",
            f"{len(jobs)} of {config.height} x {config.width} pixels, {config.n_image_tokens} tokens",
        ),
        Finding("transformer calls", f"{calls} of batch {batch}"),
    ]
    if spec:
        rows.append(memory_need(config, spec, infos))
    return [*rows, disk_need(config, len(jobs), infos, width)]


def further_sites(config: Config) -> list[tuple[str, str]]:
    """Name and SAE of each of `sites`; no SAE where raw activations are kept."""
    return [(name, path) for name, _, path in (entry.partition("=") for entry in config.sites)]


def memory_need(config: Config, spec: ModelSpec, saes: list[SaeInfo]) -> Finding:
    """Memory of the largest phase: prompts, then pictures, each part where the placement has it."""
    device = pick_device(config.device)
    size = pick_dtype(config.dtype, device).itemsize
    transformer = spec.parameters * size
    placement = pick_placement(Placement(config.placement), device, transformer)
    dictionaries = sum(2 * info.input_dim * info.hidden_dim * 4 for info in saes)
    tokens = (config.n_image_tokens + (config.max_sequence_length or 0)) * (config.batch_size or 1)
    activations = tokens * spec.width * size * 24  # one block's tensors, live at a time
    encoding = FLUX_TEXT_ENCODERS * size / 2 if spec.text_width == 4096 else 0.01 * GIB
    if placement is Placement.OFFLOAD:  # a block computes while the next one comes
        transformer = min(transformer, 2 * transformer // max(1, spec.n_double))
    stays = encoding if placement is Placement.RESIDENT else 0.0
    denoising = transformer + dictionaries + activations + stays
    text = (
        f"prompts {encoding / GIB:.2f} GiB, then pictures {denoising / GIB:.2f} GiB on {device}, {placement}"
    )
    if device.type == "cuda" and max(encoding, denoising) > torch.cuda.mem_get_info(device)[1]:
        return Finding("memory by phase", text, "a larger GPU is needed, or a smaller --batch-size")
    return Finding("memory by phase", text)


def disk_need(config: Config, pictures: int, saes: list[SaeInfo], width: int) -> Finding:
    """Disk for pictures, S, codes and raw activations, against what is free.

    Args:
        width: of an activation.
    """
    assert config.height is not None and config.width is not None
    png = pictures * config.height * config.width * 2
    per_token = [8 * (info.k or info.hidden_dim // 20) for info in saes]
    per_token += [2 * width for _, path in further_sites(config) if not path]
    steps = len(config.captured_step_indices)
    codes = pictures * max(config.n_image_tokens, config.max_sequence_length or 0) * sum(per_token) * steps
    s = sum(pictures * info.hidden_dim * 4 for info in saes)
    need = png + codes + s
    folder = Path(config.out_dir).resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    text = f"up to {need / 2**20:.0f} MiB; {free / GIB:.0f} GiB are free"
    return Finding(
        "disk", text, "" if free > need else f"free {need / GIB:.1f} GiB, or choose another --out-dir"
    )
