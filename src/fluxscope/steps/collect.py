"""Step 1: generate the pictures and keep the SAE codes of every image token, in one denoising pass.

Each batch is committed before the next begins: pictures, then codes, then the manifest's lines. Killed at
any moment and run again, it goes on after the last committed batch, and S is computed from the stored
codes at the end: the result has the same bytes as an uninterrupted run's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from fluxscope.files import append_jsonl, save_image
from fluxscope.models.capture import Capture, StepClock
from fluxscope.models.flux import PromptEmbedding, encode_prompts, load_denoiser
from fluxscope.models.placement import pick_device, pick_dtype
from fluxscope.models.sample import decode, denoise
from fluxscope.models.sites import Site
from fluxscope.run.collection import (
    Collection,
    Target,
    open_collection,
    write_run_log,
    write_s_matrix,
)
from fluxscope.run.context import Context, picture_spec
from fluxscope.run.jobs import Job, plan_jobs
from fluxscope.run.taps import Kept, Tap

Heard = dict[str, dict[int, Kept]]
"""What a batch's taps keep, by site and step."""


def run(context: Context) -> str:
    config = context.config
    jobs = plan_jobs(config)
    device = pick_device(config.sae_device, fallback=str(pick_device(config.device)))
    collection = open_collection(config, jobs, device, context.force)
    spent = 0.0
    if collection.done < len(jobs):
        if collection.done:
            context.report.say(f"     going on after {collection.done} of {len(jobs)} pictures")
        spent = generate(context, jobs, collection)
    for target in collection.targets:
        if spent or not target.files.s_matrix.is_file():  # left alone, it doesn't make later steps stale
            write_s_matrix(target)
        write_run_log(config, target, jobs, completed=len(jobs), seconds=spent)
    layers = " and ".join(str(target.layer) for target in collection.targets)
    further = f", {len(collection.further)} further sites" if collection.further else ""
    return f"{len(jobs)} pictures, features of layer {layers}{further}"


def generate(context: Context, jobs: list[Job], collection: Collection) -> float:
    """Make the missing pictures and commit them batch by batch; returns the seconds it took."""
    config, report, done = context.config, context.report, collection.done
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    prompts = [job.prompt for job in jobs]
    assert config.max_sequence_length is not None
    embeddings, warnings = encode_prompts(config.model_id, prompts, config.max_sequence_length, device, dtype)
    for warning in warnings:
        report.say(f"     warning: {warning}")
    maker = PictureMaker(context, collection.taps, device, dtype)
    began = time.monotonic()
    with report.progress("     pictures", len(jobs), "images", done) as advance:
        for batch in batches(jobs, done, config.batch_size or 1):
            started = time.monotonic()
            pictures, heard = maker.make(batch, [embeddings[job.prompt] for job in batch])
            commit(context, batch, collection, pictures, heard, time.monotonic() - started)
            advance(len(batch))
    return time.monotonic() - began


def batches(jobs: list[Job], done: int, size: int) -> Iterator[list[Job]]:
    for first in range(done, len(jobs), size):
        yield jobs[first : first + size]


@dataclass
class PictureMaker:
    """The loaded model, making one batch at a time with what every tap keeps of it."""

    context: Context
    taps: list[Tap]
    device: torch.device
    dtype: torch.dtype

    def __post_init__(self) -> None:
        config = self.context.config
        self.pipe = load_denoiser(config.model_id, self.device, self.dtype)
        self.spec = picture_spec(config)

    def make(self, batch: list[Job], embeddings: list[PromptEmbedding]) -> tuple[Tensor, Heard]:
        """Pictures (b, h, w, 3), and what the taps keep."""
        config = self.context.config
        taps = {tap.site.name: tap for tap in self.taps}
        heard: Heard = {name: {} for name in taps}

        def receive(site: Site, step: int, x: Tensor) -> None:
            heard[site.name][step] = taps[site.name].keep(x, config.token_chunk_size)

        clock = StepClock()
        sites = [tap.site for tap in self.taps]
        with Capture(self.pipe.transformer, clock, sites, config.captured_step_indices, receive):
            latents = denoise(self.pipe, embeddings, [job.seed for job in batch], self.spec, clock)
        return decode(self.pipe, latents, self.spec), heard


def commit(
    context: Context, batch: list[Job], collection: Collection, pictures: Tensor, heard: Heard, seconds: float
) -> None:
    """Write a batch: pictures, then what the taps keep, then the lines that say that it is all there."""
    files, first, end = context.files, batch[0].image_id, batch[-1].image_id + 1
    for job, pixels in zip(batch, pictures.numpy(), strict=True):
        save_image(files.image(job.image_id, job.prompt_idx, job.rep_idx, job.seed), Image.fromarray(pixels))
    for tap in collection.further:
        if tap.done < end:
            tap.append(heard[tap.site.name], len(batch), first)
    # The first target's manifest says what the run has committed, so its lines are written last.
    for target in reversed(collection.targets):
        new = [job for job in batch if job.image_id >= target.tap.done]
        if new:
            target.tap.append(heard[target.tap.site.name], len(batch), first)
            rows = [manifest_row(context, job, target, seconds / len(batch)) for job in new]
            append_jsonl(target.files.manifest, rows)


def manifest_row(context: Context, job: Job, target: Target, seconds: float) -> dict:
    config, files = context.config, context.files
    return {
        "image_id": job.image_id,
        "prompt_idx": job.prompt_idx,
        "rep_idx": job.rep_idx,
        "seed": job.seed,
        "prompt": job.prompt,
        "image_path": files.relative(files.image(job.image_id, job.prompt_idx, job.rep_idx, job.seed)),
        "height": config.height,
        "width": config.width,
        "site": target.tap.site.name,
        "step": config.target_step_index,
        "layer_index": target.layer,
        "target_step_number": config.target_step_number,
        "activation_shape": [config.n_image_tokens, target.sae.input_dim],
        "generation_time": round(seconds, 4),
    }
