"""`fluxscope train` and `fluxscope sweep`: their options, and the training captions of flux-shapes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional, TypeVar, cast

import typer

from fluxscope.config import Config
from fluxscope.embedded import FLUX_SHAPES, TEST_PROMPTS
from fluxscope.errors import ConfigError
from fluxscope.options import Quiet
from fluxscope.progress import Reporter

if TYPE_CHECKING:
    from fluxscope.sae.normalisation import Whitening
    from fluxscope.steps.train import Training

Number = TypeVar("Number", int, float)
Layers = Annotated[str, typer.Option("--layers", help="Blocks to train SAEs for, such as 5,15.")]
Architecture = Annotated[
    str,
    typer.Option("--architecture", help="topk, batch_topk, matryoshka_batch_topk, jumprelu or relu (L1)."),
]
Ks = Annotated[
    Optional[str],  # noqa: UP045 -- read by typer at run time
    typer.Option(
        "--k",
        help="Active features a token; one SAE for each of 16,32,64. [default: 16; not flux-shapes: 64]",
    ),
]
SweptKs = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--k", help="Active features a token. [default: 2,4,8,16,32; not flux-shapes: 16,32,64,128,256]"
    ),
]
Expansion = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        "--expansion", help="Features for each dimension of the site. [default: 6; not flux-shapes: 8]"
    ),
]
L1s = Annotated[str, typer.Option("--l1", help="Weights of the L1 penalty (relu), one SAE for each.")]
Rate = Annotated[
    Optional[float],  # noqa: UP045 -- read by typer at run time
    typer.Option("--lr", help="Peak learning rate. [default: follows from the number of features]"),
]
Whiten = Annotated[str, typer.Option("--whitening", help="Whiten the activations: none, dimension or pca.")]
TrainSteps = Annotated[int, typer.Option("--training-steps", help="Optimiser steps of 2,048 tokens.")]
TrainPictures = Annotated[int, typer.Option("--pictures", help="Pictures to take activations from.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the weights and the order of the data.")]
Activations = Annotated[Path, typer.Option("--activations-dir", help="Where the activations are kept.")]
Saes = Annotated[Path, typer.Option("--saes-dir", help="Where the folders of the SAEs appear.")]
Spliced = Annotated[
    int,
    typer.Option("--spliced-pictures", help="Held-out pictures to run with the reconstruction spliced in."),
]
Wandb = Annotated[
    Optional[str],  # noqa: UP045 -- read by typer at run time
    typer.Option("--wandb", help="Log to this Weights & Biases project too (needs fluxscope[wandb])."),
]
Stamp = Annotated[str, typer.Option("--stamp", help="End of the folders' names; the same one goes on.")]

SETTINGS = (
    *("model_id", "device", "dtype", "batch_size", "sae_device", "site_pattern"),
    *("height", "width", "num_inference_steps", "guidance_scale", "max_sequence_length"),
    *("target_step_number", "capture_steps", "prompts_path", "base_seed"),
)
"""What training depends on beside its own options."""


def train_saes(
    config: Config,
    layers: Layers = "5,15",
    architecture: Architecture = "topk",
    k: Ks = None,
    expansion: Expansion = None,
    l1: L1s = "0.15",
    lr: Rate = None,
    whitening: Whiten = "none",
    training_steps: TrainSteps = 4000,
    pictures: TrainPictures = 2000,
    seed: Seed = 0,
    activations_dir: Activations = Path("sae_activations"),
    saes_dir: Saes = Path(),
    stamp: Stamp = "1",
    spliced_pictures: Spliced = 16,
    wandb: Wandb = None,
    quiet: Quiet = False,
) -> None:
    """Train SAEs on the model's activations at the target step (and at --capture-steps)."""
    from fluxscope.steps.train import train

    k = k or ("16" if config.model_id == FLUX_SHAPES else "64")
    training = wanted_training(
        config, layers, architecture, k, expansion, l1, lr, whitening, training_steps, pictures, seed,
        activations_dir, saes_dir, stamp, spliced_pictures, wandb,
    )  # fmt: skip
    train(config, training, Reporter(quiet), shapes_captions(config, pictures))


def sweep_saes(
    config: Config,
    layers: Layers = "15",
    architecture: Architecture = "topk",
    k: SweptKs = None,
    expansion: Expansion = None,
    l1: L1s = "0.05,0.1,0.2,0.4,0.8",
    lr: Rate = None,
    whitening: Whiten = "none",
    training_steps: TrainSteps = 1000,
    pictures: TrainPictures = 400,
    seed: Seed = 0,
    activations_dir: Activations = Path("sae_sweep/activations"),
    saes_dir: Saes = Path("sae_sweep"),
    stamp: Stamp = "1",
    spliced_pictures: Spliced = 16,
    wandb: Wandb = None,
    quiet: Quiet = False,
) -> None:
    """Train SAEs of several k (or L1 strengths) in one pass, and draw what sparsity costs."""
    from fluxscope.steps.sweep import sweep

    k = k or ("2,4,8,16,32" if config.model_id == FLUX_SHAPES else "16,32,64,128,256")
    training = wanted_training(
        config, layers, architecture, k, expansion, l1, lr, whitening, training_steps, pictures, seed,
        activations_dir, saes_dir, stamp, spliced_pictures, wandb,
    )  # fmt: skip
    sweep(config, training, Reporter(quiet), shapes_captions(config, pictures))


def wanted_training(
    config: Config,
    layers: str,
    architecture: str,
    k: str,
    expansion: int | None,
    l1: str,
    lr: float | None,
    whitening: str,
    training_steps: int,
    pictures: int,
    seed: int,
    activations_dir: Path,
    saes_dir: Path,
    stamp: str,
    spliced_pictures: int,
    wandb: str | None,
) -> Training:
    """The options of both commands as one description of what to train."""
    from fluxscope.models.spec import read_spec
    from fluxscope.sae.train import TrainConfig
    from fluxscope.steps.train import Training

    if expansion is None:
        expansion = 6 if config.model_id == FLUX_SHAPES else 8
    hidden_dim = expansion * read_spec(config.model_id).width
    base = TrainConfig(
        architecture,
        hidden_dim,
        steps=training_steps,
        lr=lr,
        whitening=cast("Whitening", whitening),  # TrainConfig refuses what is none
        seed=seed,
    )
    return Training(
        numbers("--layers", layers),
        numbers("--k", k),
        pictures,
        base,
        activations_dir,
        saes_dir,
        stamp,
        numbers("--l1", l1, float),
        spliced_pictures,
        wandb,
    )


def shapes_captions(config: Config, count: int) -> list[str] | None:
    """Random training captions for flux-shapes without a prompts file of the user's; else None."""
    if config.model_id != FLUX_SHAPES or config.prompts_path != str(TEST_PROMPTS):
        return None
    import numpy as np

    from fluxscope.shapes.world import caption, sample_phrasing, sample_scene

    rng = np.random.default_rng(0)
    return [caption(sample_scene(rng, split="train"), sample_phrasing(rng)) for _ in range(count)]


def numbers(flag: str, text: str, kind: Callable[[str], Number] = int) -> tuple[Number, ...]:
    """The numbers of a list such as "16,32", each once.

    Raises:
        ConfigError: it is no such list.
    """
    try:
        return tuple(dict.fromkeys(kind(part) for part in text.split(",")))
    except ValueError:
        examples = "whole numbers, such as 16,32" if kind is int else "numbers, such as 0.1,0.2"
        raise ConfigError(f"{flag} cannot be {text!r}", f"Give {examples}.") from None
