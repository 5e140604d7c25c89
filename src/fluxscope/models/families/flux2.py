"""FLUX.2: dev (Mistral as its text encoder, guidance embedded) and klein (Qwen3; guided against the empty
prompt, two forwards a step, unless it is distilled).

Against FLUX.1: one text encoder and no pooled vector; modulations are shared by all blocks; single blocks
give one tensor, the text first; latents are normalised by the autoencoder's batch statistics; a step's
noise level depends on the number of steps, so that a run cannot be gone on with from the middle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

from fluxscope.models.families.family import DenoisingRun, Family, Pipeline, read_config

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fluxscope.models.spec import Embedding, ModelSpec, PictureSpec

FOR_FLUX_2: dict[str, Any] = {
    "height": 256,
    "width": 256,
    "max_sequence_length": 512,
    "num_inference_steps": 20,
    "guidance_scale": 4.0,
    "target_step_number": 14,
    "batch_size": 2,
    "clip_model_id": "openai/clip-vit-base-patch32",
    "prompts_path": "prompts/natural.txt",
    "layer5_sae_path": "",
    "layer15_sae_path": "",
    "steer_steps": "0-5",  # as for FLUX.1: not measured by us
}

FOR_DISTILLED_KLEIN: dict[str, Any] = FOR_FLUX_2 | {
    "num_inference_steps": 4,
    "guidance_scale": 1.0,
    "target_step_number": 3,
    "steer_steps": "0-0",
}
"""Distilled to few steps and one forward a step: 1 stands for no guidance."""


@final
class Flux2(Family):
    name = "FLUX.2"
    pipelines = ("Flux2Pipeline", "Flux2KleinPipeline")
    transformer = "Flux2Transformer2DModel"
    text_parts = ("text_encoder", "tokenizer")
    always_embedded = ("",)

    def default_settings(self, model_id: str) -> dict[str, Any]:
        return FOR_DISTILLED_KLEIN if is_distilled(model_id) else FOR_FLUX_2

    def takes_guidance(self, model_id: str, spec: ModelSpec) -> bool:
        return spec.guidance_embedded or not is_distilled(model_id)

    def spec(self, config: Mapping[str, Any]) -> ModelSpec:
        """With m the feed-forward's ratio (a SwiGLU of 3 m d^2), a double block has two streams of
        4 + 3 m d^2, a single block one; the shared modulations take 2 x 6 + 3 d^2.
        """
        from fluxscope.models.spec import ModelSpec

        d = config["num_attention_heads"] * config["attention_head_dim"]
        text, channels, ratio = config["joint_attention_dim"], config["in_channels"], config["mlp_ratio"]
        a_stream = (4 + 3 * ratio) * d * d
        streams = 2 * config["num_layers"] + config["num_single_layers"]
        conditions = 2 if config["guidance_embeds"] else 1  # the timestep and, where it is embedded, guidance
        outside = (channels * 2 + text + conditions * 256) * d + (15 + 2 + conditions) * d * d
        return ModelSpec(
            width=d,
            n_double=config["num_layers"],
            n_single=config["num_single_layers"],
            text_width=text,
            pooled_width=0,
            latent_channels=channels,
            guidance_embedded=config["guidance_embeds"],
            parameters=round(streams * a_stream + outside),
        )

    def pipeline_class(self, name: str) -> Any:
        import diffusers

        return getattr(diffusers, name)

    def tokenizer(self, pipe: Pipeline) -> Any:
        return getattr(pipe.tokenizer, "tokenizer", pipe.tokenizer)  # dev's is a processor that holds one

    def encode(
        self, pipe: Pipeline, prompts: Sequence[str], length: int, device: torch.device
    ) -> list[Embedding]:
        from fluxscope.models.spec import Embedding

        tokens, _ = pipe.encode_prompt(prompt=list(prompts), max_sequence_length=length, device=device)
        return [Embedding(t.clone()) for t in tokens.cpu()]

    def needs_nothing(self, pipe: Pipeline, guidance: float) -> bool:
        """Klein, unless it is distilled, runs a second time in each step, with the empty prompt."""
        klein = type(pipe).__name__ == "Flux2KleinPipeline"
        return klein and guidance > 1 and not pipe.config.is_distilled

    def shift(self, scheduler: Any, spec: PictureSpec) -> float:
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

        return float(compute_empirical_mu(spec.grid[0] * spec.grid[1], spec.steps))

    def denoise(self, pipe: Pipeline, run: DenoisingRun) -> Tensor:
        """The packed latents of the last step taken: what the two pipelines give at the end differs."""
        assert run.first == 0 and run.latents is None
        held: dict[str, Tensor] = {}

        def on_step_end(pipe: Pipeline, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            pipe._interrupt = run.on_step(step)
            held["latents"] = tensors["latents"]
            return {}

        against = {"negative_prompt_embeds": run.nothing["prompt_embeds"]} if run.nothing else {}
        pipe(
            **run.prompts,
            **against,
            generator=run.generators,
            height=run.spec.height,
            width=run.spec.width,
            num_inference_steps=run.spec.steps,
            guidance_scale=run.spec.guidance,
            output_type="latent",
            callback_on_step_end=on_step_end,
        )
        return held["latents"]

    def decode(self, pipe: Pipeline, latents: Tensor, spec: PictureSpec) -> Tensor:
        """Latents (b, t, c), row-major, are put back on their grid, unnormalised and unpatched."""
        vae, (rows, columns) = pipe.vae, spec.grid
        on_grid = latents.transpose(1, 2).unflatten(2, (rows, columns))  # b t c -> b c rows columns
        mean = vae.bn.running_mean.view(1, -1, 1, 1).to(on_grid)
        std = (vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps).sqrt().to(on_grid)
        unpatched = pipe._unpatchify_latents(on_grid * std + mean)
        pixels: Tensor = vae.decode(unpatched.to(vae.dtype), return_dict=False)[0]
        return pixels

    def can_resume(self, scheduler: Any) -> bool:
        return False


def is_distilled(model_id: str) -> bool:
    """Whether a model is a distilled klein: its folder says so, or a name of the Hub without -base."""
    index, name = read_config(model_id, "model_index.json"), model_id.lower()
    return index.get("is_distilled", not index and "klein" in name and "base" not in name) is True
