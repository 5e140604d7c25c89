"""What a step is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fluxscope.progress import Reporter
from fluxscope.run.rundir import RunDir
from fluxscope.settings.config import Config

if TYPE_CHECKING:
    from fluxscope.models.sample import PictureSpec


@dataclass(frozen=True)
class Context:
    """What a step is given.

    Attributes:
        config: the settings.
        files: the files of the layer at hand.
        report: where messages and progress go.
        force: make everything anew, even what is finished.
    """

    config: Config
    files: RunDir
    report: Reporter
    force: bool = False


def picture_spec(config: Config) -> PictureSpec:
    """How every picture of the settings is made."""
    from fluxscope.models.sample import PictureSpec

    assert config.height is not None and config.width is not None
    return PictureSpec(config.height, config.width, config.num_inference_steps, config.guidance_scale)
