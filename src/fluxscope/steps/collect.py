"""Step 1: generate the pictures and keep the SAE codes of every image token, in one denoising pass.

Each batch is committed before the next begins: pictures, then codes, then the manifest's lines. Killed at
any moment and run again, it goes on after the last committed batch, and S is computed from the stored
codes at the end: the result has the same bytes as an uninterrupted run's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from fluxscope.files import save_image
from fluxscope.run.context import Context, picture_spec, step_work
from fluxscope.run.inputs import COLLECTED
from fluxscope.run.jobs import Job, plan_jobs, repeated_prompts
from fluxscope.run.manifest import ManifestRow, append_rows, mend_rows
from fluxscope.steps.step import Step

if TYPE_CHECKING:
    from torch import Tensor

    from fluxscope.models.sites import Site
    from fluxscope.models.spec import Embedding
    from fluxscope.run.collection import Collection, Target
    from fluxscope.run.recorders import Kept, Recorder

    Heard = dict[str, dict[int, Kept]]
    """What a batch's recorders keep, by site and step."""

STEP = Step(
    number=1,
    name="collect",
    module=__name__,
    summary="Generate the pictures and keep their SAE codes.",
    reads=(),
    makes=("s_matrix", "manifest", "run_log", "codes"),
    settings=(*COLLECTED, "device", "placement", "batch_size", "sae_device", "token_chunk_size"),
    reads_if_there=("prompts",),
    shared=True,
)


def run(context: Context) -> str:
    from fluxscope.models.placement import pick_device
    from fluxscope.run.collection import open_collection, write_run_log, write_s_matrix

    config = context.config
    jobs = plan_jobs(config)
    config.sae_path(config.site)  # raises where it has none, before the model is looked for
    device = pick_device(config.sae_device, fallback=str(context.model.device))
    collection = open_collection(config, context.model.spec, jobs, device, context.force)
    keep_what_was_collected(context)
    for warning in (*collection.warnings, repeated_prompts(jobs)):
        if warning:
            context.report.say(f"     warning: {warning}")
    lost = lost_pictures(context, jobs[: collection.done])
    spent = 0.0
    if lost or collection.done < len(jobs):
        if lost:
            context.report.say(f"     making {len(lost)} pictures again that are missing or changed")
        if 0 < collection.done < len(jobs):
            context.report.say(f"     going on after {collection.done} of {len(jobs)} pictures")
        spent = generate(context, jobs, collection, lost)
    for target in collection.targets:
        for caution in target.cautions():
            context.report.say(f"     warning: the SAE of {target.files.name}: {caution}")
        mend_rows(target.files.manifest, [manifest_row(context, job, target, 0.0) for job in jobs])
        write_s_matrix(target)  # the same bytes where nothing was added: later steps stay up to date
        write_run_log(config, target, jobs, completed=len(jobs), seconds=spent)
    collection.write_indexes()
    sites = " and ".join(target.files.name for target in collection.targets)
    further = f", {len(collection.further)} further sites" if collection.further else ""
    return f"{len(jobs)} pictures, features of {sites}{further}"


def keep_what_was_collected(context: Context) -> None:
    """Count what earlier runs collected among what this one makes: a collection only grows."""
    work = step_work(context)
    if work.record and not context.force:
        work.products += [context.files.root / path for path in work.record.made]


def lost_pictures(context: Context, jobs: list[Job]) -> set[int]:
    """The pictures that are missing, or not as they were made."""
    files, damaged = context.files, set(step_work(context).damaged())
    paths = {job.image_id: picture_of(context, job) for job in jobs}
    return {i for i, path in paths.items() if not path.is_file() or files.relative(path) in damaged}


def picture_of(context: Context, job: Job) -> Path:
    return context.files.image(job.image_id, job.prompt_idx, job.rep_idx, job.seed)


def generate(context: Context, jobs: list[Job], collection: Collection, lost: set[int]) -> float:
    """Make the missing pictures and commit them batch by batch; returns the seconds it took.

    Args:
        lost: pictures that were committed and are not there any more. The whole batch of each is made again,
            so that it comes out the same.
    """
    config, report, done = context.config, context.report, collection.done
    prompts = context.model.encode([job.prompt for job in jobs], config.max_sequence_length)
    for warning in prompts.warnings:
        report.say(f"     warning: {warning}")
    began, size = time.monotonic(), config.batch_size or 1
    again = [b for b in batches(jobs[:done], 0, size) if any(job.image_id in lost for job in b)]
    ready = done - sum(len(batch) for batch in again)
    with report.progress("     pictures", len(jobs), "images", ready) as advance:
        for batch in (*again, *batches(jobs, done, size)):
            started = time.monotonic()
            embeddings = [prompts[job.prompt] for job in batch]
            pictures, heard = make(context, collection.recorders, batch, embeddings)
            commit(context, batch, collection, pictures, heard, time.monotonic() - started)
            advance(len(batch))
    for recorder in collection.recorders:
        if recorder.bad:
            report.say(f"     warning: {recorder.bad_in_words}")
    return time.monotonic() - began


def batches(jobs: list[Job], done: int, size: int) -> Iterator[list[Job]]:
    for first in range(done, len(jobs), size):
        yield jobs[first : first + size]


def make(
    context: Context, recorders: list[Recorder], batch: list[Job], embeddings: list[Embedding]
) -> tuple[Tensor, Heard]:
    """One batch: pictures (b, h, w, 3), and what the recorders keep of it."""
    from fluxscope.models.capture import Capture

    config, model, spec = context.config, context.model, picture_spec(context.config)
    by_site = {recorder.site.name: recorder for recorder in recorders}
    heard: Heard = {name: {} for name in by_site}

    def receive(site: Site, step: int, x: Tensor) -> None:
        heard[site.name][step] = by_site[site.name].keep(x, config.token_chunk_size)

    capture = Capture([recorder.site for recorder in recorders], config.captured_step_indices, receive)
    latents = model.sample(embeddings, [job.seed for job in batch], capture, spec=spec)
    return model.decode(latents, spec), heard


def commit(
    context: Context, batch: list[Job], collection: Collection, pictures: Tensor, heard: Heard, seconds: float
) -> None:
    """Write a batch: pictures, then what the recorders keep, then the lines that say that it is all there."""
    first, end = batch[0].image_id, batch[-1].image_id + 1
    for job, pixels in zip(batch, pictures.numpy(), strict=True):
        save_image(picture_of(context, job), Image.fromarray(pixels))
    for recorder in collection.further:
        if recorder.done < end:
            recorder.append(heard[recorder.site.name], len(batch), first)
    # The first target's manifest says what the run has committed, so its lines are written last.
    for target in reversed(collection.targets):
        new = [job for job in batch if job.image_id >= target.recorder.done]
        if new:
            target.recorder.append(heard[target.recorder.site.name], len(batch), first)
            rows = [manifest_row(context, job, target, seconds / len(batch)) for job in new]
            append_rows(target.files.manifest, rows)


def manifest_row(context: Context, job: Job, target: Target, seconds: float) -> ManifestRow:
    config, files = context.config, context.files
    assert config.height is not None and config.width is not None
    return ManifestRow(
        image_id=job.image_id,
        prompt_idx=job.prompt_idx,
        rep_idx=job.rep_idx,
        seed=job.seed,
        prompt=job.prompt,
        image_path=files.relative(picture_of(context, job)),
        height=config.height,
        width=config.width,
        site=target.recorder.site.name,
        step=config.target_step_index,
        layer_index=target.files.layer,
        target_step_number=config.target_step_index + 1,
        activation_shape=[config.n_image_tokens, target.sae.input_dim],
        generation_time=round(seconds, 4),
    )
