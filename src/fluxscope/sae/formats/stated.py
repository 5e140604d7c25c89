"""What a checkpoint says of itself, what the user says of it, and which of them is believed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fluxscope.errors import CheckpointError
from fluxscope.sae.config_values import shown
from fluxscope.sae.table import ARCHITECTURES

READ = "ReLU (standard), TopK, BatchTopK, Matryoshka BatchTopK and JumpReLU SAEs"
"""The kinds that are read, in whichever format; DifFRACT's timestep-conditioned SAEs beside them."""

T = TypeVar("T", str, int)


@dataclass(frozen=True)
class Stated:
    """What the user says of a file, where the file leaves it open or contradicts itself.

    Args:
        architecture: "topk", "relu", ...; None: not said.
        k: active features a token.
        raw: it reads activations as they are, although its library may have normalised them.

    Raises:
        CheckpointError: there is no such architecture.
    """

    architecture: str | None = None
    k: int | None = None
    raw: bool = False

    def __post_init__(self) -> None:
        known = [entry.name for entry in ARCHITECTURES]
        if self.architecture not in (None, *known):
            raise CheckpointError(
                f"unknown architecture '{self.architecture}'", f"Known are {', '.join(known)}."
            )


def settle(what: str, flag: str, claims: Mapping[str, T | None], stated: T | None, path: Path) -> T | None:
    """What the sources claim with one voice, else what the user says; None where nobody says anything.

    Args:
        what: is claimed, for the message.
        flag: of the command line, by which the user says it.
        claims: by source; None where a source is silent.

    Raises:
        CheckpointError: the sources contradict each other or the user.
    """
    said = {source: value for source, value in claims.items() if value is not None}
    values = set(said.values())
    if not values or (len(values) > 1 and stated in values):
        return stated
    if len(values) > 1:
        quoted = " and ".join(f"{shown(value)} in {source}" for source, value in said.items())
        raise CheckpointError(f"{what} of {path} is {quoted}", f"Say which of them it is with {flag}.")
    value = values.pop()
    if stated not in (None, value):
        raise CheckpointError(
            f"{what} of {path} is {shown(value)}, not {shown(stated)}", f"Leave {flag} out."
        )
    return value


def left_open(path: Path, choices: str, beside: str) -> CheckpointError:
    """The error of a file that does not say what it is.

    Args:
        choices: what it may be: "a TopK or a BatchTopK SAE".
        beside: what would tell.
    """
    return CheckpointError(
        f"{path} does not say whether it is {choices}",
        f"Put {beside} beside it, or say it: fluxscope convert FILE TARGET --architecture NAME --k K.",
    )


def not_read(path: Path, kind: str) -> CheckpointError:
    """The error of an SAE of a kind that is not read."""
    return CheckpointError(f"{path} holds {kind}, which is not read", f"Read are {READ}.")
