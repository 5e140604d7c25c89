"""Making pictures: prompts' embeddings and seeds in, latents and pictures out.

The denoising loop is FluxPipeline's own. Each picture's noise comes from a CPU generator of its own seed,
so that a picture does not depend on the batch it is made in, nor on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import FluxPipeline
from jaxtyping import Float, UInt8
from torch import Tensor

from fluxscope.errors import FluxscopeError
from fluxscope.models.capture import StepClock
from fluxscope.models.flux import PromptEmbedding


@dataclass(frozen=True)
class PictureSpec:
    """How a picture is made, but for its prompt and seed.

    Attributes:
        height, width: pixels.
        steps: denoising steps.
        guidance: strength of the distilled guidance.
    """

    height: int
    width: int
    steps: int
    guidance: float


@dataclass(frozen=True)
class Partway:
    """Pictures on their way: packed latents, as they are before a denoising step is taken.

    Attributes:
        latents: one row a picture.
        step: the next step, counted from 0.
    """

    latents: Float[Tensor, "b t c"]
    step: int

    def repeat(self, rows: int) -> Partway:
        """One picture's latents for every row of a batch."""
        return Partway(self.latents.expand(rows, -1, -1).contiguous(), self.step)


def can_resume(pipe: FluxPipeline) -> bool:
    """Whether denoising gone on with from the middle ends in the same bits.

    It does where each step's noise level follows from that step alone, as in FLUX.1; not where a scheduler
    stretches or rearranges the levels of the whole run.
    """
    config = pipe.scheduler.config
    rearranging = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_flow_sigmas")
    known = type(pipe.scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
    stretched = any(config.get(name) for name in (*rearranging, "shift_terminal", "stochastic_sampling"))
    return known and not stretched


@torch.inference_mode()
def denoise(
    pipe: FluxPipeline,
    embeddings: Sequence[PromptEmbedding],
    seeds: Sequence[int],
    spec: PictureSpec,
    clock: StepClock | None = None,
    stop_after: int | None = None,
    start: Partway | None = None,
) -> Float[Tensor, "b t c"]:
    """Denoise one batch, a row for each embedding and seed, and return the packed latents.

    Args:
        clock: ticks with the steps; hooks that act at some steps read it.
        stop_after: the last step to take, counted from 0, for who only listens; the latents are then noisy.
        start: go on from here instead of from noise. The result has the bits of an uninterrupted run of the
            same batch size, where `can_resume`.
    """
    clock = clock or StepClock()
    first = clock.step = start.step if start else 0
    assert first < spec.steps and (first == 0 or can_resume(pipe))

    def tick(pipe: FluxPipeline, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        clock.step = first + step + 1
        if first + step == stop_after:
            pipe._interrupt = True  # FluxPipeline then passes over the remaining steps
        return tensors

    device, dtype = pipe.transformer.device, pipe.transformer.dtype
    with _clear_memory_errors():
        return pipe(
            prompt_embeds=torch.stack([e.tokens for e in embeddings]).to(device, dtype),
            pooled_prompt_embeds=torch.stack([e.pooled for e in embeddings]).to(device, dtype),
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            height=spec.height,
            width=spec.width,
            latents=start.latents.to(device, dtype) if start else None,
            num_inference_steps=spec.steps - first,
            sigmas=np.linspace(1.0, 1 / spec.steps, spec.steps)[first:],  # the tail of the pipeline's own
            guidance_scale=spec.guidance,
            output_type="latent",
            callback_on_step_end=tick,
        ).images


@torch.inference_mode()
def decode(
    pipe: FluxPipeline, latents: Float[Tensor, "b t c"], spec: PictureSpec
) -> UInt8[Tensor, "b h w 3"]:
    """Turn packed latents into RGB pictures, on the CPU."""
    vae = pipe.vae
    unpacked = pipe._unpack_latents(latents, spec.height, spec.width, pipe.vae_scale_factor)
    unpacked = unpacked / vae.config.scaling_factor + vae.config.shift_factor
    with _clear_memory_errors():
        pixels = vae.decode(unpacked.to(vae.dtype), return_dict=False)[0]
    pixels = (pixels.float() / 2 + 0.5).clamp(0, 1) * 255
    return pixels.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().contiguous()  # b c h w -> b h w c


class _clear_memory_errors:
    """Turn a GPU's running out of memory into an error that says what to do."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            raise FluxscopeError(
                "the GPU ran out of memory while making pictures",
                "Lower --batch-size, then --height and --width; fluxscope doctor tells what a run needs.",
            ) from error
