"""The settings of every script in this folder. Edit the values here; flags override them.

`fluxscope` reads them too when told to: `fluxscope run --config interp_scripts/config.py`.
None means: what fits the model (for flux-shapes 128 x 128 pixels and the SAEs that ship with it; for
FLUX.1-dev 256 x 256 and openai/clip-vit-base-patch32; for both 20 steps and guidance 3.5).
What each setting means: docs/help.md.

The prompts are those of test_prompts.txt beside this file, one a line: overwrite them with yours
(prompts/natural.txt holds 100 for FLUX.1).
For FLUX.1-dev set model_id to "black-forest-labs/FLUX.1-dev" and the two SAE paths to your checkpoints.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

with suppress(ModuleNotFoundError):  # read by `fluxscope --config`, it isn't beside this file, nor needed
    import front_door  # noqa: F401 -- finds fluxscope
import fluxscope

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Config(fluxscope.Config):
    # Where things are
    out_dir: str = "interp_output"
    images_subdir: str = "images"
    overlays_subdir: str = "overlays"

    # The model
    model_id: str = "flux-shapes"
    device: str = "auto"
    dtype: str = "auto"
    placement: str = "auto"

    # The SAEs: of blocks 5 and 15, or by site in saes, such as {"double.7.attn": "path/to/sae_best.pt"}
    saes: dict[str, str] | None = None
    active_site: str | None = None
    layer5_sae_path: str | None = None
    layer15_sae_path: str | None = None
    active_layer: int | None = None  # 15, or the block of the first of saes
    site_pattern: str = "double.{layer}.ff"
    sae_device: str = "auto"
    token_chunk_size: int = 256

    # The pictures
    height: int | None = None
    width: int | None = None
    patch_size: int = 16
    num_inference_steps: int | None = None  # 20; 4 for schnell
    guidance_scale: float | None = None  # 3.5; schnell takes none
    max_sequence_length: int | None = None
    target_step_number: int | None = None  # counted from 1: 14 of 20, 3 of 4
    sites: tuple[str, ...] = ()  # further sites, with "=" and an SAE, or raw
    capture_steps: tuple[int, ...] = ()  # further steps to keep codes of, counted from 1
    prompts_path: str | None = str(HERE / "test_prompts.txt")
    max_prompts: int = 0  # 0: all of them
    reps_per_prompt: int = 2
    base_seed: int = 42
    batch_size: int | None = None

    # Analysis
    eps_alive: float = 1e-4
    top_k_per_image: int = 20
    clip_model_id: str | None = None
    clip_batch_size: int = 32
    clip_device: str = "auto"
    clip_tiles: int = 4  # a side

    # Selection
    top_m_per_feature: int = 20
    min_prompts: int = 6
    top_features: int = 10
    top_examples_per_feature: int = 4
    enforce_global_unique_images: bool = True
    rank_by: str = "clip_held_out"
    most_alike: float = 0.4

    # Pictures of features
    patch_grid: tuple[int, int] | None = None
    alpha_scale: float = 0.8
    clip_percentile: float = 99.0
    overlay_style: str = "smooth"
    compare_layers: bool = True
    compare: tuple[str, ...] = ()  # two sites for step 9; the first two

    # Steering
    steer_features: int = 5
    steer_images: int = 2
    steer_scales: tuple[float, ...] = (0, 0.5, 1, 2, 3, 5)
    steer_strengths: tuple[float, ...] = (-16, -8, -4, 0, 4, 8, 16)
    strength_unit: str = "auto"
    steer_steps: str | None = None  # such as "0-5", counted from 0; or "all"; None: what works on the model
    steer_schedule: str = "constant"
    steer_site: str | None = None
    steer_only_active: bool = False
    exact: bool = False
    distance: str = "auto"
    demo_percentile_low: float = 70.0
    demo_percentile_high: float = 95.0
    demo_candidates: int = 10
    demo_finalists: int = 4
    demo_kept: int = 2
    demo_strengths: tuple[float, ...] = (2, 4, 8)


def get_config(**overrides: Any) -> Config:
    """These settings, some of them overridden; an unknown name is an error that tells the nearest one."""
    return fluxscope.make_config(Config, **overrides)
