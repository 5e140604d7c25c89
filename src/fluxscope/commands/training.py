"""`fluxscope train` and `fluxscope sweep`: their options, and the training captions of flux-shapes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional, TypeVar, cast

import typer

from fluxscope.commands.flags import Quiet
from fluxscope.errors import ConfigError
from fluxscope.fields import Checked, Number, setting, to_numbers
from fluxscope.progress import Reporter
from fluxscope.sae.table import ARCHITECTURES, Entry, Sparsity, named, sparsities
from fluxscope.settings.config import Config
from fluxscope.settings.pictures import LARGEST_SEED
from fluxscope.shapes.shipped import FLUX_SHAPES, TEST_PROMPTS

if TYPE_CHECKING:
    from fluxscope.commands.train_saes import Training
    from fluxscope.models.model import Model
    from fluxscope.sae.normalisation import Whitening

Command = TypeVar("Command", bound=Callable[..., None])
Layers = Annotated[str, typer.Option("--layers", help="Blocks to train SAEs for, such as 5,15.")]
Sites = Annotated[
    str,
    typer.Option("--sites", help="Or the sites to train them for by name, such as double.7.attn,single.1."),
]
Architecture = Annotated[
    str,
    typer.Option("--architecture", help=f"One of: {', '.join(entry.name for entry in ARCHITECTURES)}."),
]
Expansion = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        "--expansion", help="Features for each dimension of the site. [default: 6; not flux-shapes: 8]"
    ),
]
Rate = Annotated[
    Optional[float],  # noqa: UP045 -- read by typer at run time
    typer.Option("--lr", help="Peak learning rate. [default: follows from the number of features]"),
]
Whiten = Annotated[
    str, typer.Option("--whitening", help="Whiten the activations: none, dimension, pca or soft_pca.")
]
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
WithTruth = Annotated[
    bool,
    typer.Option("--truth", help="Score what single features know of flux-shapes' pictures."),
]
TruthDir = Annotated[
    Path,
    typer.Option("--truth-dir", help="Where pictures with truth are kept, as `fluxscope truth` does."),
]
TruthPictures = Annotated[
    int, typer.Option("--truth-pictures", help="How many pictures with truth there are to be.", min=20)
]
Stamp = Annotated[str, typer.Option("--stamp", help="End of the folders' names; the same one goes on.")]

SETTINGS = (
    *("model_id", "device", "placement", "dtype", "batch_size", "sae_device", "site_pattern"),
    *("height", "width", "num_inference_steps", "guidance_scale", "max_sequence_length"),
    *("target_step_number", "capture_steps", "prompts_path", "base_seed"),
)
"""What training depends on beside its own options."""


MOST_STEPS, MOST_PICTURES, LARGEST_EXPANSION = 10**8, 10**7, 4096
STAMP = (r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}", "letters, digits, dots and dashes")


@dataclass(frozen=True)
class TrainOptions(Checked):
    """The options of `fluxscope train`; each is a flag, and checked as a setting is."""

    layers: Layers = "5,15"
    sites: Sites = ""
    architecture: Architecture = ARCHITECTURES[0].name
    expansion: Expansion = setting(None, "Give a whole number.", low=1, high=LARGEST_EXPANSION)
    lr: Rate = setting(None, "Leave it out for the usual one.", above=0.0, high=1000.0)
    whitening: Whiten = setting("none", "", choices=("none", "dimension", "pca"))
    training_steps: TrainSteps = setting(4000, "Give a whole number.", low=1, high=MOST_STEPS)
    pictures: TrainPictures = setting(2000, "Give a whole number.", low=1, high=MOST_PICTURES)
    seed: Seed = setting(0, "Give a whole number.", low=0, high=LARGEST_SEED)
    activations_dir: Activations = Path("sae_activations")
    saes_dir: Saes = Path()
    stamp: Stamp = setting("1", "", form=STAMP)
    spliced_pictures: Spliced = setting(16, "0 for none.", low=0, high=MOST_PICTURES)
    wandb: Wandb = setting(None, "Give the project's name.", least=1)


@dataclass(frozen=True)
class SweepOptions(TrainOptions):
    """The options of `fluxscope sweep`: those of `train`, with several sparsities and less work for each, and
    whether to hold the SAEs against the truth."""

    layers: Layers = "15"
    training_steps: TrainSteps = 1000
    pictures: TrainPictures = 400
    activations_dir: Activations = Path("sae_sweep/activations")
    saes_dir: Saes = Path("sae_sweep")
    truth: WithTruth = False
    truth_dir: TruthDir = Path("sae_sweep/truth")
    truth_pictures: TruthPictures = 400


def with_sparsities(sweeps: bool) -> Callable[[Command], Command]:
    """Give a command a flag for each setting that makes an architecture sparse, in place of **given.

    Args:
        sweeps: whether several sparsities are trained when none are given.
    """

    def add_flags(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        kept = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        flags = [_sparsity_flag(each, users, sweeps) for each, users in sparsities().items()]
        command.__signature__ = signature.replace(parameters=[*kept, *flags])  # type: ignore[attr-defined]
        return command

    return add_flags


def _sparsity_flag(sparsity: Sparsity, users: Sequence[str], sweeps: bool) -> inspect.Parameter:
    narrow, wide = (_usual(sparsity, sweeps, wide) for wide in (False, True))
    default = narrow if narrow == wide else f"{narrow}; not flux-shapes: {wide}"
    help = f"{sparsity.help} ({', '.join(users)}), one SAE for each. [default: {default}]"
    option = typer.Option(f"--{sparsity.flag}", help=help)
    annotation = Annotated[Optional[str], option]  # noqa: UP045 -- read by typer at run time
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(sparsity.flag, kind, default=None, annotation=annotation)


def _usual(sparsity: Sparsity, sweeps: bool, wide: bool) -> str:
    """The values that are trained where none are given, as one would write them."""
    narrow, wider = (sparsity.sweep, sparsity.sweep_wide) if sweeps else (sparsity.train, sparsity.train_wide)
    return ",".join(f"{value:g}" for value in (wider if wide and wider else narrow))


@with_sparsities(sweeps=False)
def train_saes(config: Config, options: TrainOptions, quiet: Quiet = False, **given: str | None) -> None:
    """Train SAEs on the model's activations at the target step (and at --capture-steps)."""
    from fluxscope.commands.train_saes import train

    captions = shapes_captions(config, options.pictures)
    report = Reporter(quiet)
    model = opened(config, options, report)
    train(config, model, wanted_training(model.spec.width, config, options, given), report, captions)


@with_sparsities(sweeps=True)
def sweep_saes(config: Config, options: SweepOptions, quiet: Quiet = False, **given: str | None) -> None:
    """Train SAEs of several sparsities (k, or a penalty's weight) in one pass, and draw what they cost."""
    from fluxscope.commands.sweep_saes import sweep
    from fluxscope.run.sae_truth import TruthMaterial

    captions = shapes_captions(config, options.pictures)
    report = Reporter(quiet)
    model = opened(config, options, report)
    training = wanted_training(model.spec.width, config, options, given)
    material = TruthMaterial(options.truth_dir, options.truth_pictures) if options.truth else None
    sweep(config, model, training, report, captions, material)


def opened(config: Config, options: TrainOptions, report: Reporter) -> Model:
    """The model, which keeps the training prompts' embeddings beside the activations."""
    from fluxscope.run.context import open_model_of

    return open_model_of(config, report, options.activations_dir / "prompt_embeddings")


def wanted_training(
    width: int, config: Config, options: TrainOptions, given: Mapping[str, str | None]
) -> Training:
    """The options as a description of what to train, for a model of this width.

    Args:
        given: the text of each sparsity's flag, None where it was left out.
    """
    from fluxscope.commands.train_saes import Training
    from fluxscope.sae.train import TrainConfig

    entry = named(options.architecture)
    refuse_flags_of_others(entry, given)
    values = sparsities_given(config, entry.sparsity, given, sweeps=isinstance(options, SweepOptions))
    architecture = entry.sparsity.given(entry.load()(), values[0])
    expansion = options.expansion
    if expansion is None:
        expansion = 6 if config.model_id == FLUX_SHAPES else 8
    base = TrainConfig(
        architecture,
        expansion * width,
        steps=options.training_steps,
        lr=options.lr,
        whitening=cast("Whitening", options.whitening),  # one of its choices
        seed=options.seed,
    )
    return Training(
        sites=sites_of(config, options),
        pictures=options.pictures,
        base=base,
        activations=options.activations_dir,
        saes=options.saes_dir,
        stamp=options.stamp,
        sparsities=values,
        spliced_pictures=options.spliced_pictures,
        wandb=options.wandb,
    )


def sparsities_given(
    config: Config, sparsity: Sparsity, given: Mapping[str, str | None], sweeps: bool
) -> tuple[int | float, ...]:
    """The values of a sparsity's flag, or what is trained without it.

    Raises:
        ConfigError: one is no list of numbers.
    """
    text = given.get(sparsity.flag) or _usual(sparsity, sweeps, wide=config.model_id != FLUX_SHAPES)
    return numbers(f"--{sparsity.flag}", text, sparsity.number, low=sparsity.low)


def refuse_flags_of_others(entry: Entry, given: Mapping[str, str | None]) -> None:
    """Raise ConfigError for a flag that only other architectures read: it would change nothing."""
    for sparsity, users in sparsities().items():
        if given.get(sparsity.flag) is not None and entry.name not in users:
            raise ConfigError(
                f"--{sparsity.flag} is read by {', '.join(users)}, and not by {entry.name}",
                f"Give --{entry.sparsity.flag} in its place, or --architecture {users[0]}.",
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
