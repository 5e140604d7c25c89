"""Settings of how features are analysed, selected and drawn."""

from __future__ import annotations

from dataclasses import dataclass

from fluxscope.fields import Checked, setting
from fluxscope.settings.places import DEVICE


@dataclass(frozen=True)
class Analysis(Checked):
    """When a feature counts as active, and what CLIP sees of its pictures."""

    eps_alive: float = setting(
        1e-4, "A feature is active where its activation exceeds this.", low=0.0, high=1e6
    )
    top_k_per_image: int = setting(20, "Top images kept for each feature.", low=1, high=1_000_000)
    clip_model_id: str | None = setting(
        None, "CLIP model: a Hub name or folder. None: the one that fits the model.", least=1
    )
    clip_batch_size: int = setting(32, "Pictures embedded at a time.", low=1, high=65536)
    clip_device: str = setting("auto", "Device of CLIP: auto, cpu, cuda or cuda:N.", form=DEVICE)
    clip_tiles: int = setting(
        4,
        "Tiles a side that each picture is cut in, to see what features fire on. 1: whole pictures alone.",
        low=1,
        high=32,
    )


@dataclass(frozen=True)
class Selection(Checked):
    """Which features are shown, and on which pictures."""

    top_m_per_feature: int = setting(
        20,
        "Top images, of distinct prompts, that a feature's coherence is taken over.",
        low=2,
        high=1_000_000,
    )
    min_prompts: int = setting(
        6, "Distinct prompts that a feature must be active on to be selected.", low=2, high=1_000_000
    )
    top_features: int = setting(10, "Features selected.", low=1, high=1_000_000)
    top_examples_per_feature: int = setting(4, "Example images of each selected feature.", low=1, high=10_000)
    enforce_global_unique_images: bool = setting(True, "Show each image with one feature only.")
    rank_by: str = setting(
        "clip_held_out",
        "Score that ranks the features.",
        choices=(
            *("clip_held_out", "clip_coherence", "coherence_z", "crop_coherence", "coverage", "frequency"),
        ),
    )
    most_alike: float = setting(
        0.4,
        "Features that fire more like a selected one (correlation over tiles) are passed over. 1: none.",
        low=0.0,
        high=1.0,
    )


@dataclass(frozen=True)
class Drawing(Checked):
    """How heatmaps are laid over pictures."""

    patch_grid: tuple[int, int] | None = setting(
        None, "Token rows and columns of a picture. None: from its size.", low=1, least=2
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
