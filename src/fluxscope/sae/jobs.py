"""A training run in its folders: logs, checkpoints, the best SAE so far, and going on after an interruption.

Each SAE has a folder of its own:

    config.json      the settings
    log.jsonl        one line each `log_every` steps, and one each evaluation
    state.pt         weights, optimiser and counters; what an interrupted run goes on from
    sae_best.pt      the SAE that explained most of the held-out activations so far
    scores.json      its scores on them
    frequency.npy    float32 (f): share of held-out tokens on which each feature fires
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxscope import files
from fluxscope.errors import FluxscopeError, clear_memory_errors
from fluxscope.sae.data import Source
from fluxscope.sae.formats import save
from fluxscope.sae.metrics import Scores, evaluate
from fluxscope.sae.table import sparsity_of
from fluxscope.sae.train import Log, TrainConfig, Trainer


@dataclass(frozen=True)
class Job:
    """One SAE to train.

    Args:
        folder: where its files go.
        config: its settings.
        entries: what its checkpoint says besides (layer, timestep, site, model_id, ...).
    """

    folder: Path
    config: TrainConfig
    entries: Mapping[str, Any]


def folder_name(place: str, timestep: int, config: TrainConfig, input_dim: int, stamp: str) -> str:
    """sae_training_layer15_t14_topk16_x8_<stamp>: what readers of checkpoints look for.

    The number is what makes the SAE sparse: k, or the weight of its penalty (relu0.15, jumprelu0.003).
    """
    architecture, sparsity = config.architecture, sparsity_of(config.architecture)
    kind = f"{sparsity.folder or architecture.name}{sparsity.value(architecture):g}"
    return f"sae_training_{place}_t{timestep}_{kind}_x{config.hidden_dim / input_dim:g}_{stamp}"


@clear_memory_errors("training SAEs")
def train_jobs(
    source: Source,
    jobs: Sequence[Job],
    held_out: Sequence[Tensor],
    device: torch.device | str = "cpu",
    save_every: int = 1000,
    on_step: Callable[[int, dict[str, Log]], None] | None = None,
) -> list[Scores]:
    """Train all jobs in one pass over the data; interrupted and called again, it goes on where it was.

    Args:
        source: the training batches; the jobs share each one.
        held_out: batches of raw activations, (t, d) each, of pictures that are not trained on.
        save_every: steps between two evaluations and checkpoints.
        on_step: called after every step with the number of steps done and, by the name of the job's folder,
            the log entries that came due.

    Returns:
        The scores of each job's best SAE.

    Raises:
        FluxscopeError: a folder belongs to other settings, or there are no held-out activations.
    """
    if not held_out:
        raise FluxscopeError("there are no held-out activations", "Leave some pictures out of training.")
    trainings = [_Training(job, source, held_out, device) for job in jobs]
    first = min((training.trainer.steps_done for training in trainings), default=0)
    for step in range(first, max((job.config.steps for job in jobs), default=0)):
        batch = source.batch(step)
        due = {training.job.folder.name: training.step(step, batch, save_every) for training in trainings}
        logs = {name: log for name, log in due.items() if log}
        if on_step:
            on_step(step + 1, logs)
    return [training.best for training in trainings]


class _Training:
    """One job's trainer and its folder."""

    def __init__(
        self, job: Job, source: Source, held_out: Sequence[Tensor], device: torch.device | str
    ) -> None:
        self.job, self.held_out = job, held_out
        self.trainer = Trainer(job.config, source.normalisation, device)
        self._claim()
        if (job.folder / "state.pt").is_file():
            self.trainer.load_state_dict(files.read_torch_checkpoint(job.folder / "state.pt"))
        self._drop_later_lines()

    @property
    def best(self) -> Scores:
        return Scores(**files.read_json(self.job.folder / "scores.json"))

    def step(self, step: int, batch: Tensor, save_every: int) -> Log | None:
        """Train on one batch, unless this step was done before the interruption or lies past the end."""
        config = self.job.config
        if not self.trainer.steps_done <= step < config.steps:
            return None
        log = self.trainer.step(batch)
        if log:
            files.append_jsonl(self.job.folder / "log.jsonl", log)
        if (step + 1) % save_every == 0 or step + 1 == config.steps:
            self._evaluate()
            with files.atomic_write(self.job.folder / "state.pt") as file:
                torch.save(self.trainer.state_dict(), file)
        return log

    def _evaluate(self) -> None:
        """Score on the held-out activations, and keep the SAE when it is the best so far."""
        folder, sae = self.job.folder, self.trainer.finish(self.held_out)
        evaluation = evaluate(sae, self.held_out)
        scores = evaluation.scores()
        files.append_jsonl(
            folder / "log.jsonl", {"step": self.trainer.steps_done, "held_out": asdict(scores)}
        )
        known = (folder / "scores.json").is_file()
        if known and scores.explained_variance <= self.best.explained_variance:
            return
        found = {"explained_variance": scores.explained_variance, "l0": scores.l0}
        tokens = self.trainer.steps_done * self.job.config.batch_size
        entries = dict(self.job.entries) | found | {"trained_tokens": tokens}
        save(folder / "sae_best.pt", sae, entries)
        files.save_npy(folder / "frequency.npy", evaluation.frequency.numpy())
        files.write_json(folder / "scores.json", asdict(scores))

    def _claim(self) -> None:
        """Write the settings, or refuse a folder that holds others."""
        path = self.job.folder / "config.json"
        settings = {"training": self.job.config.to_json(), "entries": dict(self.job.entries)}
        if not path.is_file():
            files.write_json(path, settings)
        elif not _same_settings(files.read_json(path), settings):
            raise FluxscopeError(
                f"{self.job.folder} belongs to a training with other settings",
                "Choose another folder, or delete this one.",
            )

    def _drop_later_lines(self) -> None:
        """Forget what was logged after the checkpoint: those steps are about to be done again."""
        path = self.job.folder / "log.jsonl"
        if path.is_file():
            kept = [log for log in files.read_jsonl(path) if log["step"] <= self.trainer.steps_done]
            path.unlink()
            if kept:
                files.append_jsonl(path, kept)


def _same_settings(recorded: Any, settings: Mapping[str, Any]) -> bool:
    """Whether a folder's settings are these. Older versions also wrote those of other architectures."""
    training = recorded.get("training") if isinstance(recorded, dict) else None
    if not isinstance(training, dict):
        return False
    ours = {name: value for name, value in training.items() if name in settings["training"]}
    return bool(recorded | {"training": ours} == settings)
