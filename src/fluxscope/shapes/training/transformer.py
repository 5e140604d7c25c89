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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextModel, T5EncoderModel

from fluxscope.shapes import world
from fluxscope.shapes.training.latents import WORDINGS, Latents
from fluxscope.shapes.training.optimizer import MuonAdam
from fluxscope.shapes.training.progress import Stage
from fluxscope.shapes.training.settings import RecipeSettings, TransformerSettings
from fluxscope.shapes.training.text import build_clip_tokenizer, build_t5_tokenizer, tokenize

_GRID = world.RESOLUTION // 16


@dataclass(frozen=True)
class Words:
    """Encoded captions: T5's states and CLIP's pooled output."""

    states: Float[Tensor, "b n d"]
    pooled: Float[Tensor, "b p"]

    def where(self, keep: Tensor, other: Words) -> Words:
        """These captions where `keep` is true, the other ones elsewhere."""
        states = torch.where(keep[:, None, None], self.states, other.states)
        return Words(states, torch.where(keep[:, None], self.pooled, other.pooled))

    def take(self, rows: Tensor) -> Words:
        return Words(self.states[rows], self.pooled[rows])

    def repeat(self, times: int) -> Words:
        return Words(self.states.repeat(times, 1, 1), self.pooled.repeat(times, 1))

    def followed_by(self, other: Words) -> Words:
        return Words(torch.cat([self.states, other.states]), torch.cat([self.pooled, other.pooled]))


@dataclass(frozen=True)
class TextEncoders:
    """Both frozen text encoders."""

    t5: T5EncoderModel
    clip: CLIPTextModel

    @torch.no_grad()
    def from_ids(self, t5_ids: Int64[Tensor, "b n"], clip_ids: Int64[Tensor, "b n"]) -> Words:
        states = self.t5(input_ids=t5_ids).last_hidden_state
        return Words(states, self.clip(input_ids=clip_ids).pooler_output)

    def from_texts(self, texts: list[str], length: int) -> Words:
        """Captions as FluxPipeline encodes them."""
        t5, clip = build_t5_tokenizer(length), build_clip_tokenizer(length)
        return self.from_ids(tokenize(t5, texts, length), tokenize(clip, texts, length))


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


class Ema:
    """A running mean of the weights, shorter in the beginning."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.weights = {name: p.detach().clone() for name, p in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        decay = min(self.decay, (self.updates + 1) / (self.updates + 10))
        torch._foreach_lerp_(list(self.weights.values()), list(model.state_dict().values()), 1 - decay)
        self.updates += 1


@dataclass(frozen=True)
class Batch:
    """One step's data: noise and latents are mixed at `time` into `noisy`; `target` is e - x_0."""

    noisy: Float[Tensor, "b t c"]
    time: Float[Tensor, " b"]
    target: Float[Tensor, "b t c"]
    words: Words
    dropped: Tensor


class Batches:
    """Draws batches: every picture once an epoch, in an order that the seed and the step decide."""

    def __init__(self, latents: Latents, encoders: TextEncoders, settings: RecipeSettings) -> None:
        self.latents, self.encoders, self.own = latents, encoders, settings.transformer
        self.seed = settings.seed + 6
        self.empty = encoders.from_texts([""], settings.sequence_length)
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    def rows(self, step: int) -> np.ndarray:
        per_epoch = len(self.latents.packed) // self.own.batch
        epoch, place = divmod(step, per_epoch)
        if epoch != self._epoch:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.latents.packed))
            self._epoch, self._order = epoch, order
        return np.sort(self._order[place * self.own.batch : (place + 1) * self.own.batch])

    def draw(self, step: int, rng: np.random.Generator) -> Batch:
        rows, wording = self.rows(step), rng.integers(WORDINGS, size=self.own.batch)
        clean = self.latents.normalised(rows)
        ids = (torch.from_numpy(x[rows, wording].astype(np.int64)) for x in self._ids())
        dropped = torch.rand(len(clean)) < self.own.caption_drop
        words = self.encoders.from_ids(*ids).where(~dropped, self.empty)
        noise, time = torch.randn_like(clean), torch.sigmoid(self.own.time_mean + torch.randn(len(clean)))
        mix = time[:, None, None]
        return Batch((1 - mix) * clean + mix * noise, time, noise - clean, words, dropped)

    def _ids(self) -> tuple[np.ndarray, np.ndarray]:
        return self.latents.t5_ids, self.latents.clip_ids


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
    """Train until the stage's budget is used; returns the mean of the weights (EMA)."""
    own = batches.own
    ema = Ema(model, own.ema)
    optimizer = MuonAdam(
        model.named_parameters(),
        lambda name, p: p.ndim == 2 and "blocks" in name and "norm" not in name,
        muon_lr=own.muon_learning_rate * scale,
        adam_lr=own.adam_learning_rate * scale,
    )
    if stage.state:
        model.load_state_dict(stage.state["model"])
        optimizer.load_state_dict(stage.state["optimizer"])
        ema.weights, ema.updates = stage.state["ema"], stage.step
    for rng in stage.steps():
        optimizer.set_rate(stage.rate(own.warmup_steps, own.decay_share))
        batch = batches.draw(stage.step, rng)
        with _fast():
            guidance, wanted = target(batch, rng)
            made = velocity(model, batch.noisy, batch.time, batch.words, guidance)
        loss = (made.float() - wanted).square().mean()
        optimizer.descend(loss)
        ema.update(model)
        stage.log(loss=loss.item())
        if stage.due():
            stage.save(model=model.state_dict(), optimizer=optimizer.state_dict(), ema=ema.weights)
        if (stage.step + 1) % own.preview_every == 0:
            preview(ema.weights)
    stage.save(done=True, model=model.state_dict(), optimizer=optimizer.state_dict(), ema=ema.weights)
    preview(ema.weights)
    return ema.weights


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
        return stage.state["ema"]
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
        return stage.state["ema"]
    teacher = build_transformer(settings, own.shallow_double_blocks, own.shallow_single_blocks)
    teacher.load_state_dict(copy.deepcopy(shallow))
    teacher.eval().requires_grad_(False)
    model = build_transformer(settings, own.double_blocks, own.single_blocks)
    level_guidance(grow(shallow, model, own.grown_places))
    target = guided_target(_prepare(teacher), batches.empty, own)
    return _fit(_prepare(model), stage, batches, target, own.grown_scale, preview)
