"""Settings of the pictures of a run, and of what is kept of their making."""

from __future__ import annotations

from dataclasses import dataclass

from fluxscope.errors import ConfigError
from fluxscope.fields import Checked, setting

PATCH = 16
LARGEST_SIDE = 8192
LARGEST_SEED = 2**53 - 1
"""Up to here every program that reads JSON reads a seed exactly."""


@dataclass(frozen=True)
class Sampling(Checked):
    """How pictures are made, and which ones."""

    height: int | None = setting(
        None, "Height in pixels. None: the model's own.", low=16, high=LARGEST_SIDE, multiple_of=PATCH
    )
    width: int | None = setting(
        None, "Width in pixels. None: the model's own.", low=16, high=LARGEST_SIDE, multiple_of=PATCH
    )
    patch_size: int = setting(
        PATCH, "Pixels along a side of one image token; fixed by the model.", choices=(PATCH,)
    )
    num_inference_steps: int | None = setting(
        None, "Denoising steps of a picture. None: the model's own, such as 20.", low=1, high=1000
    )
    guidance_scale: float | None = setting(
        None, "Strength of the guidance. None: the model's own, such as 3.5.", low=0.0, high=1000.0
    )
    max_sequence_length: int | None = setting(
        None, "Text tokens of a prompt. None: the model's own.", low=1, high=4096
    )
    prompts_path: str | None = setting(
        None, "File of prompts, one a line. None: the model's sample prompts.", least=1
    )
    max_prompts: int = setting(0, "Use only the first so many prompts; 0 uses all.", low=0)
    reps_per_prompt: int = setting(
        2, "Pictures of each prompt, each with a seed of its own.", low=1, high=1_000_000
    )
    base_seed: int = setting(42, "Seed of the first picture.", low=0, high=LARGEST_SEED)
    batch_size: int | None = setting(
        None, "Pictures generated at a time. None: 16 for flux-shapes, else 4.", low=1, high=65536
    )

    @property
    def image_token_grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens."""
        assert self.height is not None and self.width is not None
        return self.height // self.patch_size, self.width // self.patch_size

    @property
    def n_image_tokens(self) -> int:
        rows, columns = self.image_token_grid
        return rows * columns


@dataclass(frozen=True)
class Capture(Checked):
    """What is kept of a picture's making."""

    target_step_number: int | None = setting(
        None,
        "Denoising step whose activations are looked at, counted from 1. None: 14 of 20, and the same share "
        "of another number of steps.",
        low=1,
        high=1000,
    )
    sites: tuple[str, ...] = setting(
        (), "Further sites to listen at, such as single.1 (raw activations) or single.1=path/to/sae_best.pt."
    )
    capture_steps: tuple[int, ...] = setting(
        (), "Further steps whose codes are kept, counted from 1, such as 3,13,19."
    )

    @property
    def captured_step_indices(self) -> tuple[int, ...]:
        """Every step whose codes are kept, counted from 0, the target step first."""
        return tuple(dict.fromkeys((self.target_step_index, *(step - 1 for step in self.capture_steps))))

    @property
    def target_step_index(self) -> int:
        """The target step counted from 0."""
        assert self.target_step_number is not None
        return self.target_step_number - 1

    def check_steps(self, n_steps: int) -> None:
        """Raise ConfigError for a step that a picture of so many steps does not have."""
        named = [("target_step_number", self.target_step_index + 1)]
        named += [("capture_steps", step) for step in self.capture_steps]
        for name, step in named:
            if not 1 <= step <= n_steps:
                raise ConfigError(
                    f"{name} {step} is not among the {n_steps} steps of a picture",
                    "Steps count from 1: choose one that the run has, or raise num_inference_steps.",
                )


def same_share(step: int, of: int, n_steps: int) -> int:
    """The step that lies among `n_steps` where `step` lies among `of`, both counted from 1: the nearest one.

    Before a scheduler shifts them, FLUX's noise levels fall evenly over the steps: the same share of the
    steps is the same noise level. 14 of 20 is 3 of 4, and 35 of 50.
    """
    return max(1, (2 * step * n_steps + of) // (2 * of))


def same_range(steps: str, of: int, n_steps: int) -> str:
    """A range of steps, counted from 0, such as 0-5 of 20, carried over likewise; "all" stays."""
    if steps == "all":
        return steps
    first, last = (int(end) for end in steps.split("-"))
    first = same_share(first, of, n_steps) if first else 0
    return f"{first}-{max(first, same_share(last + 1, of, n_steps) - 1)}"
