"""The commands that steer: step 7 or one picture (`steer`), a bench (`steer-bench`), one sheet of all grids.

Like every command these import no torch before they run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from fluxscope.commands.flags import Force, Quiet
from fluxscope.errors import ConfigError, brief
from fluxscope.fields import to_numbers, to_option
from fluxscope.progress import Reporter
from fluxscope.run.lock import lock_run
from fluxscope.settings.config import Config
from fluxscope.settings.pictures import LARGEST_SEED, LARGEST_SIDE
from fluxscope.settings.steering import STRONGEST
from fluxscope.steps.table import STEPS

if TYPE_CHECKING:
    from fluxscope.commands.edit_once import EditRequest
    from fluxscope.commands.steer_once import Request
    from fluxscope.models.cells import Window

STEP = next(step for step in STEPS if step.name == "steer")
SETTINGS = STEP.settings
"""Settings of the commands here."""
BENCH_SETTINGS = tuple(name for name in SETTINGS if name != "steer_steps")
"""`steer-bench` tries several ranges of steps: an option of its own says which."""

Features = Annotated[
    str, typer.Option("--feature", help="Steer one picture only: by this feature, or several, such as 12,40.")
]
Strength = Annotated[
    str, typer.Option("--strength", help="Add along the decoder direction: one number, or one a feature.")
]
Scale = Annotated[str, typer.Option("--scale", help="Or multiply the code; 0 ablates, 1 changes nothing.")]
Clamp = Annotated[str, typer.Option("--clamp", help="Or set the code to a value.")]
Prompt = Annotated[str, typer.Option("--prompt", help="The picture's prompt.")]
Seed = Annotated[int | None, typer.Option("--seed", help="The picture's seed (42 unless said).")]
DEFAULT_SEED = 42
MOST_FEATURES, LARGEST_DOSE = 4096, 100.0
STRONG = {"low": -STRONGEST, "high": STRONGEST}
Region = Annotated[str, typer.Option("--region", help="Steer only here: x0,y0,x1,y1 in pixels.")]
SelfCheck = Annotated[
    bool, typer.Option("--self-check", help="Show that steering works on this model, SAE and site.")
]
Recipes = Annotated[
    Optional[list[Path]],  # noqa: UP045 -- read by typer at run time
    typer.Option("--recipe", help="Replay a recipe of `edit`; given several times, all act on one picture."),
]
Target = Annotated[str, typer.Option("--to", help="The prompt that says what it shall become.")]
Where = Annotated[
    str,
    typer.Option("--where", help="Only where features fire, such as feature:123 or feature:12,40; detector."),
]
Method = Annotated[
    str,
    typer.Option(
        "--method",
        help="transport (codes of a run of the other prompt), shift (mean codes of both prompts), learned "
        "(amounts fitted for this picture, in a minute or two), detector (the other prompt's velocity, where "
        "features fire or in a region). [default: detector where it is said where, else transport]",
    ),
]
Most = Annotated[str, typer.Option("--k", help="Features that may be moved, over all sites; or all.")]
DoseOption = Annotated[float, typer.Option("--dose", help="How much of the edit; 1 is natural size.")]
Noise = Annotated[
    str,
    typer.Option("--noise", help="Noise levels between which to act, such as 0.8-0. [default: the method's]"),
]
At = Annotated[
    str,
    typer.Option(
        "--at",
        help="Sites whose features are moved, such as double.0.context or double.5.attn,double.8.attn. "
        "[default: the attention outputs that have SAEs, else all sites that have]",
    ),
]
Strengths = Annotated[str, typer.Option("--strengths", help="Strengths to try, such as 2,4,8,16.")]
Ranges = Annotated[
    str,
    typer.Option("--denoise-ranges", help="Ranges of denoising steps to try, such as 0-5,6-12,0-19 or all."),
]
OldRanges = Annotated[str, typer.Option("--ranges", hidden=True)]
"""What --denoise-ranges was called in the release before."""


def steer(
    config: Config,
    feature: Features = "",
    strength: Strength = "",
    scale: Scale = "",
    clamp: Clamp = "",
    prompt: Prompt = "",
    seed: Seed = None,
    region: Region = "",
    recipe: Recipes = None,
    self_check: SelfCheck = False,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Step 7: Steer the selected features; with --feature, one picture beside its baseline."""
    report = Reporter(quiet)
    if self_check:
        from fluxscope.commands.self_check import self_check as check

        if not check(config, to_option("--prompt", prompt, str), seed_of(seed), report):
            raise typer.Exit(1)
    elif recipe:
        from fluxscope.commands.edit_once import replay

        if any((feature, strength, scale, clamp, region)):
            raise ConfigError("a recipe says itself what is changed", "Leave --feature and its amounts out.")
        with lock_run(config, report):
            replay(config, recipe, to_option("--prompt", prompt, str), seed_of(seed), report)
    elif feature:
        from fluxscope.commands.steer_once import steer_once

        request = request_of(feature, strength, scale, clamp, prompt, seed, region)
        with lock_run(config, report):
            steer_once(config, request, report)
    elif any((strength, scale, clamp, prompt, region)) or seed is not None:
        raise ConfigError("no feature is named", "Add --feature, such as --feature 123.")
    else:
        from fluxscope.steps.pipeline import run_pipeline

        run_pipeline(config, report, (STEP,), force=force)


def edit(
    config: Config,
    prompt: Prompt,
    to: Target,
    method: Method = "",
    where: Where = "",
    region: Region = "",
    k: Most = "16",
    dose: DoseOption = 1.0,
    noise: Noise = "",
    at: At = "",
    seed: Seed = None,
    quiet: Quiet = False,
) -> None:
    """Change one picture as a prompt says, beside its baseline and control; writes a recipe to replay it."""
    from fluxscope.commands.edit_once import edit_once

    request = edit_of(prompt, to, method, where, region, k, dose, noise, at, seed)
    report = Reporter(quiet)
    with lock_run(config, report):
        edit_once(config, request, report)


def steer_bench(
    config: Config,
    feature: Features,
    prompt: Prompt,
    seed: Seed = None,
    strengths: Strengths = "4,8,16,32",
    denoise_ranges: Ranges = "0-5,6-12,13-19,all",
    ranges: OldRanges = "",
    quiet: Quiet = False,
) -> None:
    """Try strengths and ranges of steps on one prompt and feature, with difference maps."""
    from fluxscope.commands.steer_once import steer_bench as bench

    request = request_of(feature, "1", "", "", prompt, seed, "")
    values = to_numbers("--strengths", strengths, float, **STRONG)
    wanted = tuple(part.strip() for part in (ranges or denoise_ranges).split(","))
    report = Reporter(quiet)
    with lock_run(config, report):
        bench(config, request, values, wanted, report)


def steering_sheet(config: Config, quiet: Quiet = False) -> None:
    """Lay all the grids of step 11 out on one labelled sheet."""
    from fluxscope.steps.assemble_grids import steering_sheet as sheet

    report = Reporter(quiet)
    with lock_run(config, report):
        sheet(config, report)


def request_of(
    feature: str, strength: str, scale: str, clamp: str, prompt: str, seed: int | None, region: str
) -> Request:
    """The options of one picture, checked.

    Raises:
        ConfigError: one is missing, there are two ways to steer, or something is no number.
    """
    from fluxscope.commands.steer_once import Request

    given = {kind: text for kind, text in (("add", strength), ("scale", scale), ("clamp", clamp)) if text}
    if len(given) != 1:
        raise ConfigError(
            "say in one way how to steer the feature" if not given else "the feature is steered in two ways",
            "Give one of --strength, --scale and --clamp.",
        )
    if not prompt:
        raise ConfigError("no prompt is given", 'Add --prompt "...".')
    kind, amounts = given.popitem()
    return Request(
        to_numbers("--feature", feature, int, low=0),
        kind,
        to_numbers(f"--{kind}".replace("add", "strength"), amounts, float, **STRONG),
        to_option("--prompt", prompt, str),
        seed_of(seed),
        box_of(region) if region else None,
    )


def edit_of(
    prompt: str,
    to: str,
    method: str,
    where: str,
    region: str,
    k: str,
    dose: float,
    noise: str,
    at: str,
    seed: int | None,
) -> EditRequest:
    """The options of `edit`, checked.

    Raises:
        ConfigError: one is missing or out of bounds, or it is said in two ways where.
    """
    from fluxscope.commands.edit_once import MAKERS, EditRequest

    kind, _, features = where.partition(":")
    if where and kind != "feature":
        raise ConfigError(f"--where cannot be {brief(where)}", "Give feature:123, or several: feature:12,40.")
    if where and region:
        raise ConfigError("it is said in two ways where", "Give --where or --region.")
    chosen = method or ("detector" if where or region else "transport")
    if where and chosen != "detector":
        raise ConfigError(f"{chosen} has no use for --where", "Give --region, or leave --method out.")
    if at and chosen == "detector":
        raise ConfigError("detector has no use for --at", "It reads the site that --active-site names.")
    if not prompt or not to:
        raise ConfigError("a prompt is empty", 'Give --prompt "..." and --to "...".')
    if dose == 0:
        raise ConfigError("a dose of 0 changes nothing", "1 is natural size.")
    return EditRequest(
        to_option("--prompt", prompt, str),
        to_option("--to", to, str),
        seed_of(seed),
        to_option("--method", chosen, str, choices=tuple(MAKERS)),
        to_numbers("--where", features, int, low=0) if where else (),
        box_of(region) if region else None,
        None if k == "all" else to_numbers("--k", k, int, low=1, high=MOST_FEATURES)[0],
        to_option("--dose", dose, float, low=-LARGEST_DOSE, high=LARGEST_DOSE),
        noise_of(noise) if noise else None,
        tuple(dict.fromkeys(site.strip() for site in at.split(","))) if at else (),
    )


def noise_of(text: str) -> Window:
    """A window of noise levels."""
    from fluxscope.models.cells import parse_windows

    return parse_windows(text)[0]


def seed_of(seed: int | None) -> int:
    """The seed of one picture."""
    return to_option("--seed", DEFAULT_SEED if seed is None else seed, int, low=0, high=LARGEST_SEED)


def box_of(region: str) -> tuple[int, int, int, int]:
    """The sides of a region in pixels."""
    sides = to_numbers("--region", region, int, low=0, high=LARGEST_SIDE)
    if len(sides) != 4:
        raise ConfigError(f"--region cannot be {brief(region)}", "Give x0,y0,x1,y1 in pixels.")
    return sides[0], sides[1], sides[2], sides[3]
