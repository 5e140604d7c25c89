"""FLUX.1: dev, schnell, Krea-dev, Kontext where it only makes pictures, and flux-shapes.

Text encoders are CLIP (pooled) and T5 (tokens). Guidance is embedded where the model is distilled for it;
a step is one forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

from fluxscope.models.families.family import DenoisingRun, Family, Pipeline, read_config
from fluxscope.shapes.shipped import (
    CLIP_SHAPES,
    FLUX_SHAPES,
    OWN_SITE,
    SHIPPED_SAES,
    TEST_PROMPTS,
    shipped_sae,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fluxscope.models.spec import Embedding, ModelSpec, PictureSpec

FOR_FLUX_SHAPES: dict[str, Any] = {
    "height": 128,
    "width": 128,
    "max_sequence_length": 20,
    "num_inference_steps": 20,
    "guidance_scale": 3.5,
    "target_step_number": 14,
    "batch_size": 16,
    "clip_model_id": CLIP_SHAPES,
    "prompts_path": str(TEST_PROMPTS),
    "layer5_sae_path": str(shipped_sae(5)),
    "layer15_sae_path": str(shipped_sae(15)),
    "saes": {OWN_SITE: str(SHIPPED_SAES[OWN_SITE])},
    # Pushed in early or middle steps alone a tenth of the pictures change, in all of them two thirds: see
    # docs/steering.md.
    "steer_steps": "all",
}

FOR_FLUX_1: dict[str, Any] = {
    "height": 256,
    "width": 256,
    "max_sequence_length": 512,
    "num_inference_steps": 20,
    "guidance_scale": 3.5,
    "target_step_number": 14,
    "batch_size": 4,
    "clip_model_id": "openai/clip-vit-base-patch32",
    "prompts_path": "prompts/natural.txt",
    "layer5_sae_path": "",
    "layer15_sae_path": "",
    # Not measured by us: others saw late steps hardly act on FLUX.1, and all of them leave artefacts.
    "steer_steps": "0-5",
}

FOR_SCHNELL: dict[str, Any] = FOR_FLUX_1 | {
    "max_sequence_length": 256,
    "num_inference_steps": 4,
    "guidance_scale": 0.0,
    "target_step_number": 3,
    "steer_steps": "0-0",  # the same share of its steps as FLUX.1-dev's
}
"""Distilled to few steps and no guidance."""

REARRANGING = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_flow_sigmas")
"""Options of a scheduler by which a step's noise level depends on the number of steps of the run."""


@final
class Flux1(Family):
    name = "FLUX.1"
    pipelines = ("FluxPipeline", "FluxKontextPipeline")
    transformer = "FluxTransformer2DModel"
    text_parts = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")

    def default_settings(self, model_id: str) -> dict[str, Any]:
        if model_id == FLUX_SHAPES:
            return FOR_FLUX_SHAPES
        return FOR_SCHNELL if is_schnell(model_id) else FOR_FLUX_1

    def takes_guidance(self, model_id: str, spec: ModelSpec) -> bool:
        return spec.guidance_embedded

    def spec(self, config: Mapping[str, Any]) -> ModelSpec:
        """A double block has two streams with attention (4 d^2), feed-forward (8 d^2) and modulation (6 d^2)
        each; a single block has 3 + 4 + 5 d^2 and a modulation of 3 d^2.
        """
        from fluxscope.models.spec import ModelSpec

        d = config["num_attention_heads"] * config["attention_head_dim"]
        text, pooled, channels = (
            config[name] for name in ("joint_attention_dim", "pooled_projection_dim", "in_channels")
        )
        blocks = config["num_layers"] * 36 * d * d + config["num_single_layers"] * 15 * d * d
        return ModelSpec(
            width=d,
            n_double=config["num_layers"],
            n_single=config["num_single_layers"],
            text_width=text,
            pooled_width=pooled,
            latent_channels=channels,
            guidance_embedded=config["guidance_embeds"],
            parameters=blocks + (channels * 2 + text + pooled + 5 * d + 512) * d,
        )

    def pipeline_class(self, name: str) -> Any:
        """Kontext's components are those of FLUX.1 with other weights; without an input picture it is one."""
        from diffusers import FluxPipeline

        return FluxPipeline

    def tokenizer(self, pipe: Pipeline) -> Any:
        return pipe.tokenizer_2

    def gist_tokenizer(self, pipe: Pipeline) -> Any:
        return pipe.tokenizer

    def encode(
        self, pipe: Pipeline, prompts: Sequence[str], length: int, device: torch.device
    ) -> list[Embedding]:
        from fluxscope.models.spec import Embedding

        tokens, pooled, _ = pipe.encode_prompt(
            prompt=list(prompts), prompt_2=None, max_sequence_length=length, device=device
        )
        return [Embedding(t.clone(), p.clone()) for t, p in zip(tokens.cpu(), pooled.cpu(), strict=True)]

    def shift(self, scheduler: Any, spec: PictureSpec) -> float:
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        bounds = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
        tokens = spec.grid[0] * spec.grid[1]
        return float(calculate_shift(tokens, *(scheduler.config.get(k, v) for k, v in bounds.items())))

    def denoise(self, pipe: Pipeline, run: DenoisingRun) -> Tensor:
        import numpy as np

        def on_step_end(pipe: Pipeline, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            pipe._interrupt = run.on_step(step)  # the pipeline then passes over the remaining steps
            return tensors

        spec = run.spec
        sigmas = np.linspace(1.0, 1 / spec.steps, spec.steps)[run.first :]  # the tail of the pipeline's own
        latents: Tensor = pipe(
            **run.prompts,
            generator=run.generators,
            height=spec.height,
            width=spec.width,
            latents=run.latents,
            num_inference_steps=spec.steps - run.first,
            sigmas=sigmas,
            guidance_scale=spec.guidance,
            output_type="latent",
            callback_on_step_end=on_step_end,
        ).images
        return latents

    def decode(self, pipe: Pipeline, latents: Tensor, spec: PictureSpec) -> Tensor:
        vae = pipe.vae
        unpacked = pipe._unpack_latents(latents, spec.height, spec.width, pipe.vae_scale_factor)
        unpacked = unpacked / vae.config.scaling_factor + vae.config.shift_factor
        pixels: Tensor = vae.decode(unpacked.to(vae.dtype), return_dict=False)[0]
        return pixels

    def can_resume(self, scheduler: Any) -> bool:
        """Each step's noise level follows from that step alone, unless the scheduler is told otherwise."""
        config = scheduler.config
        known = type(scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
        return known and not any(
            config.get(name) for name in (*REARRANGING, "shift_terminal", "stochastic_sampling")
        )


def is_schnell(model_id: str) -> bool:
    """Whether a model is distilled without guidance: its folder says so, or a name of the Hub."""
    config = read_config(model_id, "transformer/config.json")
    return config.get("guidance_embeds", "schnell" not in model_id.lower()) is False
