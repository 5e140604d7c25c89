"""Training SAEs on stored activations.

Activations are shifted and scaled while training, x' = s (x - mean), so that their mean is zero and their
mean squared norm is d: most dead latents are latents whose pre-activation is ruled by the mean (FACTS,
arXiv 2605.31518). What comes out is folded back and reads raw activations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from fluxscope.errors import FluxscopeError
from fluxscope.sae.base import LinearSae
from fluxscope.sae.relu import SparseAutoencoder
from fluxscope.sae.topk import TopKSparseAutoencoder

MAX_BAD_SHARE = 0.01
_REFERENCE_WIDTH, _REFERENCE_LR = 2**14, 2e-4


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run.

    Args:
        architecture: "topk" or "relu".
        hidden_dim: f, number of features.
        k: active features a token ("topk").
        l1_coeff: weight of the L1 penalty ("relu").
        steps: optimiser steps.
        batch_size: tokens a step.
        lr: peak learning rate; None: 2e-4 x sqrt(2^14 / f), the scaling law of Gao et al. 2024.
        warmup_steps: steps over which the rate rises from zero.
        decay_share: last share of the steps, over which it falls to zero.
        clip_norm: largest gradient norm.
        aux_coeff: weight of the AuxK loss ("topk").
        aux_k: dead latents that take part in it per token; None: d / 2.
        dead_after_tokens: a latent that hasn't fired on so many tokens counts as dead.
        seed: of the start and of the order of tokens.
        log_every: steps between two entries of the history.
    """

    architecture: str = "topk"
    hidden_dim: int = 768
    k: int = 16
    l1_coeff: float = 0.05
    steps: int = 2000
    batch_size: int = 2048
    lr: float | None = None
    warmup_steps: int = 100
    decay_share: float = 0.2
    clip_norm: float = 1.0
    aux_coeff: float = 1 / 32
    aux_k: int | None = None
    dead_after_tokens: int = 200_000
    seed: int = 0
    log_every: int = 100

    def learning_rate(self, step: int) -> float:
        """The rate at a step, counted from 0: linear warm-up, constant, linear decay to zero."""
        peak = self.lr or _REFERENCE_LR * math.sqrt(_REFERENCE_WIDTH / self.hidden_dim)
        decay_steps = max(1, round(self.steps * self.decay_share))
        rise = (step + 1) / max(1, self.warmup_steps)
        fall = (self.steps - step) / decay_steps
        return peak * min(1.0, rise, fall)


@dataclass(frozen=True)
class Normalisation:
    """x' = scale (x - mean): mean zero, mean squared norm d."""

    mean: Float32[Tensor, " d"]
    scale: float

    def __call__(self, x: Float[Tensor, "t d"]) -> Float32[Tensor, "t d"]:
        return (x.float() - self.mean) * self.scale

    @torch.no_grad()
    def fold(self, sae: LinearSae) -> None:
        """Make an SAE trained on x' read and write x: the codes become 1 / scale times what they were."""
        sae.pre_bias.div_(self.scale).add_(self.mean)
        sae.encoder.bias.div_(self.scale)


@torch.no_grad()
def train(
    activations: Float[Tensor, "n d"] | np.ndarray,
    config: TrainConfig,
    device: torch.device | str = "cpu",
    on_log: Callable[[dict[str, Any]], None] | None = None,
) -> tuple[LinearSae, list[dict[str, Any]]]:
    """Train one SAE on raw activations.

    Args:
        activations: (n, d), tensor, array or memory map, of any floating dtype; rows with NaN or infinity
            are skipped.
        on_log: called with each entry of the history as it is made.

    Returns:
        The SAE, which reads raw activations, and the history: one dict each `log_every` steps of step,
        loss, explained_variance (of the batch), l0, dead_share, lr.

    Raises:
        FluxscopeError: no activations, more than 1% of them NaN or infinite, or settings that cannot be.
    """
    rows = torch.from_numpy(activations) if isinstance(activations, np.ndarray) else activations
    good = finite_rows(rows)
    normalise = fit_normalisation(rows, good)
    torch_state = torch.Generator().manual_seed(config.seed)
    sae = build(rows.shape[1], config)
    sae.reset_parameters(torch_state)
    sae.to(device)
    history = _loop(sae, rows, good, normalise, config, torch_state, on_log)
    Normalisation(normalise.mean.to(device), normalise.scale).fold(sae)
    return sae.eval(), history


def build(input_dim: int, config: TrainConfig) -> LinearSae:
    """A fresh SAE of the configured architecture."""
    if config.architecture == "topk":
        return TopKSparseAutoencoder(input_dim, config.hidden_dim, config.k)
    if config.architecture == "relu":
        return SparseAutoencoder(input_dim, config.hidden_dim, config.l1_coeff)
    raise FluxscopeError(f"no trainer for architecture '{config.architecture}'", "Known are topk, relu.")


def finite_rows(rows: Float[Tensor, "n d"], block: int = 65536) -> Bool[Tensor, " n"]:
    """Which rows hold neither NaN nor infinity.

    Raises:
        FluxscopeError: there are no rows, or more than 1% are bad.
    """
    if rows.ndim != 2 or rows.numel() == 0:
        raise FluxscopeError(
            f"there are no activations to train on (shape {tuple(rows.shape)})", "Collect some first."
        )
    good = torch.cat([torch.isfinite(part).all(1) for part in rows.split(block)])
    bad = int((~good).sum())
    if bad > MAX_BAD_SHARE * len(rows):
        raise FluxscopeError(
            f"{bad} of {len(rows)} activations hold NaN or infinity",
            "Collect them in bfloat16 or float32: in float16 FLUX overflows.",
        )
    return good


def fit_normalisation(
    rows: Float[Tensor, "n d"], good: Bool[Tensor, " n"], block: int = 65536
) -> Normalisation:
    """Mean and scale of the good rows, summed in float64."""
    total = torch.zeros(rows.shape[1], dtype=torch.float64)
    square = 0.0
    for part, keep in zip(rows.split(block), good.split(block), strict=True):
        x = part[keep].double()
        total += x.sum(0)
        square += float((x * x).sum())
    n = int(good.sum())
    mean = total / n
    spread = square / n - float(mean @ mean)
    if spread <= 1e-12 * square / n:
        raise FluxscopeError("all activations are equal: there is nothing to learn", "Collect other ones.")
    return Normalisation(mean.float(), math.sqrt(rows.shape[1] / spread))


def shuffled_batches(
    rows: Float[Tensor, "n d"],
    good: Bool[Tensor, " n"],
    batch_size: int,
    generator: torch.Generator,
) -> Iterator[Float[Tensor, "b d"]]:
    """Endless batches of the good rows, every epoch in a new order. A last short batch is left out."""
    usable = good.nonzero().flatten()
    size = min(batch_size, len(usable))
    while True:
        order = usable[torch.randperm(len(usable), generator=generator)]
        for start in range(0, len(order) - size + 1, size):
            yield rows[order[start : start + size].sort().values]


def _loop(
    sae: LinearSae,
    rows: Tensor,
    good: Tensor,
    normalise: Normalisation,
    config: TrainConfig,
    generator: torch.Generator,
    on_log: Callable[[dict[str, Any]], None] | None,
) -> list[dict[str, Any]]:
    optimiser = torch.optim.Adam(sae.parameters(), betas=(0.9, 0.999), fused=True)
    silent_tokens = torch.zeros(sae.hidden_dim, dtype=torch.int64, device=sae.pre_bias.device)
    history = []
    batches = shuffled_batches(rows, good, config.batch_size, generator)
    for step, batch in zip(range(config.steps), batches, strict=False):
        x = normalise(batch).to(sae.pre_bias.device)
        lr = config.learning_rate(step)
        for group in optimiser.param_groups:
            group["lr"] = lr
        dead = silent_tokens >= config.dead_after_tokens
        with torch.enable_grad():
            loss, reconstruction, code = _loss(sae, x, dead, config)
            optimiser.zero_grad()
            loss.backward()
        _remove_parallel_gradient(sae)
        torch.nn.utils.clip_grad_norm_(sae.parameters(), config.clip_norm)
        optimiser.step()
        sae.normalize_decoder()
        active = code > 0
        silent_tokens = torch.where(active.any(0), 0, silent_tokens + len(x))
        if step % config.log_every == 0 or step == config.steps - 1:
            history.append(_entry(step, loss, x, reconstruction, active, dead, lr))
            if on_log:
                on_log(history[-1])
    return history


def _loss(
    sae: LinearSae, x: Float[Tensor, "b d"], dead: Bool[Tensor, " f"], config: TrainConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, reconstruction, code). The squared error is relative to the variance, which is 1 a dimension."""
    pre = torch.relu(sae.pre_activations(x))
    if isinstance(sae, TopKSparseAutoencoder):
        values, indices = pre.topk(sae.k, dim=-1, sorted=False)
        code = torch.zeros_like(pre).scatter(-1, indices, values)
    else:
        code = pre
    reconstruction = sae.decode(code)
    loss = (x - reconstruction).square().mean()
    if isinstance(sae, SparseAutoencoder):
        loss = loss + sae.l1_coeff * code.sum(-1).mean() / math.sqrt(sae.input_dim)
    elif dead.any():
        loss = loss + config.aux_coeff * _aux_loss(sae, (x - reconstruction).detach(), pre, dead, config)
    return loss, reconstruction, code


def _aux_loss(
    sae: LinearSae, residual: Tensor, pre: Tensor, dead: Tensor, config: TrainConfig
) -> Float[Tensor, ""]:
    """The strongest dead latents reconstruct the residual; error relative to the residual's variance."""
    dead_ids = dead.nonzero().flatten()
    k = min(config.aux_k or sae.input_dim // 2, len(dead_ids))
    values, places = pre[:, dead_ids].topk(k, dim=-1, sorted=False)
    code = torch.zeros_like(pre[:, dead_ids]).scatter(-1, places, values)
    guess = code @ sae.decoder.weight[:, dead_ids].T
    variance = (residual - residual.mean(0)).square().mean()
    return ((residual - guess).square().mean() / variance).nan_to_num(0.0)


def _remove_parallel_gradient(sae: LinearSae) -> None:
    """Keep only the gradient that turns a decoder direction: its length is fixed anyway."""
    weight, grad = sae.decoder.weight, sae.decoder.weight.grad
    assert grad is not None
    grad.sub_((grad * weight).sum(0, keepdim=True) * weight)


def _entry(
    step: int, loss: Tensor, x: Tensor, reconstruction: Tensor, active: Tensor, dead: Tensor, lr: float
) -> dict[str, Any]:
    error, variance = (x - reconstruction).square().sum(), (x - x.mean(0)).square().sum()
    return {
        "step": step + 1,
        "loss": float(loss),
        "explained_variance": 1 - float(error / variance),
        "l0": float(active.sum()) / len(x),
        "dead_share": float(dead.float().mean()),
        "lr": lr,
    }
