"""Settings of SAE training, each default with its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from fluxscope.errors import FluxscopeError
from fluxscope.fields import Checked, setting
from fluxscope.sae import (
    ARCHITECTURES,
    BatchTopKSparseAutoencoder,
    JumpReLUSparseAutoencoder,
    LinearSae,
    MatryoshkaSparseAutoencoder,
    SparseAutoencoder,
    TopKSparseAutoencoder,
)
from fluxscope.sae.normalisation import Whitening

PrecisionSetting = Literal["auto", "exact", "rescored", "bf16"]
_HIGHEST_LR = 4e-3


@dataclass(frozen=True)
class TrainConfig(Checked):
    """Settings of one SAE's training.

    Args:
        architecture: "topk", "relu", "batch_topk", "matryoshka_batch_topk" or "jumprelu".
        hidden_dim: f, number of features.
        k: active features a token (the TopK family).
        levels: prefix sizes ("matryoshka_batch_topk"); empty: f/16, f/8, f/4, f/2, f.
        l1_coeff: weight of the L1 penalty ("relu").
        l0_coeff: price of an active feature ("jumprelu").
        steps: optimiser steps.
        batch_size: tokens a step.
        lr: peak learning rate; None: for "relu" 2e-4 x sqrt(2^14 / f), the scaling law of Gao et al. 2024
            (arXiv 2406.04093), and for the others 1e-3 x sqrt(12,288 / f), at most 4e-3: four times as much,
            since runs here are of millions of tokens, not billions (measured in docs/sae-training.md).
        warmup_steps: steps over which the rate rises from zero.
        decay_share: last share of the steps, over which it falls to zero.
        sparsity_warmup_share: first share of the steps, over which the L1 or L0 penalty rises from zero.
        clip_norm: largest gradient norm.
        aux_coeff: weight of the AuxK loss (the TopK family).
        aux_k: dead latents that take part in it per token; None: d / 2.
        dead_after_tokens: a latent silent for so many tokens counts as dead; None: 1% of all tokens, at least
            10 batches, at most 10 million. (Of 3 million tokens, 50,000 left fewer dead than 150,000.)
        resample_every: steps between resamplings of dead latents ("relu"), in the first half of training;
            None: an eighth of the steps.
        precision: of the encoder's product ("topk"): "exact"; "rescored" chooses the latents that "exact"
            does, sooner where matrices are large; "bf16" is sooner still and approximate; "auto" is the
            faster of the first two on this machine. The rest of the family is always exact.
        whitening: of the activations: "none", "dimension" (each divided by its spread) or "pca". SAEs of the
            TopK family that were whitened have decoder directions without unit norm (`Normalisation.fold`).
        seed: of the weights and the resampling.
        log_every: steps between two entries of the history.
    """

    architecture: str = "topk"
    hidden_dim: int = setting(768, "Features.", low=1, high=2**24)
    k: int = setting(16, "Active features a token.", low=1)
    levels: tuple[int, ...] = setting((), "Prefix sizes, such as 64,256,1024.", low=1)
    l1_coeff: float = setting(0.05, "Penalties are 0 or more.", low=0.0)
    l0_coeff: float = setting(0.003, "Penalties are 0 or more.", low=0.0)
    steps: int = setting(2000, "Optimiser steps.", low=1)
    batch_size: int = setting(2048, "Tokens a step.", low=1, high=2**24)
    lr: float | None = setting(None, "Peak learning rate, above 0.", above=0.0, high=1000.0)
    warmup_steps: int = setting(100, "Steps over which the rate rises; 0 for none.", low=0)
    decay_share: float = setting(0.2, "A share of the steps, 0 to 1.", low=0.0, high=1.0)
    sparsity_warmup_share: float = setting(0.1, "A share of the steps, 0 to 1.", low=0.0, high=1.0)
    clip_norm: float = setting(1.0, "Largest gradient norm, above 0.", above=0.0)
    aux_coeff: float = setting(1 / 32, "Weight of the AuxK loss; 0 for none.", low=0.0)
    aux_k: int | None = setting(None, "Dead latents in the AuxK loss.", low=1)
    dead_after_tokens: int | None = setting(None, "Tokens of silence.", low=1, high=2**53)
    resample_every: int | None = setting(None, "Steps between resamplings.", low=1)
    precision: PrecisionSetting = "auto"
    whitening: Whitening = "none"
    seed: int = setting(0, "Seed, 0 or more.", low=0, high=2**53)
    log_every: int = setting(100, "Steps between two entries.", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        names = tuple(cls.architecture for cls in ARCHITECTURES)
        for name, value, known in (
            ("architecture", self.architecture, names),
            ("precision", self.precision, get_args(PrecisionSetting)),
            ("whitening", self.whitening, get_args(Whitening)),
        ):
            if value not in known:
                raise FluxscopeError(f"unknown {name} '{value}'", f"Known are {', '.join(known)}.")

    def peak_lr(self) -> float:
        """The highest learning rate: the one set, or the default for this architecture and width."""
        if self.lr is not None:
            return self.lr
        if self.architecture == "relu":
            return 2e-4 * math.sqrt(2**14 / self.hidden_dim)
        return min(1e-3 * math.sqrt(12288 / self.hidden_dim), _HIGHEST_LR)

    def learning_rate(self, step: int) -> float:
        """The rate at a step, counted from 0: linear warm-up, constant, linear decay to zero."""
        peak = self.peak_lr()
        decay_steps = max(1, round(self.steps * self.decay_share))
        return peak * min(1.0, (step + 1) / max(1, self.warmup_steps), (self.steps - step) / decay_steps)

    @property
    def sparsity_setting(self) -> Literal["k", "l1_coeff", "l0_coeff"]:
        """The setting that makes this architecture sparse."""
        if "topk" in self.architecture:
            return "k"
        return "l1_coeff" if self.architecture == "relu" else "l0_coeff"

    def sparsity(self, step: int) -> float:
        """What the sparsity penalty is multiplied by at a step: 0 rising to 1."""
        return min(1.0, step / max(1, round(self.steps * self.sparsity_warmup_share)))

    def dead_after(self) -> int:
        share = max(10 * self.batch_size, self.steps * self.batch_size // 100)
        return self.dead_after_tokens or min(10_000_000, share)


def build(input_dim: int, config: TrainConfig) -> LinearSae:
    """A fresh SAE of the configured architecture."""
    f = config.hidden_dim
    if config.architecture == "relu":
        return SparseAutoencoder(input_dim, f, config.l1_coeff)
    if config.architecture == "jumprelu":
        return JumpReLUSparseAutoencoder(input_dim, f, config.l0_coeff)
    if config.architecture == "batch_topk":
        return BatchTopKSparseAutoencoder(input_dim, f, config.k)
    if config.architecture == "matryoshka_batch_topk":
        return MatryoshkaSparseAutoencoder(input_dim, f, config.k, config.levels)
    return TopKSparseAutoencoder(input_dim, f, config.k)
