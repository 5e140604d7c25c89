"""The commands that only look and report: `doctor`, `steps-profile`."""

from __future__ import annotations

from typing import Annotated

import typer

from fluxscope.commands.flags import Quiet
from fluxscope.progress import Reporter
from fluxscope.settings.config import Config

PROFILE_SETTINGS = (
    *("device", "dtype", "batch_size", "sae_device", "token_chunk_size"),
    *("saes", "site_pattern", "layer5_sae_path", "layer15_sae_path"),
    *("height", "width", "num_inference_steps", "guidance_scale", "max_sequence_length"),
    *("target_step_number", "capture_steps"),
)
"""What `steps-profile` depends on beside the run's folder."""

Pictures = Annotated[
    int, typer.Option("--pictures", min=1, help="How many of the run's pictures to denoise again.")
]


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
