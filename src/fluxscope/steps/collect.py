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
from fluxscope.models.sample import PictureSpec, decode, denoise
from fluxscope.models.sites import Site
from fluxscope.sae.codes import SparseCodes, encode_sparse
from fluxscope.steps.collection import Target, clear, open_targets, write_run_log, write_s_matrix
from fluxscope.steps.jobs import Job, plan_jobs
from fluxscope.steps.step import Context

Codes = dict[tuple[str, int], SparseCodes]
"""The codes of a batch's image tokens, by site and step."""


def run(context: Context) -> str:
    config = context.config
    jobs = plan_jobs(config)
    if context.force:
        clear(config)
    targets = open_targets(
        config, jobs, pick_device(config.sae_device, fallback=str(pick_device(config.device)))
    )
    done = min(target.done for target in targets)
    spent = 0.0
    if done < len(jobs):
        if done:
            context.report.say(f"     going on after {done} of {len(jobs)} pictures")
        spent = generate(context, jobs, targets, done)
    for target in targets:
        write_s_matrix(target)
        write_run_log(config, target, jobs, completed=len(jobs), seconds=spent)
    layers = " and ".join(str(target.layer) for target in targets)
    return f"{len(jobs)} pictures, features of layer {layers}"


def generate(context: Context, jobs: list[Job], targets: list[Target], done: int) -> float:
    """Make the pictures from `done` on and commit them batch by batch; returns the seconds it took."""
    config, report = context.config, context.report
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    prompts = [job.prompt for job in jobs]
    assert config.max_sequence_length is not None
    embeddings, warnings = encode_prompts(config.model_id, prompts, config.max_sequence_length, device, dtype)
    for warning in warnings:
        report.say(f"     warning: {warning}")
    maker = PictureMaker(context, targets, device, dtype)
    began = time.monotonic()
    with report.progress("     pictures", len(jobs), "images", done) as advance:
        for batch in batches(jobs, done, config.batch_size or 1):
            started = time.monotonic()
            pictures, codes = maker.make(batch, [embeddings[job.prompt] for job in batch])
            commit(context, batch, targets, pictures, codes, time.monotonic() - started)
            advance(len(batch))
    return time.monotonic() - began


def batches(jobs: list[Job], done: int, size: int) -> Iterator[list[Job]]:
    for first in range(done, len(jobs), size):
        yield jobs[first : first + size]


@dataclass
class PictureMaker:
    """The loaded model, making one batch at a time with every target's codes."""

    context: Context
    targets: list[Target]
    device: torch.device
    dtype: torch.dtype

    def __post_init__(self) -> None:
        config = self.context.config
        assert config.height is not None and config.width is not None
        self.pipe = load_denoiser(config.model_id, self.device, self.dtype)
        self.spec = PictureSpec(
            config.height, config.width, config.num_inference_steps, config.guidance_scale
        )

    def make(self, batch: list[Job], embeddings: list[PromptEmbedding]) -> tuple[Tensor, Codes]:
        """Pictures (b, h, w, 3), and the codes of the batch's image tokens."""
        config = self.context.config
        saes = {target.site.name: target.sae for target in self.targets}
        codes: Codes = {}

        def receive(site: Site, step: int, x: Tensor) -> None:
            sae = saes[site.name]
            here = x.to(sae.pre_bias.device)
            codes[site.name, step] = encode_sparse(sae, here, config.token_chunk_size).to("cpu")

        clock = StepClock()
        sites = [target.site for target in self.targets]
        with Capture(self.pipe.transformer, clock, sites, config.captured_step_indices, receive):
            latents = denoise(self.pipe, embeddings, [job.seed for job in batch], self.spec, clock)
        return decode(self.pipe, latents, self.spec), codes


def commit(
    context: Context,
    batch: list[Job],
    targets: list[Target],
    pictures: Tensor,
    codes: Codes,
    seconds: float,
) -> None:
    """Write a batch: pictures, then each target's codes, then the lines that say that they are there."""
    files = context.files
    for job, pixels in zip(batch, pictures.numpy(), strict=True):
        save_image(files.image(job.image_id, job.prompt_idx, job.rep_idx, job.seed), Image.fromarray(pixels))
    for target in targets:
        new = [job for job in batch if job.image_id >= target.done]
        if not new:
            continue
        tokens = context.config.n_image_tokens
        fresh = slice((len(batch) - len(new)) * tokens, len(batch) * tokens)
        for step, store in target.stores.items():
            store.append(codes[target.site.name, step].rows(fresh))
        append_jsonl(
            target.files.manifest, [manifest_row(context, job, target, seconds / len(batch)) for job in new]
        )
        target.done += len(new)


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
        "site": target.site.name,
        "step": config.target_step_index,
        "layer_index": target.layer,
        "target_step_number": config.target_step_number,
        "activation_shape": [config.n_image_tokens, target.sae.input_dim],
        "generation_time": round(seconds, 4),
    }
