"""What every training stage shares: a budget, checkpoints that survive a kill, and a log with its curve."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fluxscope.files import append_jsonl, atomic_write, read_torch_checkpoint

PRINT_EVERY = 50
CHECKPOINT_SECONDS = 60.0


class Stage:
    """One stage's clock and files: iterate over `steps()`, and `save` often enough to lose a minute.

    Args:
        work: the work folder.
        name: names the files: `<name>.pt` (checkpoint), `<name>.jsonl` (log), `<name>_loss.png`.
        steps: the budget in optimiser steps.
        minutes: ends the stage sooner, for trials; the learning rate then falls by the clock.
        seed: the stage's own random stream; every step starts from (seed, step) alone.
    """

    def __init__(
        self, work: Path, name: str, steps: int, minutes: float | None = None, seed: int = 0
    ) -> None:
        self.name, self.total, self.minutes, self.seed = name, steps, minutes, seed
        self.path = work / f"{name}.pt"
        self.log_path = work / f"{name}.jsonl"
        self.curve_path = work / f"{name}_loss.png"
        work.mkdir(parents=True, exist_ok=True)
        self.state: dict[str, Any] = read_torch_checkpoint(self.path) if self.path.exists() else {}
        self.step = int(self.state.get("step", 0))
        self._before = float(self.state.get("seconds", 0.0))
        self._started = self._saved = time.monotonic()
        self._first = self.step
        self._values: dict[str, list[float]] = {}

    @property
    def done(self) -> bool:
        return bool(self.state.get("done", False))

    @property
    def fraction(self) -> float:
        """How much of the budget is used, 0 to 1."""
        used = self.step / self.total
        if self.minutes:
            used = max(used, (self._before + time.monotonic() - self._started) / 60 / self.minutes)
        return min(used, 1.0)

    def steps(self) -> Iterator[np.random.Generator]:
        """One random generator for each step that remains; torch's own generator is seeded with it."""
        while self.fraction < 1.0:
            rng = np.random.default_rng((self.seed, self.step))
            torch.manual_seed(int(rng.integers(2**62)))
            yield rng
            self.step += 1

    def rate(self, warmup: int, decay: float) -> float:
        """The factor on the learning rate: a linear start, a plateau, and a linear end to zero."""
        return min(1.0, (self.step + 1) / warmup, max(0.01, (1 - self.fraction) / decay))

    def log(self, **values: float) -> None:
        """Note this step's values; now and then print and keep their means."""
        for key, value in values.items():
            self._values.setdefault(key, []).append(value)
        if (self.step + 1) % PRINT_EVERY:
            return
        means = {key: float(np.mean(kept)) for key, kept in self._values.items()}
        self._values.clear()
        assert all(math.isfinite(v) for v in means.values()), f"{self.name} diverged at step {self.step}"
        append_jsonl(self.log_path, {"step": self.step + 1, **means})
        seconds = time.monotonic() - self._started
        speed = (self.step + 1 - self._first) / seconds
        shown = "  ".join(f"{key} {value:.5g}" for key, value in means.items())
        print(
            f"{self.name} {self.step + 1}/{self.total} ({self.fraction:.0%})  {shown}  {speed:.2f} steps/s",
            flush=True,
        )

    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return time.monotonic() - self._saved > CHECKPOINT_SECONDS

    def save(self, done: bool = False, **state: Any) -> None:
        """Write the checkpoint whole, in place of the one before. `step` counts finished steps."""
        now = time.monotonic()
        finished = self.step if done else self.step + 1
        seconds = self._before + now - self._started
        self.state = {**state, "step": finished, "seconds": seconds, "done": done}
        with atomic_write(self.path) as file:
            torch.save(self.state, file)
        self._saved = now
        if self.log_path.exists():
            draw_curve(self.log_path, self.curve_path)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set every group's learning rate to `rate` times the one it was made with."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("base_lr", group["lr"]) * rate


def draw_curve(log_path: Path, out: Path) -> None:
    """Draw every logged value over the steps, one panel each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [json.loads(line) for line in log_path.read_text().splitlines()]
    keys = [key for key in rows[-1] if key != "step"]
    figure, axes = plt.subplots(1, len(keys), figsize=(4.2 * len(keys), 3.2), squeeze=False)
    for axis, key in zip(axes[0], keys, strict=True):
        points = [(row["step"], row[key]) for row in rows if key in row]
        axis.plot(*zip(*points, strict=True), linewidth=1.2)
        axis.set(title=key, xlabel="step")
        if "loss" in key and min(y for _, y in points) > 0:
            axis.set_yscale("log")
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(out, dpi=90)
    plt.close(figure)
