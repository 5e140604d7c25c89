"""The transformer's training data, step by step: noised latents, captions, and the velocity to predict."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from recipes.flux_shapes.latents import WORDINGS, Latents
from recipes.flux_shapes.settings import RecipeSettings
from recipes.flux_shapes.words import TextEncoders, Words


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
