"""The SAE architectures there are, and the setting that makes each of them sparse.

Nothing here imports torch: the flags of `fluxscope train` and `fluxscope sweep` are made from it. What an
architecture does stands in its file; `architecture.Architecture` says what such a file must define.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from fluxscope.errors import FluxscopeError

if TYPE_CHECKING:
    from fluxscope.sae.architecture import Architecture

    Settings = TypeVar("Settings", bound=Architecture)

Number = int | float
Values = tuple[Number, ...]


@dataclass(frozen=True)
class Sparsity:
    """The setting that makes an architecture sparse: a field of its settings and a flag of the commands.

    Args:
        setting: the field's name.
        flag: the flag's, without dashes.
        number: int or float.
        low: the least it can be.
        help: what a value of it is.
        train, sweep: what is trained when the flag isn't given.
        train_wide, sweep_wide: the same for sites of thousands of dimensions, where it differs.
        folder: what stands before the value in the name of an SAE's folder; None: the architecture's name.
        label: what stands before the value beside a point of a plot; "": L0 says it all.
    """

    setting: str
    flag: str
    number: type[int] | type[float]
    low: int
    help: str
    train: Values
    sweep: Values
    train_wide: Values | None = None
    sweep_wide: Values | None = None
    folder: str | None = None
    label: str = ""

    def value(self, architecture: Architecture) -> Number:
        """What the setting is in an architecture's settings."""
        value: Number = getattr(architecture, self.setting)
        return value

    def given(self, architecture: Settings, value: Number) -> Settings:
        """The same settings with another value of this one."""
        return replace(architecture, **{self.setting: value})


@dataclass(frozen=True)
class Entry:
    """One architecture, not imported yet.

    Args:
        name: as users and checkpoints name it.
        module, settings: the file, and the class of its settings, an `Architecture`.
        sparsity: the setting that makes it sparse.
    """

    name: str
    module: str
    settings: str
    sparsity: Sparsity

    def load(self) -> type[Architecture]:
        """The class of its settings; this imports torch."""
        settings: type[Architecture] = getattr(importlib.import_module(self.module), self.settings)
        return settings


K = Sparsity(
    "k",
    "k",
    int,
    1,
    "Active features a token",
    train=(16,),
    sweep=(2, 4, 8, 16, 32),
    train_wide=(64,),
    sweep_wide=(16, 32, 64, 128, 256),
    folder="topk",  # also where k is a mean: readers of folders look for topk<k>
)
L1 = Sparsity(
    "l1_coeff",
    "l1",
    float,
    0,
    "Weights of the L1 penalty",
    train=(0.15,),
    sweep=(0.05, 0.1, 0.2, 0.4, 0.8),
    label="L1 weight ",
)
L0 = Sparsity(
    "l0_coeff",
    "l0",
    float,
    0,
    "Weights of the L0 penalty",
    train=(0.003,),
    sweep=(0.0005, 0.001, 0.002, 0.004, 0.008),
    label="L0 weight ",
)

ARCHITECTURES = (
    Entry("topk", "fluxscope.sae.topk", "TopK", K),
    Entry("relu", "fluxscope.sae.relu", "ReLU", L1),
    Entry("batch_topk", "fluxscope.sae.batch_topk", "BatchTopK", K),
    Entry("matryoshka_batch_topk", "fluxscope.sae.matryoshka", "Matryoshka", K),
    Entry("jumprelu", "fluxscope.sae.jumprelu", "JumpReLU", L0),
)
"""Every architecture, the default one first. A new one is a file of its own and a line here."""


def named(name: str) -> Entry:
    """The architecture of a name.

    Raises:
        FluxscopeError: there is none.
    """
    for entry in ARCHITECTURES:
        if entry.name == name:
            return entry
    known = ", ".join(entry.name for entry in ARCHITECTURES)
    raise FluxscopeError(f"unknown architecture '{name}'", f"Known are {known}.")


def sparsity_of(architecture: Architecture) -> Sparsity:
    """The setting that makes an SAE of these settings sparse."""
    return named(architecture.name).sparsity


def sparsities() -> dict[Sparsity, list[str]]:
    """Every such setting, with the names of the architectures that have it."""
    users: dict[Sparsity, list[str]] = {}
    for entry in ARCHITECTURES:
        users.setdefault(entry.sparsity, []).append(entry.name)
    return users
