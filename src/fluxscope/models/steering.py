"""Pictures of one prompt and seed under several sets of changes, with the common work done once.

The steps before the first changed one are denoised once for each (prompt, seed) and gone on from; the
changes of one picture run as rows of one batch, beside a row without any: the baseline. Rows of a batch
with equal inputs are equal bit for bit, so what differs from the baseline was done by the changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import UInt8
from torch import Tensor

from fluxscope.models.edits import Edit, Row, Scope
from fluxscope.models.hooks import Hook
from fluxscope.models.model import Model
from fluxscope.models.prompts import Prompts
from fluxscope.models.spec import PictureSpec, ResumePoint
from fluxscope.sae import LinearSae


@dataclass(frozen=True)
class Steered:
    """Pictures with their changes, and for each the picture without any that ran in the same batch."""

    pictures: UInt8[Tensor, "n h w 3"]
    baselines: UInt8[Tensor, "n h w 3"]

    @property
    def baseline(self) -> UInt8[Tensor, "h w 3"]:
        return self.baselines[0]


@dataclass
class Steerer:
    """A model and an SAE, making changed pictures.

    Args:
        prompts: the embeddings of every prompt that will be asked for.
        max_rows: rows of a batch at most, the baseline's included.
        exact: make every picture in a run of its own, so that it has the bits of a plain run.
    """

    model: Model
    sae: LinearSae
    spec: PictureSpec
    prompts: Prompts
    max_rows: int = 16
    exact: bool = False
    _begun: dict[tuple[str, int, int], ResumePoint] = field(default_factory=dict)

    def steer(
        self, prompt: str, seed: int, rows: Sequence[Row], *scopes: Scope, also: Sequence[Hook] = ()
    ) -> Steered:
        """Make one picture for each row of changes.

        Args:
            rows: the changes of each picture, one row at least.
            scopes: where and when they act; with several, the same changes act in each.
            also: what else listens, before the changes act.
        """
        pictures, baselines = [], []
        for batch in self._batches(rows):
            made = self._run(prompt, seed, batch, scopes, also)
            pictures.append(made[1:])
            baselines.append(made[:1].expand(len(made) - 1, -1, -1, -1))
        return Steered(torch.cat(pictures), torch.cat(baselines))

    def _batches(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        """The rows in batches of nearly equal size, each with a baseline before them."""
        n = -(-len(rows) // max(self.max_rows - 1, 1))
        for part in range(n):
            yield [(), *rows[part * len(rows) // n : (part + 1) * len(rows) // n]]

    def _run(
        self, prompt: str, seed: int, rows: Sequence[Row], scopes: Sequence[Scope], also: Sequence[Hook]
    ) -> UInt8[Tensor, "b h w 3"]:
        if self.exact and len(rows) > 1:
            return torch.cat([self._run(prompt, seed, [row], scopes, also) for row in rows])
        first = min([scope.steps[0] for scope in scopes] + [min(hook.steps) for hook in also])
        start = self.begun(prompt, seed, first)
        latents = self.model.sample(
            [self.prompts[prompt]] * len(rows),
            [seed] * len(rows),
            *also,
            *(Edit(self.sae, rows, scope) for scope in scopes),
            spec=self.spec,
            start=start.repeat(len(rows)) if start else None,
        )
        return self.model.decode(latents, self.spec)

    def begun(self, prompt: str, seed: int, step: int) -> ResumePoint | None:
        """The picture before a step is taken, denoised once and kept; None for the noise itself."""
        if step == 0 or not self.model.can_resume:
            return None
        key = (prompt, seed, step)
        if key not in self._begun:
            latents = self.model.sample([self.prompts[prompt]], [seed], spec=self.spec, stop_after=step - 1)
            self._begun[key] = ResumePoint(latents, step)
        return self._begun[key]
