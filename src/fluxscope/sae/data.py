"""Activations as a trainer wants them: checked, summed up once, and shuffled.

A source gives the batch of any step at once, from its seed and the step's number alone: a run that was
stopped goes on with exactly the batches it would have seen.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from fluxscope.errors import FluxscopeError
from fluxscope.sae.normalisation import Normalisation, Whitening, fit

MAX_BAD_SHARE = 0.01
HELD_OUT_SHARE = 0.1
_BLOCK = 8192


def first_held_out(pictures: int) -> int:
    """The first of the pictures that are kept from training: the last tenth are."""
    return round(pictures * (1 - HELD_OUT_SHARE))


@dataclass(frozen=True)
class Split:
    """The numbers of pictures by what they are for, ascending.

    Attributes:
        train: to train on.
        choose: to choose among checkpoints, and to set a threshold.
        report: to report scores on.
        by_prompt: whether pictures of one prompt stay together; false where the prompts are too few.
    """

    train: list[int]
    choose: list[int]
    report: list[int]
    by_prompt: bool = True


def split_by_prompt(prompts: Sequence[str]) -> Split:
    """Keep a tenth of the pictures to report on, a tenth to choose on; no two parts share a prompt.

    The pictures of the last prompts are kept. Where that would leave less than half for training, the last
    pictures are kept whatever their prompts are.

    Args:
        prompts: of each picture.
    """
    least = max(1, round(HELD_OUT_SHARE * len(prompts)))
    by_prompt: dict[str, list[int]] = {}
    for number, prompt in enumerate(prompts):
        by_prompt.setdefault(prompt, []).append(number)
    groups = sorted(by_prompt.values(), key=lambda numbers: -numbers[-1])
    report, rest = _take(groups, least)
    choose, rest = _take(rest, least)
    train = sorted(number for numbers in rest for number in numbers)
    if 2 * len(train) >= len(prompts):
        return Split(train, choose, report)
    everything = list(range(len(prompts)))
    return Split(
        everything[: -2 * least], everything[-2 * least : -least], everything[-least:], by_prompt=False
    )


def _take(groups: Sequence[list[int]], least: int) -> tuple[list[int], Sequence[list[int]]]:
    """The first groups that have so many members together, in one list, and the groups that are left."""
    taken: list[int] = []
    while len(taken) < least and groups:
        taken, groups = taken + groups[0], groups[1:]
    return sorted(taken), groups


@runtime_checkable
class Source(Protocol):
    """Where batches come from."""

    normalisation: Normalisation

    def batch(self, step: int) -> Float[Tensor, "b d"]:
        """The raw activations of a step, counted from 0; the same ones whenever it is asked."""
        ...


class InMemory:
    """Batches from one array or memory map, every epoch in a new order.

    Args:
        rows: (n, d), of any floating dtype; rows with NaN or infinity are left out.
        batch_size: tokens a batch; fewer when there are fewer. An epoch's last short batch is left out.
        seed: of the order.
        whitening: of the normalisation.

    Raises:
        FluxscopeError: no rows, more than 1% of them bad, or all equal.
    """

    def __init__(
        self,
        rows: Float[Tensor, "n d"] | np.ndarray,
        batch_size: int,
        seed: int,
        whitening: Whitening = "none",
    ) -> None:
        self.rows = _as_tensor(rows)
        good = finite_rows(self.rows)
        self.bad_rows = len(good) - int(good.sum())
        parts = zip(self.rows.split(_BLOCK), good.split(_BLOCK), strict=True)
        self.normalisation = fit((part[keep] for part, keep in parts), whitening)
        self._usable = good.nonzero().flatten()
        self._size = min(batch_size, len(self._usable))
        self._seed = seed
        self._epoch, self._order = -1, self._usable

    def batch(self, step: int) -> Float[Tensor, "b d"]:
        epoch, place = divmod(step, len(self._usable) // self._size)
        if epoch != self._epoch:
            self._order = self._usable[_permutation(len(self._usable), self._seed, epoch)]
            self._epoch = epoch
        return self.rows[self._order[place * self._size : (place + 1) * self._size]]


class ByImage:
    """Batches from pictures that are read or made as needed, shuffled across pictures through a buffer.

    Every epoch, the pictures are dealt into groups at random; the tokens of one group at a time are held in
    memory and shuffled among themselves. Where pictures are made by a function of their number, training
    needs no disk, and can still be stopped and resumed.

    Args:
        load: the activations of pictures by number, (n, t, d); the same ones whenever it is asked.
        images: the numbers of the pictures to train on.
        batch_size: tokens a batch; at most those of one group.
        seed: of the order.
        buffer_images: pictures held in memory.
        whitening: of the normalisation, which is that of the first group.

    Raises:
        FluxscopeError: no pictures, more than 1% bad tokens, or all equal.
    """

    def __init__(
        self,
        load: Callable[[Sequence[int]], Tensor],
        images: Sequence[int],
        batch_size: int,
        seed: int,
        buffer_images: int = 512,
        whitening: Whitening = "none",
    ) -> None:
        if not images:
            raise FluxscopeError("there are no activations to train on", "Collect some first.")
        self._load, self._images, self._seed = load, images, seed
        self._n_groups = max(1, round(len(images) / buffer_images))
        self.rows_seen = self.bad_rows = 0
        self._held: tuple[int, int] | None = None
        self._tokens = self._hold(0, 0)
        self.normalisation = fit(self._tokens.split(_BLOCK), whitening)
        smallest_group = len(images) // self._n_groups
        tokens = smallest_group * self._tokens_per_image
        self._size = min(batch_size, tokens)
        self._batches_per_group = tokens // self._size

    def batch(self, step: int) -> Float[Tensor, "b d"]:
        epoch, place = divmod(step, self._n_groups * self._batches_per_group)
        group, place = divmod(place, self._batches_per_group)
        if self._held != (epoch, group):
            self._tokens = self._hold(epoch, group)
        rows = torch.arange(place * self._size, (place + 1) * self._size) % len(self._tokens)
        return self._tokens[self._order[rows]]

    def _hold(self, epoch: int, group: int) -> Float[Tensor, "n d"]:
        """Read one group, leave its bad tokens out, and shuffle it; the only group is read once."""
        if self._n_groups == 1 and self._held is not None:
            self._order = _permutation(len(self._tokens), self._seed, epoch, group)
            self._held = (epoch, group)
            return self._tokens
        dealt = _permutation(len(self._images), self._seed, epoch).tensor_split(self._n_groups)[group]
        chosen = [self._images[i] for i in dealt.sort().values.tolist()]
        activations = self._load(chosen)
        self._tokens_per_image = activations.shape[1]
        tokens = activations.flatten(0, 1)  # (n t, d)
        good = torch.isfinite(tokens).all(1)
        self.rows_seen += len(good)
        self.bad_rows += len(good) - int(good.sum())
        refuse_many_bad(self.bad_rows, self.rows_seen)
        tokens = tokens if good.all() else tokens[good]
        self._order = _permutation(len(tokens), self._seed, epoch, group)
        self._held = (epoch, group)
        return tokens


def _permutation(n: int, *key: int) -> Int64[Tensor, " n"]:
    """A random order of n things: the same for the same key."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(hash(key) % 2**63))


def _as_tensor(rows: Tensor | np.ndarray) -> Tensor:
    """The same memory as a tensor; also of read-only maps, which are never written here."""
    if isinstance(rows, Tensor):
        return rows
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(rows)


def finite_rows(rows: Float[Tensor, "n d"]) -> Bool[Tensor, " n"]:
    """Which rows hold neither NaN nor infinity.

    Raises:
        FluxscopeError: there are no rows, or more than 1% are bad.
    """
    if rows.ndim != 2 or rows.numel() == 0:
        raise FluxscopeError(
            f"there are no activations to train on (shape {tuple(rows.shape)})", "Collect some first."
        )
    good = torch.cat([torch.isfinite(part).all(1) for part in rows.split(_BLOCK)])
    refuse_many_bad(int((~good).sum()), len(rows))
    return good


def bad_rows(x: Float[Tensor, "b t d"]) -> int:
    """How many tokens hold NaN or infinity."""
    return int((~torch.isfinite(x).all(-1)).sum())


def refuse_many_bad(bad: int, seen: int) -> None:
    """Raises FluxscopeError when more than 1% of the activations seen are bad."""
    if bad > MAX_BAD_SHARE * seen:
        raise FluxscopeError(
            f"{bad} of {seen} activations hold NaN or infinity",
            "Collect them in bfloat16 or float32: in float16 FLUX overflows.",
        )
