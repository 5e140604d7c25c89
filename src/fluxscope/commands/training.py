"""`fluxscope train` and `fluxscope sweep`: their options, and the training captions of flux-shapes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional, cast

import typer

from fluxscope.commands.options import Quiet
from fluxscope.embedded import FLUX_SHAPES, TEST_PROMPTS
from fluxscope.fields import Number, to_numbers
from fluxscope.progress import Reporter
from fluxscope.settings.config import Config

if TYPE_CHECKING:
    from fluxscope.models.model import Model
    from fluxscope.sae.normalisation import Whitening
    from fluxscope.training.train import Training

Layers = Annotated[str, typer.Option("--layers", help="Blocks to train SAEs for, such as 5,15.")]
Sites = Annotated[
    str,
    typer.Option("--sites", help="Or the sites to train them for by name, such as double.7.attn,single.1."),
]
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
L0s = Annotated[str, typer.Option("--l0", help="Prices of an active feature (jumprelu), one SAE for each.")]
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


@dataclass(frozen=True)
class TrainOptions:
    """The options of `fluxscope train`; cli.py makes a flag of each."""

    layers: Layers = "5,15"
    sites: Sites = ""
    architecture: Architecture = "topk"
    k: Ks = None
    expansion: Expansion = None
    l1: L1s = "0.15"
    l0: L0s = "0.003"
    lr: Rate = None
    whitening: Whiten = "none"
    training_steps: TrainSteps = 4000
    pictures: TrainPictures = 2000
    seed: Seed = 0
    activations_dir: Activations = Path("sae_activations")
    saes_dir: Saes = Path()
    stamp: Stamp = "1"
    spliced_pictures: Spliced = 16
    wandb: Wandb = None


@dataclass(frozen=True)
class SweepOptions(TrainOptions):
    """The options of `fluxscope sweep`: those of `train`, with several sparsities and less work for each."""

    layers: Layers = "15"
    k: SweptKs = None
    l1: L1s = "0.05,0.1,0.2,0.4,0.8"
    l0: L0s = "0.0005,0.001,0.002,0.004,0.008"
    training_steps: TrainSteps = 1000
    pictures: TrainPictures = 400
    activations_dir: Activations = Path("sae_sweep/activations")
    saes_dir: Saes = Path("sae_sweep")


def train_saes(config: Config, options: TrainOptions, quiet: Quiet = False) -> None:
    """Train SAEs on the model's activations at the target step (and at --capture-steps)."""
    from fluxscope.training.train import train

    k = options.k or ("16" if config.model_id == FLUX_SHAPES else "64")
    captions = shapes_captions(config, options.pictures)
    model = opened(config, options)
    train(config, model, wanted_training(model.spec.width, config, options, k), Reporter(quiet), captions)


def sweep_saes(config: Config, options: SweepOptions, quiet: Quiet = False) -> None:
    """Train SAEs of several k (or penalties) in one pass, and draw what sparsity costs."""
    from fluxscope.training.sweep import sweep

    k = options.k or ("2,4,8,16,32" if config.model_id == FLUX_SHAPES else "16,32,64,128,256")
    captions = shapes_captions(config, options.pictures)
    model = opened(config, options)
    sweep(config, model, wanted_training(model.spec.width, config, options, k), Reporter(quiet), captions)


def opened(config: Config, options: TrainOptions) -> Model:
    """The model, which keeps the training prompts' embeddings beside the activations."""
    from fluxscope.models.model import open_model

    prompts = options.activations_dir / "prompt_embeddings"
    return open_model(config.model_id, config.device, config.dtype, prompts)


def wanted_training(width: int, config: Config, options: TrainOptions, k: str) -> Training:
    """The options as a description of what to train, for a model of this width."""
    from fluxscope.sae.train import TrainConfig
    from fluxscope.training.train import Training

    expansion = options.expansion
    if expansion is None:
        expansion = 6 if config.model_id == FLUX_SHAPES else 8
    base = TrainConfig(
        options.architecture,
        expansion * width,
        steps=options.training_steps,
        lr=options.lr,
        whitening=cast("Whitening", options.whitening),  # TrainConfig refuses what is none
        seed=options.seed,
    )
    return Training(
        sites=sites_of(config, options),
        ks=numbers("--k", k, int, low=1),
        pictures=options.pictures,
        base=base,
        activations=options.activations_dir,
        saes=options.saes_dir,
        stamp=options.stamp,
        l1s=numbers("--l1", options.l1, float, low=0),
        l0s=numbers("--l0", options.l0, float, low=0),
        spliced_pictures=options.spliced_pictures,
        wandb=options.wandb,
    )


def shapes_captions(config: Config, count: int) -> list[str] | None:
    """Random training captions for flux-shapes without a prompts file of the user's; else None."""
    if config.model_id != FLUX_SHAPES or config.prompts_path != str(TEST_PROMPTS):
        return None
    from fluxscope.shapes.world import training_captions

    return training_captions(count)


def sites_of(config: Config, options: TrainOptions) -> tuple[str, ...]:
    """The sites to train SAEs for: those named, or those of the blocks."""
    if options.sites:
        return tuple(dict.fromkeys(part.strip() for part in options.sites.split(",")))
    return tuple(map(config.numbered_site, numbers("--layers", options.layers, int, low=0)))


def numbers(flag: str, text: str, kind: type[Number], **bounds: float) -> tuple[Number, ...]:
    """The numbers of a list such as "16,32", each once.

    Raises:
        ConfigError: it is no such list.
    """
    return tuple(dict.fromkeys(to_numbers(flag, text, kind, **bounds)))
