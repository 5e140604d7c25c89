"""Settings that say where things are, and which model it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from fluxscope.errors import ConfigError
from fluxscope.fields import Checked, setting
from fluxscope.models.families import DEFAULT_MODEL

DEVICE = (r"auto|cpu|mps|cuda(:[0-9]{1,3})?", "auto, cpu, cuda or cuda:N")


@dataclass(frozen=True)
class Places(Checked):
    """Where the output of a run is."""

    out_dir: str = setting("interp_output", "Folder that holds all the output of the run.", least=1)
    images_subdir: str = setting("images", "Folder of the pictures, inside out_dir.", inside=True)
    overlays_subdir: str = setting("overlays", "Folder of the overlays, inside out_dir.", inside=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if PurePosixPath(self.images_subdir) == PurePosixPath(self.overlays_subdir):
            raise ConfigError(
                f"images_subdir and overlays_subdir are both {self.images_subdir!r}",
                "Give each a folder of its own.",
            )


@dataclass(frozen=True)
class ModelChoice(Checked):
    """The model under study, and what it runs on."""

    model_id: str = setting(
        DEFAULT_MODEL,
        "Model: flux-shapes, a Hub name such as black-forest-labs/FLUX.1-dev, or a folder.",
        least=1,
    )
    device: str = setting("auto", "Device of the model: auto, cpu, cuda or cuda:N.", form=DEVICE)
    dtype: str = setting("auto", "Precision of the model.", choices=("auto", "float32", "bfloat16"))
    placement: str = setting(
        "auto",
        "Where the model's parts wait: apart (text encoders first and gone), resident (all on the device), "
        "offload (the transformer's blocks in the CPU's memory). auto: the first that fits.",
        choices=("auto", "apart", "resident", "offload"),
    )
