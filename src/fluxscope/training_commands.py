"""`fluxscope train`: its options, and the training captions of flux-shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fluxscope.config import Config
from fluxscope.embedded import FLUX_SHAPES, TEST_PROMPTS
from fluxscope.errors import ConfigError
from fluxscope.options import Quiet
from fluxscope.progress import Reporter

Layers = Annotated[str, typer.Option("--layers", help="Blocks to train SAEs for, such as 5,15.")]
Architecture = Annotated[
    str,
    typer.Option("--architecture", help="topk, batch_topk, matryoshka_batch_topk, jumprelu or relu (L1)."),
]
Ks = Annotated[str, typer.Option("--k", help="Active features a token; one SAE for each of 16,32,64.")]
Expansion = Annotated[int, typer.Option("--expansion", help="Features for each dimension of the site.")]
L1 = Annotated[float, typer.Option("--l1", help="Weight of the L1 penalty (relu).")]
TrainSteps = Annotated[int, typer.Option("--training-steps", help="Optimiser steps of 2,048 tokens.")]
TrainPictures = Annotated[int, typer.Option("--pictures", help="Pictures to take activations from.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the weights and the order of the data.")]
Activations = Annotated[Path, typer.Option("--activations-dir", help="Where the activations are kept.")]
Saes = Annotated[Path, typer.Option("--saes-dir", help="Where the folders of the SAEs appear.")]
Spliced = Annotated[
    int,
    typer.Option("--spliced-pictures", help="Held-out pictures to run with the reconstruction spliced in."),
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
    k: Ks = "16",
    expansion: Expansion = 6,
    l1: L1 = 0.15,
    training_steps: TrainSteps = 4000,
    pictures: TrainPictures = 2000,
    seed: Seed = 0,
    activations_dir: Activations = Path("sae_activations"),
    saes_dir: Saes = Path(),
    stamp: Stamp = "1",
    spliced_pictures: Spliced = 16,
    quiet: Quiet = False,
) -> None:
    """Train SAEs on the model's activations at the target step (and at --capture-steps)."""
    from fluxscope.models.spec import read_spec
    from fluxscope.sae.train import TrainConfig
    from fluxscope.steps.train import Training, train

    base = TrainConfig(
        architecture=architecture,
        hidden_dim=expansion * read_spec(config.model_id).width,
        l1_coeff=l1,
        steps=training_steps,
        seed=seed,
    )
    training = Training(
        numbers("--layers", layers), numbers("--k", k), pictures, base, activations_dir, saes_dir, stamp
    )
    train(config, training, Reporter(quiet), shapes_captions(config, pictures))


def shapes_captions(config: Config, count: int) -> list[str] | None:
    """Random training captions for flux-shapes without a prompts file of the user's; else None."""
    if config.model_id != FLUX_SHAPES or config.prompts_path != str(TEST_PROMPTS):
        return None
    import numpy as np

    from fluxscope.shapes.world import caption, sample_phrasing, sample_scene

    rng = np.random.default_rng(0)
    return [caption(sample_scene(rng, split="train"), sample_phrasing(rng)) for _ in range(count)]


def numbers(flag: str, text: str) -> tuple[int, ...]:
    """The whole numbers of a list such as "16,32".

    Raises:
        ConfigError: it is no such list.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{flag} cannot be {text!r}", "Give whole numbers, such as 16,32.") from None
