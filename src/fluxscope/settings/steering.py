"""Settings of steering, and of the demos that show it best."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fluxscope.errors import ConfigError, brief
from fluxscope.fields import Checked, setting, to_range

STRONGEST = 1e6

STEERED = (
    *("strength_unit", "steer_steps", "steer_schedule", "steer_site", "steer_only_active", "exact"),
    *("distance", "clip_model_id", "clip_device", "site_pattern", "target_step_number"),
    *("model_id", "device", "placement", "dtype", "sae_device", "batch_size"),
    *("saes", "layer5_sae_path", "layer15_sae_path"),
    *("height", "width", "num_inference_steps", "guidance_scale", "max_sequence_length"),
)
"""Settings that every steered picture, and its distance from the baseline, depends on."""


@dataclass(frozen=True)
class Steering(Checked):
    """What is steered, how strongly, when and where."""

    steer_features: int = setting(5, "Selected features that are steered.", low=1, high=1_000_000)
    steer_images: int = setting(2, "Example images of each feature that are steered.", low=1, high=10_000)
    steer_scales: tuple[float, ...] = setting(
        (0.0, 0.5, 1.0, 2.0, 3.0, 5.0),
        "What a feature's code is multiplied by; 1 changes nothing.",
        **{"least": 1, "low": -STRONGEST, "high": STRONGEST},
    )
    steer_strengths: tuple[float, ...] = setting(
        (-16.0, -8.0, -4.0, 0.0, 4.0, 8.0, 16.0),
        "What is added along a feature's unit decoder direction.",
        **{"least": 1, "low": -STRONGEST, "high": STRONGEST},
    )
    strength_unit: str = setting(
        "auto",
        "Unit of strengths: activation (the feature's own 99th percentile in the run), absolute, or auto: "
        "the former where there is a run.",
        choices=("auto", "activation", "absolute"),
    )
    steer_steps: str | None = setting(
        None,
        "Denoising steps that are steered, such as 0-5, counted from 0, both ends included; or all. None: "
        "what works on the model.",
        form=(r" *(all|[0-9]{1,4}( *- *[0-9]{1,4})?) *", "a range such as 0-5, counted from 0, or all"),
    )
    steer_schedule: str = setting(
        "constant",
        "Strength over these steps: constant, falling from full, or rising to full.",
        choices=("constant", "fade_out", "fade_in"),
    )
    steer_site: str | None = setting(
        None, "Where strengths are added, as site_pattern. None: where the SAE listens.", least=1
    )
    steer_only_active: bool = setting(False, "Steer a token only where the feature is active on it.")
    exact: bool = setting(
        False, "Steer pictures one at a time: the bits of plain runs, but several times slower."
    )
    distance: str = setting(
        "auto",
        "Perceptual distance: lpips, clip (LPIPS's form on the CLIP in use), or auto: lpips where it is "
        "installed.",
        choices=("auto", "lpips", "clip"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        ends = [int(end) for end in re.findall("[0-9]+", self.steer_steps or "")]
        if ends != sorted(ends):
            raise ConfigError(
                f"steer_steps {self.steer_steps} ends before it begins", f"Give {ends[1]}-{ends[0]}."
            )


@dataclass(frozen=True)
class Demos(Checked):
    """Which pictures are tried as demos, and at what strengths."""

    demo_percentile_low: float = setting(
        70.0,
        "Demos come from images above this percentile of the feature's activations.",
        low=0.0,
        high=100.0,
    )
    demo_percentile_high: float = setting(
        95.0, "And below this one, where the feature is not yet saturated.", low=0.0, high=100.0
    )
    demo_candidates: int = setting(
        10, "Images of each feature that are tried as demos at one strength.", low=1, high=1_000_000
    )
    demo_finalists: int = setting(4, "The best of them are tried at all strengths.", low=1, high=1_000_000)
    demo_kept: int = setting(2, "Demos kept of each feature.", low=1, high=1_000_000)
    demo_strengths: tuple[float, ...] = setting(
        (2.0, 4.0, 8.0),
        "Strengths that demos are tried at, both ways; the middle one first.",
        **{"least": 1, "above": 0.0, "high": STRONGEST},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.demo_percentile_low, self.demo_percentile_high
        if low >= high:
            raise ConfigError(
                f"demo_percentile_low {low:g} is not below demo_percentile_high {high:g}",
                "Demos come from between the two: give the smaller one first.",
            )


def parse_denoise_steps(text: str, n_steps: int) -> range:
    """The steps of a range such as "0-5" or "3", counted from 0, both ends included; "all" for every step.

    Raises:
        ConfigError: it is no range, or lies outside the run.
    """
    if text.strip() == "all":
        return range(n_steps)
    try:
        steps = to_range(text)
    except ValueError:
        raise ConfigError(
            f"steps cannot be {brief(text)}", "Give a range such as 0-5, counted from 0, or all."
        ) from None
    if not 0 <= steps[0] <= steps[-1] < n_steps:
        raise ConfigError(
            f"steps {text} are not among the run's {n_steps} steps", f"Choose within 0-{n_steps - 1}."
        )
    return steps
