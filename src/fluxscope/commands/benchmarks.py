"""`fluxscope truth`: its options. Like every command it imports no torch before it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from fluxscope.commands.flags import Quiet
from fluxscope.errors import ConfigError
from fluxscope.progress import Reporter
from fluxscope.settings.config import Config

SETTINGS = (
    *(
        "model_id",
        "device",
        "placement",
        "dtype",
        "saes",
        "site_pattern",
        "layer5_sae_path",
        "layer15_sae_path",
    ),
    *("num_inference_steps", "guidance_scale", "target_step_number", "capture_steps"),
)
"""What the truth benchmark depends on beside its own options."""

Pictures = Annotated[int, typer.Option("--pictures", min=40, help="Pictures to measure on.")]
Quick = Annotated[bool, typer.Option("--quick", help="400 pictures, and controls that learn for less long.")]
Folder = Annotated[
    Path, typer.Option("--truth-dir", help="Where the pictures are kept, and truth.json appears.")
]
Score = Annotated[
    str,
    typer.Option(
        "--score",
        help="SAEs to score in place of those of the settings: SITE=PATH,SITE=PATH; a site may come again.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the three parts and of all draws.")]

QUICK_PICTURES, QUICK_FROZEN = 400, 150


@dataclass(frozen=True)
class TruthOptions:
    """The options of `fluxscope truth`; each is a flag."""

    score: Score = ""
    pictures: Pictures = 2000
    quick: Quick = False
    truth_dir: Folder = Path("truth")
    seed: Seed = 0


def truth(config: Config, options: TruthOptions, quiet: Quiet = False) -> None:
    """Score SAEs of flux-shapes against what is true of its pictures, beside controls.

    Pictures with known shapes, colours, sizes and backgrounds are made once and kept. For each concept the
    best single feature and the best coalitions are chosen on some prompts and scored on others.
    """
    from fluxscope.shapes.questions import require_truth

    require_truth(config.model_id)
    saes = scored_saes(config, options.score)
    from fluxscope.commands.truth import FROZEN_STEPS, Wanted, benchmark
    from fluxscope.models.model import open_model
    from fluxscope.run.context import picture_spec

    report = Reporter(quiet)
    wanted = Wanted(
        saes=saes,
        steps=config.captured_step_indices,
        pictures=QUICK_PICTURES if options.quick else options.pictures,
        folder=options.truth_dir,
        spec=picture_spec(config),
        seed=options.seed,
        frozen_steps=QUICK_FROZEN if options.quick else FROZEN_STEPS,
    )
    prompts = options.truth_dir / "prompt_embeddings"
    found = benchmark(
        open_model(config.model_id, config.device, config.dtype, config.placement, prompts), wanted, report
    )
    from fluxscope.commands.truth_words import in_words

    for line in in_words(found):
        report.say(line)
    report.say(f"{options.truth_dir / 'truth.json'} and truth.png")


def scored_saes(config: Config, score: str) -> tuple[tuple[str, str], ...]:
    """The sites and checkpoints that are named, or those of the settings.

    Raises:
        ConfigError: what is named is no SITE=PATH, or no SAE is set for a site that is named alone.
    """
    if not score:
        known = tuple(config.sae_paths.items())
        if not known:
            raise ConfigError(
                f"no SAE is set for {config.model_id}", "Name some with --score SITE=PATH, or set saes."
            )
        return known
    named = []
    for part in filter(None, (part.strip() for part in score.split(","))):
        site, _, path = (text.strip() for text in part.partition("="))
        named.append((site, path or config.sae_path(site)))
    return tuple(named)
