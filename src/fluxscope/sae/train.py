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
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from fluxscope.sae.architecture import Moment, StepResult
from fluxscope.sae.base import LinearSae
from fluxscope.sae.data import InMemory, Source
from fluxscope.sae.kernels import Weights
from fluxscope.sae.largest import Scratch
from fluxscope.sae.normalisation import Normalisation
from fluxscope.sae.topk_encoder import ROW_BLOCK
from fluxscope.sae.train_config import TrainConfig

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
        sae = config.build(len(normalisation.mean))
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
        self._scratch = Scratch()

    @torch.no_grad()
    def step(self, batch: Float[Tensor, "b d"]) -> Log | None:
        """Learn from one batch of raw activations; returns an entry for the history when one is due."""
        config, step = self.config, self.steps_done
        architecture, sae = config.architecture, self.sae
        x = self.normalise(batch)
        moment = Moment(step, config.steps, self.silent_tokens >= config.dead_after())
        result = architecture.gradients(sae, x, moment, self._scratch)
        self.residual = result.residual
        _remove_parallel_gradient(sae)
        _clip_gradients(sae, config.clip_norm)
        for group in self.optimiser.param_groups:
            group["lr"] = config.learning_rate(step)
        self._decoder_rows.grad = Weights.gradients_of(sae).decoder
        self.optimiser.step()
        sae.constrain()
        self.silent_tokens.add_(len(x)).masked_fill_(result.fired > 0, 0)
        revived = architecture.revive(sae, x, result.residual, moment, self.generator)
        if len(revived):
            self._begin_anew(revived)
        self.steps_done += 1
        if step % config.log_every == 0 or step == config.steps - 1:
            return self._log(x, result, moment.dead)
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

    def _begin_anew(self, latents: Int64[Tensor, " n"]) -> None:
        """Forget what the optimiser knew of latents with new weights, and how long they were silent."""
        self.silent_tokens[latents] = 0
        for parameter in (self.sae.encoder.weight, self.sae.encoder.bias, self._decoder_rows):
            for name in ("exp_avg", "exp_avg_sq"):
                self.optimiser.state[parameter][name][latents] = 0

    def _log(self, x: Float[Tensor, "b d"], result: StepResult, dead: Bool[Tensor, " f"]) -> Log:
        variance = (x - x.mean(0)).square().sum()
        return {
            "step": self.steps_done,
            "loss": float(result.loss),
            "explained_variance": 1 - float(result.residual.square().sum() / variance),
            "l0": float(result.fired.sum()) / len(x),
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
