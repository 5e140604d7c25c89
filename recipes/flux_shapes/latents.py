"""Pictures encoded once: what the transformer trains on.

Writes `latents.npy` (picture, token, 4 x latent channels; float16, packed as FLUX packs them),
`captions.npz` (token ids of several wordings of each picture, for both text encoders) and
`latent_stats.npz` (mean and standard deviation of each latent channel).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from jaxtyping import Float, Int16
from torch import Tensor

from fluxscope.files import save_npz
from fluxscope.shapes import world
from recipes.flux_shapes import data
from recipes.flux_shapes.settings import RecipeSettings
from recipes.flux_shapes.text import build_clip_tokenizer, build_t5_tokenizer, perturb, tokenize

WORDINGS = 4
_CHUNK = 500


@dataclass(frozen=True)
class Latents:
    """Packed latents, the token ids of their captions, and the statistics that normalise them."""

    packed: Float[np.ndarray, "n t c4"]
    t5_ids: Int16[np.ndarray, "n w l"]
    clip_ids: Int16[np.ndarray, "n w l"]
    mean: Float[np.ndarray, " c"]
    std: Float[np.ndarray, " c"]

    def normalised(self, rows: np.ndarray) -> Float[Tensor, "b t c4"]:
        """The latents of some pictures, each channel with mean 0 and standard deviation 1."""
        raw = torch.from_numpy(self.packed[rows].astype(np.float32))
        mean, std = (torch.from_numpy(np.repeat(x, 4)) for x in (self.mean, self.std))
        return (raw - mean) / std


def pack(latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b t c4"]:
    """Squares of 2 x 2 latent pixels become tokens, row by row, as in FluxPipeline."""
    b, c, h, w = latents.shape
    squares = latents.view(b, c, h // 2, 2, w // 2, 2)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // 2) * (w // 2), c * 4)  # b t c4


def make_latents(work: Path, settings: RecipeSettings, vae: AutoencoderKL) -> Latents:
    """Encode all pictures; goes on where a killed run stopped."""
    if not (work / "latent_stats.npz").exists():
        _encode(work, settings, vae)
        _tokenize_captions(work, settings)
        _measure(work, settings.autoencoder.latent_channels)
    captions, stats = np.load(work / "captions.npz"), np.load(work / "latent_stats.npz")
    packed = np.load(work / "latents.npy", mmap_mode="r")
    return Latents(packed, captions["t5"], captions["clip"], stats["mean"], stats["std"])


def _seed(settings: RecipeSettings) -> int:
    return settings.seed + 5


def _encode(work: Path, settings: RecipeSettings, vae: AutoencoderKL) -> None:
    path, counter = work / "latents.npy", work / "latents_done.txt"
    done = int(counter.read_text()) if counter.exists() and path.exists() else 0
    tokens = (world.RESOLUTION // 16) ** 2
    shape = (settings.pictures, tokens, 4 * settings.autoencoder.latent_channels)
    out = np.lib.format.open_memmap(path, "r+" if done else "w+", np.float16, None if done else shape)
    for start in range(done, settings.pictures, _CHUNK):
        stop = min(start + _CHUNK, settings.pictures)
        out[start:stop] = _encode_rows(settings, vae, range(start, stop))
        out.flush()
        counter.write_text(str(stop))
        if stop % (10 * _CHUNK) == 0:
            print(f"latents {stop}/{settings.pictures}", flush=True)


def _encode_rows(settings: RecipeSettings, vae: AutoencoderKL, rows: range) -> Float[np.ndarray, "b t c4"]:
    parts = []
    for start in range(rows.start, rows.stop, 25):
        numbers = range(start, min(start + 25, rows.stop))
        pixels = data.to_tensor(data.pictures(data.example(_seed(settings), i) for i in numbers))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            parts.append(pack(vae.encode(pixels).latent_dist.mean.float()).numpy())
    return np.concatenate(parts)


def _tokenize_captions(work: Path, settings: RecipeSettings) -> None:
    texts = []
    for i in range(settings.pictures):
        rng = np.random.default_rng((_seed(settings), 1, i))
        scene = data.example(_seed(settings), i).scene
        for _ in range(WORDINGS):
            text = world.caption(scene, world.sample_phrasing(rng))
            texts.append(perturb(text, rng) if rng.random() < settings.text.unknown_words else text)
    length = settings.sequence_length
    shape = (settings.pictures, WORDINGS, length)
    t5 = tokenize(build_t5_tokenizer(length), texts, length).numpy().astype(np.int16)
    clip = tokenize(build_clip_tokenizer(length), texts, length).numpy().astype(np.int16)
    save_npz(work / "captions.npz", t5=t5.reshape(shape), clip=clip.reshape(shape))


def _measure(work: Path, channels: int) -> None:
    some = np.load(work / "latents.npy", mmap_mode="r")[:5000].astype(np.float32)
    by_channel = some.reshape(-1, channels, 4)
    save_npz(work / "latent_stats.npz", mean=by_channel.mean((0, 2)), std=by_channel.std((0, 2)))
