"""A training's log in Weights & Biases, for who asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

from fluxscope.errors import ConfigError
from fluxscope.sae.jobs import Job
from fluxscope.sae.train import Log

Send = Callable[[int, dict[str, Log]], None]


def check_wandb(project: str | None) -> None:
    """Raise ConfigError when a project is named and wandb is not there: before the work, not after it."""
    if project is not None and find_spec("wandb") is None:
        raise ConfigError(
            "--wandb needs the wandb package, which is not installed",
            "pip install 'fluxscope[wandb]', or leave --wandb out: log.jsonl holds the same numbers.",
        )


@contextmanager
def wandb_run(project: str | None, name: str, jobs: Sequence[Job]) -> Iterator[Send]:
    """A function that sends the log entries of a step, by SAE; without a project it does nothing."""
    if project is None:
        yield lambda step, logs: None
        return
    import wandb

    settings = {job.folder.name: job.config.to_json() for job in jobs}
    with wandb.init(project=project, name=name, id=name, resume="allow", config=settings) as run:
        yield lambda step, logs: run.log(
            {f"{sae}/{key}": value for sae, log in logs.items() for key, value in log.items()}, step=step
        )
