"""Settings of SAE training, each default with its reason."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, get_args

from fluxscope.errors import FluxscopeError
from fluxscope.fields import Checked, setting
from fluxscope.sae.architecture import Architecture
from fluxscope.sae.base import LinearSae
from fluxscope.sae.normalisation import Whitening
from fluxscope.sae.table import ARCHITECTURES


@dataclass(frozen=True)
class TrainConfig(Checked):
    """Settings of one SAE's training.

    Args:
        architecture: the architecture's own settings, such as TopK(k=16); by default those of the first one
            in the table.
        hidden_dim: f, number of features.
        steps: optimiser steps.
        batch_size: tokens a step.
        lr: peak learning rate; None: what the architecture finds best at this width.
        warmup_steps: steps over which the rate rises from zero.
        decay_share: last share of the steps, over which it falls to zero.
        clip_norm: largest gradient norm.
        dead_after_tokens: a latent silent for so many tokens counts as dead; None: 1% of all tokens, at least
            10 batches, at most 10 million. (Of 3 million tokens, 50,000 left fewer dead than 150,000.)
        whitening: of the activations: "none", "dimension" (each divided by its spread), "pca" or "soft_pca".
            SAEs that compare features and were whitened have decoder directions without unit norm
            (`Normalisation.fold`).
        seed: of the weights and the resampling.
        log_every: steps between two entries of the history.
    """

    architecture: Architecture = field(default_factory=lambda: ARCHITECTURES[0].load()())
    hidden_dim: int = setting(768, "Features.", low=1, high=2**24)
    steps: int = setting(2000, "Optimiser steps.", low=1)
    batch_size: int = setting(2048, "Tokens a step.", low=1, high=2**24)
    lr: float | None = setting(None, "Peak learning rate, above 0.", above=0.0, high=1000.0)
    warmup_steps: int = setting(100, "Steps over which the rate rises; 0 for none.", low=0)
    decay_share: float = setting(0.2, "A share of the steps, 0 to 1.", low=0.0, high=1.0)
    clip_norm: float = setting(1.0, "Largest gradient norm, above 0.", above=0.0)
    dead_after_tokens: int | None = setting(None, "Tokens of silence.", low=1, high=2**53)
    whitening: Whitening = "none"
    seed: int = setting(0, "Seed, 0 or more.", low=0, high=2**53)
    log_every: int = setting(100, "Steps between two entries.", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.whitening not in get_args(Whitening):
            known = ", ".join(get_args(Whitening))
            raise FluxscopeError(f"unknown whitening '{self.whitening}'", f"Known are {known}.")
        self.architecture.check(self.hidden_dim)

    def build(self, input_dim: int) -> LinearSae:
        """A fresh SAE."""
        return self.architecture.build(input_dim, self.hidden_dim)

    def peak_lr(self) -> float:
        """The highest learning rate: the one set, or the architecture's own."""
        return self.lr if self.lr is not None else self.architecture.peak_lr(self.hidden_dim)

    def learning_rate(self, step: int) -> float:
        """The rate at a step, counted from 0: linear warm-up, constant, linear decay to zero."""
        peak = self.peak_lr()
        decay_steps = max(1, round(self.steps * self.decay_share))
        return peak * min(1.0, (step + 1) / max(1, self.warmup_steps), (self.steps - step) / decay_steps)

    def dead_after(self) -> int:
        share = max(10 * self.batch_size, self.steps * self.batch_size // 100)
        return self.dead_after_tokens or min(10_000_000, share)

    def to_json(self) -> dict[str, Any]:
        """As config.json keeps it: flat, the architecture's name and own settings among the rest."""
        shared = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "architecture"}
        own = asdict(self.architecture)
        own = {name: list(value) if isinstance(value, tuple) else value for name, value in own.items()}
        return {"architecture": self.architecture.name, **own, **shared}
