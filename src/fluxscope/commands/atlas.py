"""`fluxscope atlas`: a run as a page to browse and send."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from fluxscope.commands.flags import Force, Quiet
from fluxscope.progress import Reporter
from fluxscope.settings.config import Config

SETTINGS = ("eps_alive", "saes", "site_pattern", "layer5_sae_path", "layer15_sae_path", "target_step_number")
"""What the page depends on beside the run's folder."""

Destination = Annotated[
    Optional[Path],  # noqa: UP045 -- read by typer at run time
    typer.Option("--dest", help="Folder of the page. [default: atlas, in the output folder]"),
]
MostFeatures = Annotated[
    int,
    typer.Option(
        "--max-features", min=0, help="Features of a site at most, the best first; 0: all alive ones."
    ),
]


def atlas(
    config: Config,
    dest: Destination = None,
    max_features: MostFeatures = 0,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Make the run a page to browse, search and send: atlas/index.html.

    It opens by a double click, without a network or a server: pictures with heatmaps, statistics, neighbours,
    prompt words and steering strips of every feature, beside what chance gives.
    """
    from fluxscope.atlas.build import build
    from fluxscope.run.context import Context
    from fluxscope.run.lock import lock_run
    from fluxscope.run.rundir import RunDir

    report = Reporter(quiet)
    with lock_run(config, report):
        files = RunDir.of(config)
        report.say(build(Context(config, files, report, force), dest or files.atlas, max_features))
