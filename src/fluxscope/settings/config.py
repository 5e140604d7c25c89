"""The settings of a run: one frozen dataclass, checked when it is made.

A setting left at None takes the value that fits the model. Where settings come from: `config_file`.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from dataclasses import dataclass
from typing import Any

from fluxscope.embedded import FLUX_SHAPES
from fluxscope.errors import ConfigError
from fluxscope.settings.fields import checked, setting, type_of
from fluxscope.settings.model_defaults import model_defaults


@dataclass(frozen=True)
class Config:
    """Every setting of a run.

    Raises:
        ConfigError: a setting is unknown, of the wrong type, or out of range.
    """

    # --- where things are ---
    out_dir: str = setting("interp_output", "Folder that holds all the output of the run.")
    images_subdir: str = setting("images", "Folder of the pictures, inside out_dir.")
    overlays_subdir: str = setting("overlays", "Folder of the overlays, inside out_dir.")

    # --- the model ---
    model_id: str = setting(
        FLUX_SHAPES, "Model: flux-shapes, a Hub name such as black-forest-labs/FLUX.1-dev, or a folder."
    )
    device: str = setting("auto", "Device of the model: auto, cpu, cuda or cuda:N.")
    dtype: str = setting("auto", "Precision of the model.", choices=("auto", "float32", "bfloat16"))

    # --- the SAEs ---
    layer5_sae_path: str | None = setting(None, "SAE checkpoint for block 5. None: the model's bundled one.")
    layer15_sae_path: str | None = setting(
        None, "SAE checkpoint for block 15. None: the model's bundled one."
    )
    active_layer: int = setting(15, "Block that the run is about: 5 or 15.", choices=(5, 15))
    site_pattern: str = setting(
        "double.{layer}.ff", "Where in a block the SAEs listen; {layer} stands for its number."
    )
    sae_device: str = setting("auto", "Device of the SAEs: auto (the model's), cpu, cuda or cuda:N.")
    token_chunk_size: int = setting(256, "Tokens encoded at a time.", low=1)

    # --- the pictures ---
    height: int | None = setting(None, "Height in pixels. None: the model's own.", low=16, multiple_of=16)
    width: int | None = setting(None, "Width in pixels. None: the model's own.", low=16, multiple_of=16)
    patch_size: int = setting(16, "Pixels along a side of one image token; fixed by the model.", low=1)
    num_inference_steps: int = setting(20, "Denoising steps of a picture.", low=1)
    guidance_scale: float = setting(3.5, "Strength of the (distilled) guidance.", low=0.0)
    max_sequence_length: int | None = setting(None, "Text tokens of a prompt. None: the model's own.", low=1)
    target_step_number: int = setting(
        14, "Denoising step whose activations are looked at, counted from 1.", low=1
    )
    sites: tuple[str, ...] = setting(
        (), "Further sites to listen at, such as single.1 (raw activations) or single.1=path/to/sae_best.pt."
    )
    capture_steps: tuple[int, ...] = setting(
        (), "Further steps whose codes are kept, counted from 1, such as 3,13,19."
    )
    prompts_path: str | None = setting(None, "File of prompts, one a line. None: the model's sample prompts.")
    max_prompts: int = setting(0, "Use only the first so many prompts; 0 uses all.", low=0)
    reps_per_prompt: int = setting(2, "Pictures of each prompt, each with a seed of its own.", low=1)
    base_seed: int = setting(42, "Seed of the first picture.", low=0)
    batch_size: int | None = setting(
        None, "Pictures generated at a time. None: 16 for flux-shapes, else 4.", low=1
    )

    # --- analysis ---
    eps_alive: float = setting(1e-4, "A feature is active where its activation exceeds this.", low=0.0)
    top_k_per_image: int = setting(20, "Top images kept for each feature.", low=1)
    clip_model_id: str | None = setting(
        None, "CLIP model: a Hub name or folder. None: the one that fits the model."
    )
    clip_batch_size: int = setting(32, "Pictures embedded at a time.", low=1)
    clip_device: str = setting("auto", "Device of CLIP: auto, cpu, cuda or cuda:N.")

    # --- selection ---
    top_m_per_feature: int = setting(
        20, "Top images, of distinct prompts, that a feature's coherence is taken over.", low=2
    )
    min_prompts: int = setting(6, "Distinct prompts that a feature must be active on to be selected.", low=2)
    top_features: int = setting(10, "Features selected.", low=1)
    top_examples_per_feature: int = setting(4, "Example images of each selected feature.", low=1)
    enforce_global_unique_images: bool = setting(True, "Show each image with one feature only.")
    rank_by: str = setting(
        "clip_coherence",
        "Score that ranks the features.",
        choices=("clip_coherence", "coherence_z", "crop_coherence", "coverage", "frequency"),
    )

    # --- pictures of features ---
    patch_grid: tuple[int, int] | None = setting(
        None, "Token rows and columns of a picture. None: from its size."
    )
    alpha_scale: float = setting(
        0.8, "Opacity of the heatmap where the activation is highest.", low=0.0, high=1.0
    )
    overlay_style: str = setting(
        "smooth", "Heatmaps: smooth (bilinear) or blocky (one square a token).", choices=("smooth", "blocky")
    )
    clip_percentile: float = setting(
        99.0, "Percentile of a token map at which its heatmap saturates.", low=0.0, high=100.0
    )
    compare_layers: bool = setting(True, "Collect the other layer in the same pass, for step 9.")

    # --- steering ---
    steer_features: int = setting(5, "Selected features that are steered.", low=1)
    steer_images: int = setting(2, "Example images of each feature that are steered.", low=1)
    steer_scales: tuple[float, ...] = setting(
        (0.0, 0.5, 1.0, 2.0, 3.0, 5.0), "What a feature's code is multiplied by; 1 changes nothing."
    )
    steer_strengths: tuple[float, ...] = setting(
        (-16.0, -8.0, -4.0, 0.0, 4.0, 8.0, 16.0), "What is added along a feature's unit decoder direction."
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
    )
    steer_schedule: str = setting(
        "constant",
        "Strength over these steps: constant, falling from full, or rising to full.",
        choices=("constant", "fade_out", "fade_in"),
    )
    steer_site: str | None = setting(
        None, "Where strengths are added, as site_pattern. None: where the SAE listens."
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
        10, "Images of each feature that are tried as demos at one strength.", low=1
    )
    demo_finalists: int = setting(4, "The best of them are tried at all strengths.", low=1)
    demo_kept: int = setting(2, "Demos kept of each feature.", low=1)
    demo_strengths: tuple[float, ...] = setting(
        (2.0, 4.0, 8.0), "Strengths that demos are tried at, both ways; the middle one first."
    )

    def __post_init__(self) -> None:
        for name, value in model_defaults(self.model_id).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for each in _FIELDS.values():
            object.__setattr__(self, each.name, checked(each, _HINTS[each.name], getattr(self, each.name)))
        self._check_steps()
        if self.patch_grid is None:
            object.__setattr__(self, "patch_grid", self.image_token_grid)
        elif self.patch_grid != self.image_token_grid:
            raise ConfigError(
                f"patch_grid {self.patch_grid} does not fit a picture of {self.height} x {self.width}",
                f"Leave it at None, or set it to {self.image_token_grid}.",
            )

    def _check_steps(self) -> None:
        named = [("target_step_number", self.target_step_number)]
        named += [("capture_steps", step) for step in self.capture_steps]
        for name, step in named:
            if not 1 <= step <= self.num_inference_steps:
                raise ConfigError(
                    f"{name} {step} is not among the {self.num_inference_steps} steps of a picture",
                    "Steps count from 1: choose one that the run has, or raise num_inference_steps.",
                )

    @property
    def captured_step_indices(self) -> tuple[int, ...]:
        """Every step whose codes are kept, counted from 0, the target step first."""
        steps = (self.target_step_number, *self.capture_steps)
        return tuple(dict.fromkeys(step - 1 for step in steps))

    @property
    def target_step_index(self) -> int:
        """The target step counted from 0."""
        return self.target_step_number - 1

    @property
    def image_token_grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens."""
        assert self.height is not None and self.width is not None
        return self.height // self.patch_size, self.width // self.patch_size

    @property
    def n_image_tokens(self) -> int:
        rows, columns = self.image_token_grid
        return rows * columns

    @property
    def sae_paths(self) -> dict[int, str]:
        """The configured checkpoint of each layer that has one."""
        paths = {5: self.layer5_sae_path, 15: self.layer15_sae_path}
        return {layer: path for layer, path in paths.items() if path}

    @property
    def sae_ckpt_path(self) -> str:
        """The active layer's checkpoint.

        Raises:
            ConfigError: none is configured.
        """
        return self.sae_path(self.active_layer)

    def sae_path(self, layer: int) -> str:
        """A layer's checkpoint.

        Raises:
            ConfigError: none is configured.
        """
        if layer not in self.sae_paths:
            raise ConfigError(
                f"no SAE checkpoint is set for layer {layer} of {self.model_id}",
                f"Set layer{layer}_sae_path, or train one with fluxscope train.",
            )
        return self.sae_paths[layer]

    @property
    def layers(self) -> tuple[int, ...]:
        """The active layer and, where it is to be compared and has an SAE, the other one."""
        others = [layer for layer in self.sae_paths if layer != self.active_layer]
        return (self.active_layer, *(others if self.compare_layers else ()))

    def site_of(self, layer: int) -> str:
        """The name of the site that the SAE of `layer` listens at."""
        return self.site_pattern.replace("{layer}", str(layer))


_FIELDS = {each.name: each for each in dataclasses.fields(Config)}
_HINTS = typing.get_type_hints(Config)


def settings_table() -> dict[str, dataclasses.Field]:
    """Every setting by name, with its default and, in `metadata`, its meaning and bounds."""
    return dict(_FIELDS)


def setting_type(name: str) -> tuple[type, bool]:
    """The type of a setting, and whether it may be None."""
    return type_of(_HINTS[name])


def reject_unknown(names: typing.Iterable[str]) -> None:
    """Raise ConfigError for the first name that is no setting, naming the nearest one."""
    for name in names:
        if name not in _FIELDS:
            near = difflib.get_close_matches(name, _FIELDS, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]}?" if near else "docs/help.md lists the settings."
            raise ConfigError(f"unknown setting: {name}", hint)


def make_config(kind: type[Config] = Config, **overrides: Any) -> Config:
    """A Config with the given settings, an unknown one refused with the nearest name."""
    reject_unknown(overrides)
    return kind(**overrides)
