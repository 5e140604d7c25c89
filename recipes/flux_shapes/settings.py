"""Every hyperparameter of the recipe, in one place.

Budgets are counted in optimiser steps, never in seconds: the same settings give the same weights on the
same machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TextSettings:
    """The T5 encoder, trained on parsing captions and then frozen."""

    width: int = 96
    head_width: int = 32
    ff_width: int = 256
    layers: int = 2
    heads: int = 3
    steps: int = 1500
    batch: int = 256
    learning_rate: float = 2e-3
    unknown_words: float = 0.05  # share of captions in which a few words are replaced or inserted


@dataclass(frozen=True)
class ClipSettings:
    """clip-shapes: contrastive on pictures and captions, with auxiliary heads on the attributes."""

    vision_width: int = 128
    vision_layers: int = 3
    vision_heads: int = 4
    text_width: int = 96
    text_layers: int = 2
    text_heads: int = 3
    projection: int = 64
    steps: int = 450
    vision_steps: int = 1200  # text half frozen: the transformer learns from it meanwhile
    batch: int = 96
    learning_rate: float = 1e-3
    auxiliary_weight: float = 0.5
    partial_captions: float = 0.35  # share that leaves something out: users' words are short


@dataclass(frozen=True)
class AutoencoderSettings:
    """AutoencoderKL: first on crops, then on whole pictures; the decoder alone goes on at the end."""

    channels: tuple[int, ...] = (16, 32, 64, 64)
    latent_channels: int = 8
    crop: int = 64
    crop_steps: int = 1250
    crop_batch: int = 32
    full_steps: int = 380
    full_batch: int = 8
    decoder_steps: int = 770  # encoder frozen, so that the latents stay what the transformer learnt
    decoder_batch: int = 8
    muon_learning_rate: float = 0.02
    adam_learning_rate: float = 2e-3
    decoder_scale: float = 0.5  # learning rates of the decoder alone, relative to the joint ones
    edge_weight: float = 0.5
    kl_weight: float = 1e-6
    latent_noise: float = 0.1  # in standard deviations of the latents: the decoder meets inexact latents


@dataclass(frozen=True)
class TransformerSettings:
    """FluxTransformer2DModel: trained shallow, grown to full depth, and given distilled guidance."""

    heads: int = 2
    head_width: int = 64
    axes: tuple[int, int, int] = (8, 28, 28)
    double_blocks: int = 19
    single_blocks: int = 2
    shallow_double_blocks: int = 6
    shallow_single_blocks: int = 1
    grown_places: tuple[int, ...] = (1, 5, 8, 11, 15, 18)  # where the shallow double blocks go
    batch: int = 64
    shallow_steps: int = 9000
    grown_steps: int = 4800
    muon_learning_rate: float = 0.02
    adam_learning_rate: float = 1e-3
    grown_scale: float = 0.6  # learning rates of the later stages, relative to the shallow one
    decay_share: float = 0.5  # the last share of the steps, over which the rate falls to zero
    warmup_steps: int = 100
    caption_drop: float = 0.1
    time_mean: float = 0.8  # noise levels are sigmoid(normal(this, 1)): shapes are decided at 0.6 to 0.8
    guidance_range: tuple[float, float] = (1.0, 5.0)
    guided_samples: int = 40  # of a batch in the grown stage; the others are at guidance 1
    preview_every: int = 500


@dataclass(frozen=True)
class RecipeSettings:
    """All stages. `pictures` is how many scenes are rendered and encoded for the transformer."""

    seed: int = 0
    pictures: int = 160_000
    sequence_length: int = 20
    text: TextSettings = field(default_factory=TextSettings)
    clip: ClipSettings = field(default_factory=ClipSettings)
    autoencoder: AutoencoderSettings = field(default_factory=AutoencoderSettings)
    transformer: TransformerSettings = field(default_factory=TransformerSettings)
