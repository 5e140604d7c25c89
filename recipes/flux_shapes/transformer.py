"""The transformer: trained shallow, grown to FLUX's 19 double blocks, and given distilled guidance.

Rectified flow (Liu et al., 2022; Esser et al., 2024): x_t = (1 - t) x_0 + t e, and the model predicts
e - x_0. Guidance is distilled as in FLUX.1-dev, from the shallow model as teacher: at guidance g the
target is e - x_0 + (g - 1) (v_cond - v_uncond), whose first term keeps the data in and whose second is
the teacher's; at g = 1 it is plain flow matching.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fluxscope.shapes import world
from recipes.flux_shapes.batches import Batch, Batches
from recipes.flux_shapes.optimizer import MuonAdam
from recipes.flux_shapes.progress import Stage
from recipes.flux_shapes.settings import RecipeSettings, TransformerSettings
from recipes.flux_shapes.words import Words

_GRID = world.RESOLUTION // 16


def build_transformer(settings: RecipeSettings, doubles: int, singles: int) -> FluxTransformer2DModel:
    """An untrained transformer whose blocks start as identities (adaLN gates at zero)."""
    own = settings.transformer
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * settings.autoencoder.latent_channels,
        num_layers=doubles,
        num_single_layers=singles,
        attention_head_dim=own.head_width,
        num_attention_heads=own.heads,
        joint_attention_dim=settings.text.width,
        pooled_projection_dim=settings.clip.text_width,
        guidance_embeds=True,
        axes_dims_rope=own.axes,
    )
    for name, weight in model.named_parameters():
        if (".norm" in name and ".linear." in name) or name.startswith(("proj_out", "norm_out.linear")):
            nn.init.zeros_(weight)
    return model


def velocity(
    model: FluxTransformer2DModel,
    noisy: Float[Tensor, "b t c"],
    time: Float[Tensor, " b"],
    words: Words,
    guidance: Float[Tensor, " b"],
) -> Float[Tensor, "b t c"]:
    """The model's prediction of e - x_0, called as FluxPipeline calls it."""
    image_ids = torch.zeros(_GRID, _GRID, 3)
    image_ids[..., 1] = torch.arange(_GRID)[:, None]
    image_ids[..., 2] = torch.arange(_GRID)[None, :]
    return model(
        hidden_states=noisy,
        encoder_hidden_states=words.states,
        pooled_projections=words.pooled,
        timestep=time,
        guidance=guidance,
        img_ids=image_ids.reshape(-1, 3),  # t 3
        txt_ids=torch.zeros(words.states.shape[1], 3),
        return_dict=False,
    )[0]


def grow(
    shallow: dict[str, Tensor], deep: FluxTransformer2DModel, places: tuple[int, ...]
) -> FluxTransformer2DModel:
    """Copy a shallow model into a deep one: block i goes to `places[i]`, the rest stay identities."""
    state = deep.state_dict()
    for name, weight in shallow.items():
        parts = name.split(".")
        if parts[0] == "transformer_blocks":
            parts[1] = str(places[int(parts[1])])
        state[".".join(parts)].copy_(weight)
    return deep


@torch.no_grad()
def level_guidance(model: FluxTransformer2DModel) -> FluxTransformer2DModel:
    """Let every guidance act as guidance 1 does: the shallow model has met no other, and what its embedder
    makes of others is accidental. From there the differences are learnt."""
    embed, one = model.time_text_embed, torch.full((1,), 1000.0)  # the scale that the model multiplies by
    output = embed.guidance_embedder(embed.time_proj(one))[0]
    last = embed.guidance_embedder.linear_2
    last.weight.zero_()
    last.bias.copy_(output)
    return model


Target = Callable[[Batch, np.random.Generator], tuple[Tensor, Tensor]]
"""From a batch to (guidance, target velocity)."""


def plain_target(batch: Batch, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Flow matching at guidance 1."""
    return torch.ones(len(batch.time)), batch.target


def guided_target(teacher: FluxTransformer2DModel, empty: Words, own: TransformerSettings) -> Target:
    """Flow matching at random guidance: the teacher supplies what guidance adds (see the module's text)."""

    @torch.no_grad()
    def target(batch: Batch, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        # Always as many guided samples, so that the teacher's compiled blocks see one shape.
        order = torch.from_numpy(rng.permutation(len(batch.time)))
        rows = order[~batch.dropped[order]][: own.guided_samples]
        guidance = torch.ones(len(batch.time))
        guidance[rows] = torch.from_numpy(rng.uniform(*own.guidance_range, len(rows)).astype(np.float32))
        words, nothing = batch.words.take(rows), empty.repeat(len(rows))
        noisy, time = batch.noisy[rows].repeat(2, 1, 1), batch.time[rows].repeat(2)
        both = velocity(teacher, noisy, time, words.followed_by(nothing), torch.ones(2 * len(rows)))
        with_words, without = both.float().chunk(2)
        wanted = batch.target.clone()
        wanted[rows] += (guidance[rows] - 1)[:, None, None] * (with_words - without)
        return guidance, wanted

    return target


@contextmanager
def _fast() -> Iterator[None]:
    """Products in bf16, and attention as plain products: on CPUs with AVX512-BF16 half the time."""
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        yield


def _prepare(model: FluxTransformer2DModel) -> FluxTransformer2DModel:
    """Compile the blocks, and keep the residual streams in fp32 under autocast."""
    model.compile_repeated_blocks()
    for embedder in (model.x_embedder, model.context_embedder):
        embedder.register_forward_hook(lambda module, inputs, output: output.float())
    return model


def _fit(
    model: FluxTransformer2DModel,
    stage: Stage,
    batches: Batches,
    target: Target,
    scale: float,
    preview: Callable[[dict[str, Tensor]], None],
) -> dict[str, Tensor]:
    """Train until the stage's budget is used; returns the weights.

    No running mean of them is kept: while the rate falls to zero it only lags behind.
    """
    own = batches.own
    optimizer = MuonAdam(
        model.named_parameters(),
        lambda name, p: p.ndim == 2 and "blocks" in name and "norm" not in name,
        muon_lr=own.muon_learning_rate * scale,
        adam_lr=own.adam_learning_rate * scale,
    )
    if stage.state:
        model.load_state_dict(stage.state["model"])
        optimizer.load_state_dict(stage.state["optimizer"])
    for rng in stage.steps():
        optimizer.set_rate(stage.rate(own.warmup_steps, own.decay_share))
        batch = batches.draw(stage.step, rng)
        with _fast():
            guidance, wanted = target(batch, rng)
            made = velocity(model, batch.noisy, batch.time, batch.words, guidance)
        loss = (made.float() - wanted).square().mean()
        optimizer.descend(loss)
        stage.log(loss=loss.item())
        if stage.due():
            stage.save(model=model.state_dict(), optimizer=optimizer.state_dict())
        if (stage.step + 1) % own.preview_every == 0:
            preview(model.state_dict())
    stage.save(done=True, model=model.state_dict(), optimizer=optimizer.state_dict())
    preview(model.state_dict())
    return model.state_dict()


def train_shallow(
    work: Path,
    settings: RecipeSettings,
    batches: Batches,
    preview: Callable[[dict[str, Tensor]], None],
    minutes: float | None = None,
) -> dict[str, Tensor]:
    """Most of the training, at six double blocks and one single, where a step costs a third."""
    own = settings.transformer
    torch.manual_seed(settings.seed)
    stage = Stage(work, "shallow", own.shallow_steps, minutes, settings.seed + 7)
    if stage.done:
        return stage.state["model"]
    model = build_transformer(settings, own.shallow_double_blocks, own.shallow_single_blocks)
    return _fit(_prepare(model), stage, batches, plain_target, 1.0, preview)


def train_grown(
    work: Path,
    settings: RecipeSettings,
    batches: Batches,
    shallow: dict[str, Tensor],
    preview: Callable[[dict[str, Tensor]], None],
    minutes: float | None = None,
) -> dict[str, Tensor]:
    """Full depth, with guidance: the shallow model, which goes in as its start, is the teacher too."""
    own = settings.transformer
    torch.manual_seed(settings.seed)
    stage = Stage(work, "grown", own.grown_steps, minutes, settings.seed + 8)
    if stage.done:
        return stage.state["model"]
    teacher = build_transformer(settings, own.shallow_double_blocks, own.shallow_single_blocks)
    teacher.load_state_dict(copy.deepcopy(shallow))
    teacher.eval().requires_grad_(False)
    model = build_transformer(settings, own.double_blocks, own.single_blocks)
    level_guidance(grow(shallow, model, own.grown_places))
    target = guided_target(_prepare(teacher), batches.empty, own)
    return _fit(_prepare(model), stage, batches, target, own.grown_scale, preview)
