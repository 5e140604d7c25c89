"""What a step is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluxscope.progress import Reporter
from fluxscope.run.freshness import Work
from fluxscope.run.rundir import RunDir
from fluxscope.settings.config import Config
from fluxscope.shapes.shipped import resolve

if TYPE_CHECKING:
    from fluxscope.models.model import Model
    from fluxscope.models.spec import PictureSpec
    from fluxscope.sae import LinearSae


@dataclass(frozen=True)
class Context:
    """What a step is given.

    Attributes:
        config: the settings.
        files: the files of the layer at hand.
        report: where messages and progress go.
        force: make everything anew, even what is finished.
        work: the step's place in the log, while one runs.
    """

    config: Config
    files: RunDir
    report: Reporter
    force: bool = False
    work: Work | None = None
    _opened: list[Model] = field(default_factory=list, repr=False, compare=False)

    @property
    def model(self) -> Model:
        """The model of the settings: opened when it is first asked for, and shared by all contexts that
        `replace` makes of this one."""
        if not self._opened:
            self._opened.append(open_model_of(self.config, self.report))
        return self._opened[0]

    @property
    def sae(self) -> LinearSae:
        """The SAE of the site at hand, on the CPU.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        from fluxscope.sae.formats import load

        return load(self.config.sae_path(self.files.site))[0]


def step_work(context: Context) -> Work:
    """The place in the log of the step that is running."""
    assert context.work is not None, "a step runs through run_step"
    return context.work


def picture_spec(config: Config) -> PictureSpec:
    """How every picture of the settings is made."""
    from fluxscope.models.spec import PictureSpec

    assert config.height is not None and config.width is not None
    assert config.num_inference_steps is not None and config.guidance_scale is not None
    return PictureSpec(config.height, config.width, config.num_inference_steps, config.guidance_scale)


def open_model_of(config: Config, report: Reporter, prompt_folder: Path | None = None) -> Model:
    """Open the model of the settings, and say which of them it has no use for.

    Args:
        prompt_folder: where prompts' embeddings are kept; None: in the output folder.
    """
    from fluxscope.models.model import open_model

    folder = prompt_folder or RunDir.of(config).prompt_embeddings
    model = open_model(config.model_id, config.device, config.dtype, config.placement, folder)
    guidance = picture_spec(config).guidance
    if guidance not in (0.0, 1.0) and not model.family.takes_guidance(config.model_id, model.spec):
        report.say(
            f"     warning: guidance_scale {guidance:g} changes nothing: {config.model_id} takes no guidance"
        )
    return model


def clip_of(config: Config) -> tuple[Any, Any]:
    """The CLIP model of the settings, on its device, and its image processor."""
    from fluxscope.measures.clip import load_clip

    assert config.clip_model_id is not None
    return load_clip(resolve(config.clip_model_id), clip_device(config))


def clip_device(config: Config) -> str:
    """Where models run that look at pictures: `clip_device`, else the diffusion model's."""
    from fluxscope.models.placement import pick_device

    return str(pick_device(config.clip_device, fallback=str(pick_device(config.device))))
