"""The commands about SAE checkpoints, which need no settings: `sae-info`, `convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from fluxscope.commands.flags import Quiet, clear_errors
from fluxscope.progress import Reporter, tell_table

Checkpoint = Annotated[Path, typer.Argument(help="An SAE checkpoint, or the folder of one.")]
Target = Annotated[Path, typer.Argument(help="Where the converted SAE goes: a file or a folder.")]
Form = Annotated[
    str, typer.Option("--to", help="Format: fluxscope, dictionary_learning, sae_lens or sparsify.")
]
Timestep = Annotated[
    Optional[float],  # noqa: UP045 -- read by typer at run time
    typer.Option(
        "--timestep", help="Where to read an SAE that depends on it (DifFRACT), from 1 (all noise) to 0."
    ),
]
ArchitectureSaid = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--architecture", help="What it is (topk, relu, ...), where the file does not say."),
]
KSaid = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--k", min=1, help="Its active features a token, where the file does not say."),
]
Raw = Annotated[bool, typer.Option("--raw", help="It reads activations as they are (openai's do not say).")]


def sae_info(
    file: Checkpoint, architecture: ArchitectureSaid = None, k: KSaid = None, raw: Raw = False
) -> None:
    """Print what an SAE checkpoint holds."""
    from fluxscope.sae.formats import Stated, describe

    with clear_errors():
        tell_table(describe(file, stated=Stated(architecture, k, raw)))


def convert(
    file: Checkpoint,
    target: Target,
    to: Form = "fluxscope",
    timestep: Timestep = None,
    architecture: ArchitectureSaid = None,
    k: KSaid = None,
    raw: Raw = False,
    quiet: Quiet = False,
) -> None:
    """Read an SAE of any known format and write it in another."""
    from fluxscope.sae.formats import Stated, load, save

    with clear_errors():
        sae, info = load(file, timestep=timestep, stated=Stated(architecture, k, raw))
        written = save(target, sae, info.config, to)
        report = Reporter(quiet)
        for caution in info.doubts:
            report.say(f"warning: {caution}")
        report.say(
            f"{info.format} -> {to}: {info.architecture}, {info.input_dim} -> {info.hidden_dim}, {written}"
        )
