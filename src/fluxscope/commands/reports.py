"""The commands that only look and report: `doctor`, `name`, `steps-profile`, `site-map`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Optional

import typer

from fluxscope.commands.flags import Force, Quiet
from fluxscope.errors import ConfigError
from fluxscope.fields import to_numbers
from fluxscope.progress import Reporter
from fluxscope.settings.config import Config

NAME_SETTINGS = (
    *("eps_alive", "target_step_number", "site_pattern", "model_id", "device", "height", "width"),
    *("clip_model_id", "clip_batch_size", "clip_device"),
)
"""What `name` depends on beside the run's files."""

PROFILE_SETTINGS = (
    *("device", "placement", "dtype", "batch_size", "sae_device", "token_chunk_size"),
    *("saes", "site_pattern", "layer5_sae_path", "layer15_sae_path"),
    *("height", "width", "num_inference_steps", "guidance_scale", "max_sequence_length"),
    *("target_step_number", "capture_steps"),
)
"""What `steps-profile` depends on beside the run's folder."""

Pictures = Annotated[
    int, typer.Option("--pictures", min=1, help="How many of the run's pictures to denoise again.")
]

SITE_MAP_SETTINGS = (
    *(
        "device",
        "placement",
        "dtype",
        "batch_size",
        "height",
        "width",
        "num_inference_steps",
        "guidance_scale",
    ),
    *("target_step_number", "max_sequence_length", "base_seed", "clip_model_id", "clip_device", "distance"),
)
"""What `site-map` depends on beside its own options."""

PairsFile = Annotated[
    Optional[Path],  # noqa: UP045 -- read by typer at run time
    typer.Option(
        "--pairs",
        help='JSON file of prompts that differ in one thing: {"pairs": [{"source": "...", "target": "..."}]}.'
        " [default: captions for flux-shapes, natural prompts for other models]",
    ),
]
PairCount = Annotated[
    Optional[int],  # noqa: UP045 -- read by typer at run time
    typer.Option("--pair-count", min=1, max=1000, help="How many. [default: 12 of flux-shapes, else all]"),
]
Kinds = Annotated[
    str,
    typer.Option(
        "--kinds", help="Kinds of site: ff, attn, text_kv, text, image, single_text, single. [default: all]"
    ),
]
Blocks = Annotated[
    str,
    typer.Option(
        "--blocks",
        help="Numbers, ranges such as 4-7, each, groups (of four), all. [default: each, groups, all]",
    ),
]
Windows = Annotated[
    str,
    typer.Option(
        "--windows",
        help="Noise levels at which to copy: whole, parts, or such as 1-0.7,0.7-0. [default: whole, and "
        "parts for all blocks together]",
    ),
]
Cells = Annotated[
    str, typer.Option("--cells", help="Or the cells by name, such as ff:15,attn:0-3@0.7-0.4,text:each.")
]
CostOnly = Annotated[bool, typer.Option("--cost", help="Say what it costs, and stop.")]


@dataclass(frozen=True)
class SiteMapOptions:
    """The options of `fluxscope site-map`; each is a flag."""

    pairs: PairsFile = None
    pair_count: PairCount = None
    kinds: Kinds = ""
    blocks: Blocks = ""
    windows: Windows = ""
    cells: Cells = ""
    cost: CostOnly = False


def doctor(config: Config) -> None:
    """Say what is here, what a run needs, and what is missing."""
    from fluxscope.commands.doctor import examine

    if not examine(config):
        raise typer.Exit(1)


def steps_profile(config: Config, pictures: Pictures = 32, quiet: Quiet = False) -> None:
    """Show when along denoising the features are active.

    Some of the run's pictures are denoised again; at each of --capture-steps (without them, at every step)
    the selected features' activity and the SAE's explained variance are measured, and drawn.
    """
    from fluxscope.commands.steps_profile import profile_steps
    from fluxscope.run.context import Context
    from fluxscope.run.lock import lock_run
    from fluxscope.run.rundir import RunDir

    report = Reporter(quiet)
    with lock_run(config, report):
        report.say(profile_steps(Context(config, RunDir.of(config), report), pictures))


def name(
    config: Config,
    features: Annotated[
        str, typer.Option("--features", help="These features, such as 12,90. [default: the selected ones]")
    ] = "",
    every: Annotated[bool, typer.Option("--all", help="All features that are alive.")] = False,
    vlm: Annotated[
        Optional[str],  # noqa: UP045 -- read by typer at run time
        typer.Option(
            "--vlm",
            help="Vision-language model, by Hub id or folder, that captions what features fire on, such as "
            "Salesforce/blip-image-captioning-base. [default: none is asked]",
        ),
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Name features by the words that their strongest pictures' prompts share, and by what CLIP sees.

    One half of the prompts makes the names; the other tells how well they hold. What does not pass the tests
    stays unnamed, with the reason. With --vlm, words that a vision-language model says of what a feature
    fires on stand beside its name. Writes names.json; step 6 shows the names on the contact sheet.
    """
    from fluxscope.commands.name import name_features_of
    from fluxscope.run.context import Context
    from fluxscope.run.lock import lock_run
    from fluxscope.run.rundir import RunDir

    if every and features:
        raise ConfigError("--features and --all say in two ways whose names are wanted", "Give one of them.")
    wanted = to_numbers("--features", features, int, low=0) if features else None
    report = Reporter(quiet)
    with lock_run(config, report):
        context = Context(config, RunDir.of(config), report, force)
        report.say(name_features_of(context, wanted, every, NAME_SETTINGS, vlm))


def site_map(config: Config, options: SiteMapOptions, force: Force = False, quiet: Quiet = False) -> None:
    """Map where the model decides what, to know where steering can work.

    Activations of a donor's run (same seed, another prompt) are copied in at every kind of site, block by
    block and in ranges. How often what the donor's prompt asks for comes about is the site's donor score: no
    edit of natural size can do more there. Writes site_map.json and site_map.png.
    """
    from fluxscope.commands.site_map import Request
    from fluxscope.commands.site_map import site_map as make
    from fluxscope.run.context import Context
    from fluxscope.run.lock import lock_run
    from fluxscope.run.rundir import RunDir

    report = Reporter(quiet)
    asked = options.kinds, options.blocks, options.windows, options.cells
    request = Request(options.pairs, options.pair_count, *asked)
    with lock_run(config, report):
        context = Context(config, RunDir.of(config), report, force)
        report.say(make(context, request, options.cost))
