"""What is special to a family of models: how its parts are loaded, told of prompts, run and read.

Everything else in fluxscope knows models through `Model`, which asks its family. A family is one file beside
this one and one line in FAMILIES. These files import torch and diffusers where they use them, so that the
settings can ask a family for its defaults, and help pages come at once.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fluxscope.errors import CheckpointError, FluxscopeError, machine_fault, ran_out_of_memory
from fluxscope.shapes.shipped import resolve

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fluxscope.models.spec import Embedding, ModelSpec, PictureSpec

OnStep = Callable[[int], bool]
"""Called with each finished step, counted from the first one taken; true ends the run."""

Pipeline = Any
"""A diffusers pipeline, whole or in part: its classes are loaded lazily and share no type of use here."""


class Family(ABC):
    """A family of models.

    Attributes:
        name: as the models' own names begin.
        pipelines: the classes that a `model_index.json` of this family may name.
        transformer: the class of the transformer, whose shape is read without its weights.
        text_parts: the pipeline's components that embed prompts; all others make pictures.
        always_embedded: prompts that a run may need whatever its own are.
    """

    name: ClassVar[str]
    pipelines: ClassVar[tuple[str, ...]]
    transformer: ClassVar[str]
    text_parts: ClassVar[tuple[str, ...]]
    always_embedded: ClassVar[tuple[str, ...]] = ()

    # --- what it is ---
    @abstractmethod
    def default_settings(self, model_id: str) -> dict[str, Any]:
        """The settings that fit a model of this family, by their names in Config.

        The target step and the steps that are steered are among the family's own number of steps.
        """

    @abstractmethod
    def spec(self, config: Mapping[str, Any]) -> ModelSpec:
        """The shape of a transformer, from its config; a KeyError where it is none of this family."""

    @abstractmethod
    def takes_guidance(self, model_id: str, spec: ModelSpec) -> bool:
        """Whether a model's pictures depend on the guidance at all."""

    def read_spec(self, model_id: str) -> ModelSpec:
        """A model's shape, read without its weights.

        Raises:
            FluxscopeError: its transformer's config is missing, damaged, or none of this family's.
        """
        import diffusers

        try:
            kind = getattr(diffusers, self.transformer)
            return self.spec(kind.load_config(resolve(model_id), subfolder="transformer"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FluxscopeError(
                f"the transformer of {model_id} cannot be read ({str(error).strip().splitlines()[0]})",
                "Check model_id: a diffusers folder has transformer/config.json.",
            ) from None

    # --- loading ---
    @abstractmethod
    def pipeline_class(self, name: str) -> Any:
        """The diffusers class that loads a model whose index names this one."""

    def load_text(self, place: str, dtype: torch.dtype, pipeline: str) -> Pipeline:
        """The part of a model that embeds prompts."""
        return self._load(place, dtype, pipeline, transformer=None, vae=None)

    def load_tokenizers(self, place: str, dtype: torch.dtype, pipeline: str) -> Pipeline:
        """The tokenizers alone, which tell what a model reads of a prompt."""
        encoders = {part: None for part in self.text_parts if part.startswith("text_encoder")}
        return self._load(place, dtype, pipeline, transformer=None, vae=None, **encoders)

    def load_denoiser(self, place: str, dtype: torch.dtype, pipeline: str) -> Pipeline:
        """The part of a model that makes pictures: transformer, scheduler and autoencoder."""
        pipe = self._load(place, dtype, pipeline, **dict.fromkeys(self.text_parts))
        pipe.transformer.eval()
        pipe.vae.eval()
        return pipe

    def load_scheduler(self, place: str, dtype: torch.dtype, pipeline: str) -> Pipeline:
        """A model without any weights: what says how its pictures are denoised."""
        without = dict.fromkeys(self.text_parts)
        return self._load(place, dtype, pipeline, transformer=None, vae=None, **without)

    def _load(self, place: str, dtype: torch.dtype, pipeline: str, **without: None) -> Pipeline:
        from fluxscope.files.quiet import quiet_libraries

        if Path(place).is_dir():
            check_weights(Path(place))
        try:
            with quiet_libraries():
                pipe = self.pipeline_class(pipeline).from_pretrained(place, dtype=dtype, **without)
        except (OSError, ValueError, RuntimeError) as error:
            if ran_out_of_memory(error):
                raise
            if fault := machine_fault(error, place, "read"):
                raise fault from error
            raise FluxscopeError(
                f"the model {place} cannot be loaded: {str(error).strip().splitlines()[0]}",
                "Check model_id; models of the Hub need their licence accepted and `hf auth login`.",
            ) from error
        pipe.set_progress_bar_config(disable=True)
        return pipe

    # --- running ---
    @abstractmethod
    def tokenizer(self, pipe: Pipeline) -> Any:
        """The tokenizer that decides which words a model knows and where prompts are cut."""

    def gist_tokenizer(self, pipe: Pipeline) -> Any:
        """That of a second text encoder, which makes one vector of a whole prompt; None without one."""
        return None

    @abstractmethod
    def encode(
        self, pipe: Pipeline, prompts: Sequence[str], length: int, device: torch.device
    ) -> list[Embedding]:
        """Embed a batch of prompts; the embeddings are on the CPU."""

    def needs_nothing(self, pipe: Pipeline, guidance: float) -> bool:
        """Whether pictures are guided against the empty prompt, in a second forward of each step."""
        return False

    @abstractmethod
    def shift(self, scheduler: Any, spec: PictureSpec) -> float:
        """How far the schedule is moved towards noise (the scheduler's mu), as the pipeline has it."""

    def sigmas(self, scheduler: Any, spec: PictureSpec) -> tuple[float, ...]:
        """The noise level before each step, as the pipeline's own loop has it."""
        import numpy as np

        known = type(scheduler).from_config(scheduler.config)
        own = scheduler.config.get("use_flow_sigmas")
        even = {} if own else {"sigmas": np.linspace(1.0, 1 / spec.steps, spec.steps)}
        known.set_timesteps(spec.steps if own else None, mu=self.shift(scheduler, spec), **even)
        return tuple(float(sigma) for sigma in known.sigmas[: spec.steps])

    @abstractmethod
    def denoise(self, pipe: Pipeline, run: DenoisingRun) -> Tensor:
        """Denoise a batch with the pipeline's own loop; returns the latents that `decode` takes."""

    @abstractmethod
    def decode(self, pipe: Pipeline, latents: Tensor, spec: PictureSpec) -> Tensor:
        """Pictures (b, 3, h, w) of values -1 to 1."""

    @abstractmethod
    def can_resume(self, scheduler: Any) -> bool:
        """Whether denoising gone on with from the middle ends in the same bits."""


@dataclass(frozen=True)
class DenoisingRun:
    """One batch to denoise.

    Attributes:
        prompts: the embeddings, as `prompts.stack` gives them.
        nothing: the empty prompt's embeddings where pictures are guided against it; else None.
        seeds: one a picture.
        first, latents: the step to go on from, and the latents there; 0 and None to begin with noise.
    """

    prompts: dict[str, Tensor]
    nothing: dict[str, Tensor] | None
    seeds: Sequence[int]
    spec: PictureSpec
    on_step: OnStep
    first: int = 0
    latents: Tensor | None = None

    @property
    def generators(self) -> list[torch.Generator]:
        """What draws each picture's noise: of its own seed, and on the CPU, the same on every device."""
        import torch

        return [torch.Generator("cpu").manual_seed(seed) for seed in self.seeds]


def read_config(model_id: str, name: str) -> Mapping[str, Any]:
    """A JSON file of a model's folder; empty where there is none, as of a model of the Hub."""
    try:
        found = json.loads((Path(resolve(model_id)) / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def check_weights(folder: Path) -> None:
    """Open the header of every weights file of a model's folder.

    Raises:
        CheckpointError: one is cut short or is no safetensors file; the error names it.
    """
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            told = CheckpointError(
                f"{path} is damaged or cut short ({error})", "Copy or download the model again."
            )
            raise machine_fault(error, path, "read") or told from None
