"""The autoencoder: AutoencoderKL of factor 8, trained to keep edges crisp.

Trained on crops around objects, then on whole pictures; then the encoder is frozen and the decoder goes
on alone, with noise on its latents, which costs half and leaves the transformer's data as it was. The
loss is L1 + MSE + L1 of the differences between neighbouring pixels, which is where blur shows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from fluxscope.files import save_image
from recipes.flux_shapes import data
from recipes.flux_shapes.optimizer import MuonAdam
from recipes.flux_shapes.progress import Stage
from recipes.flux_shapes.settings import AutoencoderSettings, RecipeSettings

_SHEET_EXAMPLES = 16


def build_autoencoder(settings: AutoencoderSettings) -> AutoencoderKL:
    """An untrained autoencoder: four levels, so eight pixels a latent, and no attention."""
    levels = len(settings.channels)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=settings.channels,
        layers_per_block=1,
        latent_channels=settings.latent_channels,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=128,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def picture_loss(
    made: Float[Tensor, "b 3 h w"], wanted: Float[Tensor, "b 3 h w"], edge_weight: float
) -> Float[Tensor, ""]:
    """L1 + MSE + edge_weight x L1 of the horizontal and vertical differences."""
    error = made - wanted
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + error.square().mean() + edge_weight * edges


def crops(examples: list[data.Example], size: int, rng: np.random.Generator) -> UInt8[np.ndarray, "b s s 3"]:
    """One crop of every picture, near one of its objects: the rest of a picture is plain."""
    images = data.pictures(examples)
    out = np.empty((len(images), size, size, 3), np.uint8)
    for i, e in enumerate(examples):
        x, y = e.scene.objects[rng.integers(len(e.scene.objects))].center
        corner = np.array([y, x]) - size / 2 + rng.uniform(-size / 4, size / 4, 2)
        top, left = corner.round().astype(int).clip(0, images.shape[1] - size)
        out[i] = images[i, top : top + size, left : left + size]
    return out


def train_autoencoder(work: Path, settings: RecipeSettings, minutes: float | None = None) -> AutoencoderKL:
    """Train encoder and decoder together; goes on from `autoencoder.pt` where there is one."""
    own = settings.autoencoder
    torch.manual_seed(settings.seed)
    vae = build_autoencoder(own)
    stage = Stage(work, "autoencoder", own.crop_steps + own.full_steps, minutes, settings.seed + 1)

    def draw(rng: np.random.Generator) -> UInt8[np.ndarray, "b h w 3"]:
        whole = stage.fraction >= own.crop_steps / stage.total
        batch = own.full_batch if whole else own.crop_batch
        chosen = _examples(settings, rng, batch)
        return data.pictures(chosen) if whole else crops(chosen, own.crop, rng)

    return _fit(vae, stage, own, 1.0, draw, _joint_loss)


def train_decoder(
    work: Path, settings: RecipeSettings, vae: AutoencoderKL, minutes: float | None = None
) -> AutoencoderKL:
    """Train the decoder further on whole pictures, the encoder frozen: the latents stay what they are."""
    own = settings.autoencoder
    torch.manual_seed(settings.seed)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    stage = Stage(work, "decoder", own.decoder_steps, minutes, settings.seed + 2)

    def draw(rng: np.random.Generator) -> UInt8[np.ndarray, "b h w 3"]:
        return data.pictures(_examples(settings, rng, own.decoder_batch))

    return _fit(vae, stage, own, own.decoder_scale, draw, _decoder_loss)


def _examples(settings: RecipeSettings, rng: np.random.Generator, n: int) -> list[data.Example]:
    return [data.example(settings.seed + 1, int(i)) for i in rng.integers(0, 2**40, n)]


def _fit(
    vae: AutoencoderKL,
    stage: Stage,
    own: AutoencoderSettings,
    scale: float,
    draw: Callable[[np.random.Generator], UInt8[np.ndarray, "b h w 3"]],
    loss_of: Callable[..., tuple[Tensor, dict[str, float]]],
) -> AutoencoderKL:
    """Train whatever of `vae` is not frozen, on the pictures that `draw` gives, until the budget is used."""
    optimizer = MuonAdam(
        vae.named_parameters(),
        lambda _, p: p.ndim == 4 and min(p.shape[:2]) > 3,  # all convolutions but those to and from RGB
        muon_lr=own.muon_learning_rate * scale,
        adam_lr=own.adam_learning_rate * scale,
    )
    if stage.state:
        vae.load_state_dict(stage.state["model"])
        optimizer.load_state_dict(stage.state["optimizer"])
    if stage.done:
        return vae.eval()
    sheet = stage.path.with_name(f"{stage.name}_samples.png")
    for rng in stage.steps():
        optimizer.set_rate(stage.rate(warmup=100, decay=0.8))
        loss, figures = loss_of(vae, data.to_tensor(draw(rng)), own)
        optimizer.descend(loss)
        stage.log(loss=loss.item(), **figures)
        if stage.due():
            stage.save(model=vae.state_dict(), optimizer=optimizer.state_dict())
            draw_round_trip(vae, sheet)
    stage.save(done=True, model=vae.state_dict(), optimizer=optimizer.state_dict())
    draw_round_trip(vae, sheet)
    return vae.eval()


def _joint_loss(
    vae: AutoencoderKL, wanted: Float[Tensor, "b 3 h w"], own: AutoencoderSettings
) -> tuple[Tensor, dict[str, float]]:
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(wanted).latent_dist
        spread = posterior.mean.detach().float().std(dim=(0, 2, 3), keepdim=True)
        latent = posterior.sample() + own.latent_noise * spread * torch.randn_like(posterior.mean)
        made = vae.decode(latent).sample.float()
    kl = posterior.kl().float().mean() / latent[0].numel()
    loss = picture_loss(made, wanted, own.edge_weight) + own.kl_weight * kl
    return loss, {"mse": (made.detach() - wanted).square().mean().item(), "kl": kl.item()}


def _decoder_loss(
    vae: AutoencoderKL, wanted: Float[Tensor, "b 3 h w"], own: AutoencoderSettings
) -> tuple[Tensor, dict[str, float]]:
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            latent = vae.encode(wanted).latent_dist.mean
            spread = latent.float().std(dim=(0, 2, 3), keepdim=True)
            # Every picture its own strength, from none: exact latents must stay exact.
            strength = own.latent_noise * 2 * torch.rand(len(latent), 1, 1, 1)
            latent = latent + strength * spread * torch.randn_like(latent)
        made = vae.decode(latent).sample.float()
    loss = picture_loss(made, wanted, own.edge_weight)
    return loss, {"mse": (made.detach() - wanted).square().mean().item()}


def round_trip(vae: AutoencoderKL, images: UInt8[np.ndarray, "b h w 3"]) -> UInt8[np.ndarray, "b h w 3"]:
    """Encode and decode pictures, in fp32 and without noise."""
    out = []
    with torch.no_grad():
        for start in range(0, len(images), 16):
            latent = vae.encode(data.to_tensor(images[start : start + 16])).latent_dist.mean
            out.append(data.to_images(vae.decode(latent).sample))
    return np.concatenate(out)


def draw_round_trip(vae: AutoencoderKL, path: Path) -> None:
    """Draw pictures over their reconstructions, two rows of eight each."""
    images = data.pictures(data.example(999, i, split="test") for i in range(_SHEET_EXAMPLES))
    made = round_trip(vae, images)
    half = _SHEET_EXAMPLES // 2
    rows = [
        np.concatenate(list(part), 1) for part in (images[:half], made[:half], images[half:], made[half:])
    ]
    save_image(path, Image.fromarray(np.concatenate(rows)))
