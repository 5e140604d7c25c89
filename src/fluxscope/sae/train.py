"""Training SAEs.

Activations are shifted and scaled while training (`normalisation`), so that their mean is zero and their
mean squared norm is d: most dead latents are latents whose pre-activation is ruled by the mean
(arXiv 2605.31518), and one learning rate then suits layers whose activations differ 13-fold in size. The
squared error is relative to the variance, which is 1 a dimension. What comes out is folded back and reads
raw activations.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fluxscope.sae import (
    JumpReLUSparseAutoencoder,
    LinearSae,
    SparseAutoencoder,
    TopKSparseAutoencoder,
)
from fluxscope.sae.auxk import aux_step
from fluxscope.sae.batch_topk import ThresholdedSae
from fluxscope.sae.data import InMemory, Source
from fluxscope.sae.kernels import Weights, sparse_step
from fluxscope.sae.largest import Entries, Scratch, largest_overall
from fluxscope.sae.normalisation import Normalisation
from fluxscope.sae.topk_encoder import ROW_BLOCK, encode_topk, fastest_exact
from fluxscope.sae.train_config import TrainConfig, build

__all__ = ["Log", "TrainConfig", "Trainer", "train", "train_many"]

Log = dict[str, Any]


def train(
    activations: Float[Tensor, "n d"] | np.ndarray,
    config: TrainConfig,
    device: torch.device | str = "cpu",
    on_log: Callable[[Log], None] | None = None,
) -> tuple[LinearSae, list[Log]]:
    """Train one SAE on raw activations held in one array.

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
    source = InMemory(activations, config.batch_size, config.seed, config.whitening)
    return train_many(source, [config], device, None if on_log is None else lambda _, log: on_log(log))[0]


def train_many(
    source: Source,
    configs: Sequence[TrainConfig],
    device: torch.device | str = "cpu",
    on_log: Callable[[int, Log], None] | None = None,
) -> list[tuple[LinearSae, list[Log]]]:
    """Train several SAEs in one pass over the data, each equal to its own solo run.

    Args:
        on_log: called with the config's place in the list and the entry of its history.
    """
    trainers = [Trainer(config, source.normalisation, device) for config in configs]
    histories: list[list[Log]] = [[] for _ in configs]
    for step in range(max(config.steps for config in configs)):
        batch = source.batch(step)
        for place, trainer in enumerate(trainers):
            if step < trainer.config.steps and (log := trainer.step(batch)):
                histories[place].append(log)
                if on_log:
                    on_log(place, log)
    calibration = [source.batch(step) for step in range(8)]
    return [
        (trainer.finish(calibration), history) for trainer, history in zip(trainers, histories, strict=True)
    ]


class Trainer:
    """One SAE in training: its weights, optimiser and count of silent tokens.

    Args:
        config: the settings.
        normalisation: of the data; folded into the weights at the end.
        device: where to train.
    """

    def __init__(
        self, config: TrainConfig, normalisation: Normalisation, device: torch.device | str = "cpu"
    ) -> None:
        assert normalisation.whitening == config.whitening, "a source of another whitening"
        self.config = config
        self.generator = torch.Generator().manual_seed(config.seed)
        self.normalise = normalisation.to(device)
        sae = build(len(normalisation.mean), config)
        sae.reset_parameters(self.generator)
        self.sae = sae.to(device)
        # The optimiser sees the decoder as (f, d), as it lies in memory: Adam copies what is strided.
        self._decoder_rows = torch.nn.Parameter(self.sae.decoder.weight.detach().T)
        others = [p for p in self.sae.parameters() if p is not self.sae.decoder.weight]
        # The loss is a mean over d dimensions, and so are the gradients: at FLUX.1's width those of rare
        # features fall to Adam's usual epsilon of 1e-8, which would slow just these.
        self.optimiser = torch.optim.Adam(
            [*others, self._decoder_rows], betas=(0.9, 0.999), eps=1e-8 / sae.input_dim, fused=True
        )
        self.silent_tokens = torch.zeros(sae.hidden_dim, dtype=torch.int64, device=device)
        self.steps_done = 0
        self.residual: Tensor | None = None  # of the last batch, normalised: x - reconstruction
        asked = config.precision
        self.precision = fastest_exact(device, sae.input_dim) if asked == "auto" else asked
        self._scratch = Scratch()

    @torch.no_grad()
    def step(self, batch: Float[Tensor, "b d"]) -> Log | None:
        """Learn from one batch of raw activations; returns an entry for the history when one is due."""
        config, step = self.config, self.steps_done
        x = self.normalise(batch)
        dead = self.silent_tokens >= config.dead_after()
        loss, residual, fired = self._gradients(x, dead)
        self.residual = residual
        _remove_parallel_gradient(self.sae)
        _clip_gradients(self.sae, config.clip_norm)
        for group in self.optimiser.param_groups:
            group["lr"] = config.learning_rate(step)
        self._decoder_rows.grad = Weights.gradients_of(self.sae).decoder
        self.optimiser.step()
        self.sae.constrain()
        self.silent_tokens.add_(len(x)).masked_fill_(fired > 0, 0)
        if self._resampling_due(step):
            self._resample(x, residual, dead)
        self.steps_done += 1
        if step % config.log_every == 0 or step == config.steps - 1:
            return self._log(loss, x, residual, fired, dead)
        return None

    def finish(self, calibration: Sequence[Tensor]) -> LinearSae:
        """The SAE as it is now, reading raw activations; training can go on after it.

        Args:
            calibration: raw activations on which a threshold is set; held-out ones at best.
        """
        sae = copy.deepcopy(self.sae).requires_grad_(False).eval()
        self.normalise.fold(sae)
        sae.calibrate(calibration)
        return sae

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on as if nothing had happened."""
        return {
            "sae": self.sae.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "silent_tokens": self.silent_tokens,
            "steps_done": self.steps_done,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sae.load_state_dict(state["sae"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.silent_tokens.copy_(state["silent_tokens"])
        self.steps_done = state["steps_done"]
        self.generator.set_state(state["generator"])

    def _gradients(self, x: Tensor, dead: Bool[Tensor, " f"]) -> tuple[Tensor, Tensor, Tensor]:
        """Fill the gradients; (loss, x - reconstruction, how often each latent fired)."""
        if isinstance(self.sae, SparseAutoencoder | JumpReLUSparseAutoencoder):
            self.sae.zero_grad()
            with torch.enable_grad():
                loss, reconstruction, code = self.sae.training_loss(x, self.config.sparsity(self.steps_done))
                loss.backward()
            return loss.detach(), x - reconstruction.detach(), (code > 0).sum(0)
        weights, grads = Weights.of(self.sae), Weights.gradients_of(self.sae)
        centred = x - weights.pre_bias
        entries = self._choose(centred, weights)
        outcome = sparse_step(x, centred, entries, weights, grads, getattr(self.sae, "levels", ()))
        loss = outcome.loss
        dead_ids = dead.nonzero().flatten()
        if len(dead_ids):
            k = self.config.aux_k or self.sae.input_dim // 2
            aux = self.config.aux_coeff
            loss = loss + aux_step(centred, outcome.residual, dead_ids, k, aux, weights, grads)
        fired = torch.zeros_like(weights.bias).index_add_(0, entries.feature, (entries.value > 0).float())
        return loss, outcome.residual, fired

    def _choose(self, centred: Tensor, weights: Weights) -> Entries:
        """The latents that form the batch's codes."""
        if isinstance(self.sae, TopKSparseAutoencoder):
            chosen = encode_topk(
                centred, weights.encoder, weights.bias, self.sae.k, self.precision, self._scratch
            )
            return Entries.from_rows(chosen.feature, chosen.value)
        assert isinstance(self.sae, ThresholdedSae)
        pre = self._scratch.get("pre", (len(centred), self.sae.hidden_dim), centred)
        torch.addmm(weights.bias, centred, weights.encoder.T, out=pre)
        return largest_overall(pre, len(centred) * self.sae.k)

    def _resampling_due(self, step: int) -> bool:
        every = self.config.resample_every or max(1, self.config.steps // 8)
        early = 0 < step <= self.config.steps // 2
        return isinstance(self.sae, SparseAutoencoder) and early and step % every == 0

    def _resample(self, x: Tensor, residual: Tensor, dead: Bool[Tensor, " f"]) -> None:
        """Point dead latents at inputs that are reconstructed badly (Bricken et al. 2023).

        Inputs are drawn with probability proportional to their squared loss; the encoder row gets a fifth
        of the mean norm of the living ones; the optimiser forgets what it knew of the latent.
        """
        ids = dead.nonzero().flatten()
        if not 0 < len(ids) < len(dead):
            return
        loss = residual.square().sum(1).square().double().cpu()
        chosen = torch.multinomial(loss, len(ids), replacement=True, generator=self.generator).to(x.device)
        directions = torch.nn.functional.normalize(x[chosen] - self.sae.pre_bias, dim=1)
        living = self.sae.encoder.weight[~dead].norm(dim=1).mean()
        self.sae.decoder.weight.T[ids] = directions
        self.sae.encoder.weight[ids] = 0.2 * living * directions
        self.sae.encoder.bias[ids] = 0
        self.silent_tokens[ids] = 0
        for parameter in (self.sae.encoder.weight, self.sae.encoder.bias, self._decoder_rows):
            for name in ("exp_avg", "exp_avg_sq"):
                self.optimiser.state[parameter][name][ids] = 0

    def _log(self, loss: Tensor, x: Tensor, residual: Tensor, fired: Tensor, dead: Tensor) -> Log:
        variance = (x - x.mean(0)).square().sum()
        return {
            "step": self.steps_done,
            "loss": float(loss),
            "explained_variance": 1 - float(residual.square().sum() / variance),
            "l0": float(fired.sum()) / len(x),
            "dead_share": float(dead.float().mean()),
            "lr": self.config.learning_rate(self.steps_done - 1),
        }


def _clip_gradients(sae: LinearSae, most: float) -> None:
    """Scale the gradients down to a joint norm of `most` where it is larger.

    PyTorch's own function multiplies by 1 where it is not, lest a GPU's norm be waited for. Here that norm
    is at hand on CPUs, and the pass over all gradients is saved.
    """
    norm = torch.nn.utils.get_total_norm([p.grad for p in sae.parameters() if p.grad is not None])
    if norm.is_cuda or not norm + 1e-6 <= most:  # also when it is not a number
        torch.nn.utils.clip_grads_with_norm_(sae.parameters(), most, norm)


def _remove_parallel_gradient(sae: LinearSae) -> None:
    """Keep only the gradient that turns a decoder direction: its length is fixed anyway."""
    directions, gradients = Weights.of(sae).decoder, Weights.gradients_of(sae).decoder
    # By blocks: vecdot makes a product as large as its arguments.
    for direction, gradient in zip(directions.split(ROW_BLOCK), gradients.split(ROW_BLOCK), strict=True):
        along = torch.linalg.vecdot(gradient, direction)
        gradient.addcmul_(along[:, None], direction, value=-1)
