"""Pictures of one prompt and seed, edited in several ways at once beside their baseline.

    made = edited(model, embeddings, spec, prompt, seed, [[Pushed(...)], [Transported(...), Blended(...)]])

A way of editing is a list of methods (`methods/`), which act on one row of a batch together; so recipes are
composed. A method may need other rows of the same seed beside that row:

    donors      runs of other prompts, on their own; all edits of a batch share them
    followers   other prompts told of the edited row's picture: in every step they take its velocity, so that
                they see its latents, and what they would have done with it can be read

Rows with equal inputs are equal bit for bit, so what differs from the baseline was done by the methods.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import UInt8
from torch import Tensor

from fluxscope.models.cells import Window
from fluxscope.models.donors import Donor
from fluxscope.models.hooks import Hook
from fluxscope.models.model import Model
from fluxscope.models.sites import VELOCITY
from fluxscope.models.spec import Embedding, PictureSpec


@dataclass(frozen=True)
class Rows:
    """A batch as one edit sees it.

    Attributes:
        edited: the row that is changed.
        donors, followers: the rows of the other prompts, by prompt.
        n: how many rows the batch has.
        sigmas: the noise level before each step of the run.
    """

    edited: int
    donors: Mapping[str, int]
    followers: Mapping[str, int]
    n: int
    sigmas: tuple[float, ...]

    def steps(self, window: Window) -> tuple[int, ...]:
        """The steps of a window of noise levels.

        Raises:
            ConfigError: this schedule has no step there.
        """
        return window.steps_on(self.sigmas)


@runtime_checkable
class Method(Protocol):
    """Something that changes one row of a batch."""

    @property
    def donors(self) -> tuple[str, ...]:
        """Prompts of the runs that it needs beside that row."""

    @property
    def followers(self) -> tuple[str, ...]:
        """Prompts that it asks about that row's picture."""

    def hooks(self, rows: Rows) -> list[Hook]:
        """What acts on the batch; a hook of its own for every batch."""


Edits = Sequence[Method]
"""One way of editing a picture; none for the baseline."""


def edited(
    model: Model,
    prompts: Mapping[str, Embedding],
    spec: PictureSpec,
    prompt: str,
    seed: int,
    variants: Sequence[Edits],
    *also: Hook,
    at_once: int = 16,
) -> UInt8[Tensor, "n h w 3"]:
    """The baseline, then one picture for each way of editing.

    Args:
        prompts: the embeddings of the prompt, and of those that the methods need.
        also: what else listens, before anything is changed; row 0 is the baseline.
        at_once: rows of a batch at most, unless one edit alone needs more.

    Raises:
        ConfigError: a window in which the schedule has no step, or a feature that there is not.
    """
    pictures: list[Tensor] = []
    for batch in _batches(variants, at_once):
        latents = sample_edited(model, prompts, spec, prompt, seed, batch, *also)
        made = model.decode(latents, spec)
        pictures += [made[: 1 + len(batch)] if not pictures else made[1 : 1 + len(batch)]]
    return torch.cat(pictures)


def sample_edited(
    model: Model,
    prompts: Mapping[str, Embedding],
    spec: PictureSpec,
    prompt: str,
    seed: int,
    variants: Sequence[Edits],
    *also: Hook,
) -> Tensor:
    """The packed latents (n + 1, t, c) of the baseline and one row for each way of editing, in one batch."""
    texts = [prompt] * (1 + len(variants))
    donors = _numbered((text for edits in variants for each in edits for text in each.donors), texts)
    following = [_numbered((text for each in edits for text in each.followers), texts) for edits in variants]
    sigmas = model.family.sigmas(model.pipe.scheduler, spec)
    hooks: list[Hook] = list(also)
    follow: dict[int, int] = {}
    for number, (edits, followers) in enumerate(zip(variants, following, strict=True), start=1):
        rows = Rows(number, donors, followers, len(texts), sigmas)
        hooks += [hook for each in edits for hook in each.hooks(rows)]
        follow |= dict.fromkeys(followers.values(), number)
    if follow:  # last of all, when the velocity is what it shall be
        hooks.append(Donor([VELOCITY], range(spec.steps), follow))
    latents = model.sample([prompts[text] for text in texts], [seed] * len(texts), *hooks, spec=spec)
    return latents[: 1 + len(variants)]


def _numbered(wanted: Iterator[str], texts: list[str]) -> dict[str, int]:
    """A row for each of these prompts, put behind those that are there."""
    rows: dict[str, int] = {}
    for text in wanted:
        if text not in rows:
            rows[text] = len(texts)
            texts.append(text)
    return rows


def _batches(variants: Sequence[Edits], at_once: int) -> Iterator[list[Edits]]:
    """The ways of editing, as many at a time as have room beside a baseline and their other rows."""
    batch: list[Edits] = []
    for edits in variants:
        if batch and _size([*batch, edits]) > at_once:
            yield batch
            batch = []
        batch.append(edits)
    if batch or not variants:
        yield batch


def _size(batch: Sequence[Edits]) -> int:
    donors = {text for edits in batch for each in edits for text in each.donors}
    followers = [{text for each in edits for text in each.followers} for edits in batch]
    return 1 + len(batch) + len(donors) + sum(map(len, followers))
