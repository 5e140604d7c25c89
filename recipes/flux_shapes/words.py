"""Captions as the transformer gets them: T5's states and CLIP's pooled output."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers import CLIPTextModel, T5EncoderModel

from recipes.flux_shapes.text import build_clip_tokenizer, build_t5_tokenizer, tokenize


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
