"""The lasting side of a collection: whose folder it is, how far it came, and what it ends with.

A target is one site with an SAE that is collected: its codes on disk, its files. Everything that can be
wrong with settings, checkpoints or the folder is found here, before anything is generated.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import platform
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fluxscope.errors import ConfigError, FluxscopeError, RunDirError
from fluxscope.files import atomic_write, numbered_jsonl
from fluxscope.models.placement import pick_device, pick_dtype
from fluxscope.models.sites import parse_site
from fluxscope.models.spec import ModelSpec
from fluxscope.run.activations import identity_of
from fluxscope.run.codes import CodeStore
from fluxscope.run.context import picture_spec
from fluxscope.run.freshness import differences
from fluxscope.run.inputs import IDENTITY, values_of
from fluxscope.run.jobs import Job
from fluxscope.run.manifest import ListedPicture, ManifestRow
from fluxscope.run.recorders import Recorder, check_width, load_further, open_recorder, used_elsewhere
from fluxscope.run.records import RunLog
from fluxscope.run.rundir import RunDir
from fluxscope.run.step_log import StepLog
from fluxscope.run.strict_json import Place
from fluxscope.sae.base import LinearSae
from fluxscope.sae.formats import SaeInfo, load, odd_sparsity
from fluxscope.settings.config import Config
from fluxscope.shapes.shipped import VERSION

OF_A_SITE = ("site_pattern", "target_step_number", "capture_steps", "sae_sha256")
"""What may differ from one site of a folder to another: the pictures do not depend on it."""

PICTURE_NAME = re.compile(r"img_([0-9]{6,})_p([0-9]{4,})_r([0-9]+)_seed([0-9]+)\.png")


@dataclass(frozen=True)
class Target:
    """One site to collect: its recorder, its SAE's record, its files."""

    recorder: Recorder
    sae: LinearSae
    info: SaeInfo
    files: RunDir
    sae_hash: str

    def cautions(self) -> tuple[str, ...]:
        """What must be known of its SAE: what its file says, and an L0 on these pictures far from its k."""
        store = next(iter(self.recorder.stores.values()))
        assert isinstance(store, CodeStore)
        n_tokens = max(1, store.n_images * store.n_tokens)
        return self.info.cautions + odd_sparsity(store.nnz / n_tokens, self.info.config, "these pictures")


@dataclass(frozen=True)
class Collection:
    """Everything that one pass collects.

    Attributes:
        targets: the sites with an SAE, the one that the run is about first.
        further: other sites.
        warnings: what the user should know of the SAEs.
    """

    targets: list[Target]
    further: list[Recorder]
    warnings: list[str]

    @property
    def recorders(self) -> list[Recorder]:
        return [*(target.recorder for target in self.targets), *self.further]

    @property
    def done(self) -> int:
        """Pictures of which everything is committed."""
        return min(recorder.done for recorder in self.recorders)

    def write_indexes(self) -> None:
        """Write every store of codes once more by feature; those that are written so stay."""
        for recorder in self.recorders:
            for store in recorder.stores.values():
                if isinstance(store, CodeStore):
                    store.write_index()


def open_collection(
    config: Config, spec: ModelSpec, jobs: list[Job], device: torch.device, force: bool = False
) -> Collection:
    """Check everything, load the SAEs and open their stores, each cut back to its last commit.

    Args:
        spec: the model's shape.
        force: clear the folder first, but not before everything has been found right.

    Raises:
        CheckpointError: an SAE is missing, damaged, or of another width than its site.
        ConfigError: the model lacks a site.
        RunDirError: the folder belongs to other settings.
    """
    saes = {site: load_sae_for(config, site, spec, device) for site in config.collected_sites}
    others = load_further(config, spec, device, taken=set(saes))
    hashes = {site: info.sha256() for site, (_, info) in saes.items()}
    if force:
        clear(config)
    check_folder(config, jobs, hashes)
    pictures = picture_identity(config, jobs)
    targets = []
    for site, (sae, info) in saes.items():
        files = RunDir.of(config, site)
        committed = repair_manifest(files, config.batch_size or 1, len(jobs))
        recorder = open_recorder(config, spec, parse_site(site), sae, committed, pictures)
        if recorder.done < committed:
            raise RunDirError(
                f"{files.manifest} lists {committed} images, but the codes of {recorder.done} are stored",
                "The folder's files do not fit together. Collect anew.",
                redo="collect --force",
            )
        target = Target(recorder, sae, info, files, hashes[site])
        write_run_log(config, target, jobs, completed=recorder.done, seconds=0.0)
        targets.append(target)
    done = targets[0].recorder.done
    further = [open_recorder(config, spec, place, sae, done, pictures) for place, sae, _ in others]
    places = [(target.recorder.site, target.info) for target in targets]
    places += [(place, info) for place, _, info in others if info]
    warnings = [words for place, info in places if (words := used_elsewhere(config, place, info))]
    return Collection(targets, further, warnings)


def load_sae_for(
    config: Config, site: str, spec: ModelSpec, device: torch.device
) -> tuple[LinearSae, SaeInfo]:
    """Load a site's SAE and see whether the model has the site, and in its width.

    Raises:
        CheckpointError: the SAE is missing, damaged, or of another width.
        ConfigError: no SAE is set, or the model lacks the site, or it has no image tokens.
    """
    path, place = config.sae_path(site), parse_site(site)
    spec.check_site(place)
    if place.kind.stream != "image":
        raise ConfigError(
            f"{site} has text tokens, and maps of features are drawn over image tokens",
            f"To keep the codes of such a site beside a run, give --sites {site}={path}.",
        )
    sae, info = load(path, device)
    check_width(config, site, path, sae, spec)
    return sae, info


def check_folder(config: Config, jobs: list[Job], sae_hashes: dict[str, str]) -> None:
    """Refuse a folder whose pictures or codes were made with other settings, prompts or SAEs."""
    for site in config.collected_sites:
        files = RunDir.of(config, site)
        own = files.run_log.is_file()
        log = files.run_log if own else files.root / files.run_log.name  # new sites must fit the pictures
        if not log.is_file():
            continue
        old, new = RunLog.read(log).identity or {}, identity(config, jobs, sae_hashes[site])
        for name, before, now in differences(old, new):
            if name in old and name in new and (own or name not in OF_A_SITE):
                raise RunDirError(
                    f"{config.out_dir} was made with {in_words(files.name, name, before, now)}",
                    "Give what it was made with, choose a new folder with --out-dir, or make this one anew "
                    "with --force.",
                )


def in_words(site: str, name: str, old: Any, new: Any) -> str:
    """What differs, for the user: hashes say nothing."""
    words = {"prompts_sha256": "other prompts", "sae_sha256": f"another SAE of {site}"}
    return words.get(name, f"{name} = {old}, not {new}")


def identity(config: Config, jobs: list[Job], sae_hash: str) -> dict[str, Any]:
    """What decides which pictures and codes a site's files hold."""
    prompts = "\n".join(job.prompt for job in jobs)
    return values_of(config, IDENTITY, (), StepLog(RunDir.of(config).step_log)) | {
        "num_images": len(jobs),
        "prompts_sha256": hashlib.sha256(prompts.encode()).hexdigest(),
        "sae_sha256": sae_hash,
    }


def picture_identity(config: Config, jobs: list[Job]) -> dict[str, Any]:
    """What decides the activations of a site and step, for the stores that keep them raw."""
    assert config.max_sequence_length is not None
    return identity_of(
        config.model_id,
        pick_dtype(config.dtype, pick_device(config.device)),
        picture_spec(config),
        config.max_sequence_length,
        [job.prompt for job in jobs],
        [job.seed for job in jobs],
    )


def repair_manifest(files: RunDir, batch_size: int, wanted: int) -> int:
    """Cut a manifest back to whole batches and return how many pictures it lists.

    A killed writer can leave part of a batch's lines, the last of them cut short. Then the whole batch is
    made again, so that its pictures come from a batch of the same size as in an uninterrupted run.

    Args:
        wanted: pictures of the whole collection, whose last batch may be smaller.

    Raises:
        RecordError: a whole line is none of a manifest.
    """
    path = files.manifest
    if not path.is_file():
        return 0
    rows = sum(1 for _ in ManifestRow.read_lines(path, files.root))
    lines = path.read_bytes().splitlines(keepends=True)
    torn = bool(lines) and not lines[-1].endswith(b"\n")
    if torn or (rows < wanted and rows % batch_size):
        rows = rows // batch_size * batch_size
        os.truncate(path, sum(len(line) for line in lines[:rows]))
    return rows


def clear(config: Config) -> None:
    """Take away what an earlier collection left in the folder, commit records first."""
    root = RunDir.of(config)
    homes = root.homes  # looked up before their logs are taken away
    pictures = [*listed_pictures(root, homes), *unlisted_pictures(root)]
    for home in homes:
        for name in (root.manifest.name, root.s_matrix.name):
            (home / name).unlink(missing_ok=True)
    # The last is what an earlier version wrote.
    for kept in (root.codes, root.activations, root.root / "activations.zarr"):
        shutil.rmtree(kept, ignore_errors=True)
    for picture in pictures:
        picture.unlink(missing_ok=True)
    for home in homes:
        (home / root.run_log.name).unlink(missing_ok=True)


def listed_pictures(root: RunDir, homes: Sequence[Path]) -> list[Path]:
    """The pictures of an earlier collection: those that its manifests list and that have a picture's name.

    Others in the same folder are someone's own. Lines that are none of a manifest list nothing.
    """
    found = []
    for manifest in (home / root.manifest.name for home in homes):
        lines = numbered_jsonl(manifest) if manifest.is_file() else ()
        with contextlib.suppress(FluxscopeError):  # from a broken line on, nothing is known
            for number, line in lines:
                listed = ListedPicture.from_json(line, Place(manifest, root.root, number))
                path = root.root / listed.image_path
                if PICTURE_NAME.fullmatch(path.name):
                    found.append(path)
    return found


def unlisted_pictures(root: RunDir) -> list[Path]:
    """Pictures that a killed run made and did not come to list: those whose name its run_log.json says."""
    with contextlib.suppress(FluxscopeError, OSError):
        identity = RunLog.read(root.run_log).identity or {}
        reps, base, n = (identity.get(name) for name in ("reps_per_prompt", "base_seed", "num_images"))
        if isinstance(reps, int) and isinstance(base, int) and isinstance(n, int):
            found = [(path, PICTURE_NAME.fullmatch(path.name)) for path in root.images.iterdir()]
            return [
                path
                for path, name in found
                if name and (number := int(name[1])) < n
                if (int(name[2]) * reps + int(name[3]), int(name[4])) == (number, base + number)
            ]
    return []


def write_s_matrix(target: Target, images_per_block: int = 64) -> None:
    """Write S[i, f], the largest code of feature f over the tokens of image i, from the stored codes."""
    store = next(iter(target.recorder.stores.values()))
    assert isinstance(store, CodeStore)
    with atomic_write(target.files.s_matrix) as file:
        shape = (store.n_images, store.n_features)
        header = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)),
            "fortran_order": False,
            "shape": shape,
        }
        np.lib.format.write_array_header_1_0(file, header)
        for _, codes in store.blocks(images_per_block):
            file.write(codes.max_over_tokens(store.n_tokens).numpy().tobytes())


def write_run_log(config: Config, target: Target, jobs: list[Job], completed: int, seconds: float) -> None:
    """Write run_log.json: settings, checkpoint, versions, and how far the collection is."""
    path = target.files.run_log
    before = (RunLog.read(path).total_time_seconds or 0.0) if path.is_file() else 0.0
    RunLog(
        settings=dataclasses.asdict(config),
        model_id=config.model_id,
        num_inference_steps=config.num_inference_steps,
        layer_index=target.files.layer,
        site=target.recorder.site.name,
        target_step_number=config.target_step_number,
        target_step_index=config.target_step_index,
        sae_ckpt_path=str(target.info.path),
        sae_hidden_dim=target.sae.hidden_dim,
        sae_config=target.info.config,
        sae_sha256=target.sae_hash,
        n_image_tokens=config.n_image_tokens,
        num_prompts=len({job.prompt_idx for job in jobs}),
        num_images=len(jobs),
        images_completed=completed,
        total_time_seconds=round(before + seconds, 3),
        identity=identity(config, jobs, target.sae_hash),
        fluxscope=VERSION,
        python=platform.python_version(),
        torch=str(torch.__version__),
        diffusers=version("diffusers"),
        transformers=version("transformers"),
    ).write(path)
