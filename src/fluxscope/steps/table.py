"""The eleven steps, in order. A new step is one file beside this one and one entry here."""

from __future__ import annotations

from fluxscope.run.inputs import COLLECTED
from fluxscope.steps.step import Step

STEERING = (
    *("strength_unit", "steer_steps", "steer_schedule", "steer_site", "steer_only_active", "exact"),
    *("distance", "clip_model_id", "clip_device", "site_pattern", "target_step_number"),
    *("model_id", "device", "dtype", "sae_device", "batch_size"),
    *("saes", "layer5_sae_path", "layer15_sae_path"),
    *("height", "width", "num_inference_steps", "guidance_scale", "max_sequence_length"),
)
"""Settings that every steered picture, and its distance from the baseline, depends on."""

STEPS: tuple[Step, ...] = (
    Step(
        number=1,
        name="collect",
        module="collect",
        summary="Generate the pictures and keep their SAE codes.",
        reads=(),
        makes=("s_matrix", "manifest", "run_log", "codes"),
        settings=(*COLLECTED, "device", "batch_size", "sae_device", "token_chunk_size"),
        reads_if_there=("prompts",),
        shared=True,
    ),
    Step(
        number=2,
        name="analyze",
        module="analyze",
        summary="Find alive, dead, rare and common features.",
        reads=("s_matrix",),
        makes=(
            *("alive_features", "activation_freq", "topk_per_feature"),
            *("feature_stats", "feature_analysis_summary"),
        ),
        settings=("eps_alive", "top_k_per_image"),
    ),
    Step(
        number=3,
        name="clip-embed",
        module="clip_embed",
        summary="Embed the pictures with CLIP.",
        reads=("manifest", "pictures"),
        makes=("clip_embeddings", "clip_meta", "clip_image_ids", "clip_prompt_idx", "clip_seeds"),
        settings=("clip_model_id", "clip_batch_size", "clip_device"),
        shared=True,
    ),
    Step(
        number=4,
        name="select",
        module="select",
        summary="Select the most interpretable features.",
        reads=("s_matrix", "manifest", "clip_embeddings"),
        reads_if_there=("codes", "pictures"),
        makes=("selected_features", "feature_scores"),
        settings=(
            *("rank_by", "top_m_per_feature", "min_prompts", "top_features", "top_examples_per_feature"),
            *("enforce_global_unique_images", "eps_alive", "site_pattern", "target_step_number"),
            *("clip_model_id", "clip_batch_size", "clip_device"),
        ),
    ),
    Step(
        number=5,
        name="overlays",
        module="overlays",
        summary="Draw where each selected feature is active.",
        reads=("manifest", "codes", "pictures", "selected_features"),
        makes=("overlay_summary",),
        settings=("alpha_scale", "clip_percentile", "overlay_style", "site_pattern", "target_step_number"),
    ),
    Step(
        number=6,
        name="contact-sheet",
        module="contact_sheet",
        summary="Lay the features and pictures out on one sheet.",
        reads=("overlay_summary", "selected_features", "overlays", "pictures"),
        makes=("contact_sheet", "contact_sheet_comparison"),
        settings=(),
    ),
    Step(
        number=7,
        name="steer",
        module="steer",
        summary="Steer the selected features: grids over scales and strengths.",
        reads=("manifest", "codes", "pictures", "selected_features"),
        makes=("steering_summary",),
        settings=(
            *("steer_features", "steer_images", "steer_scales", "steer_strengths"),
            *("alpha_scale", "clip_percentile", *STEERING),
        ),
    ),
    Step(
        number=8,
        name="decoder",
        module="decoder",
        summary="Show the features' encoder and decoder directions.",
        reads=("selected_features",),
        makes=("decoder_stats", "decoder_directions", "decoder_similarity_matrix"),
        settings=("saes", "layer5_sae_path", "layer15_sae_path"),
    ),
    Step(
        number=9,
        name="compare-layers",
        module="compare_layers",
        summary="Compare the features of two SAEs: blocks 5 and 15, or any.",
        reads=("s_matrix", "manifest", "codes", "pictures"),
        makes=("comparison_summary", "comparison"),
        settings=(
            *("saes", "layer5_sae_path", "layer15_sae_path", "site_pattern", "compare"),
            *("target_step_number", "eps_alive", "alpha_scale", "clip_percentile"),
        ),
        shared=True,
        both_layers=True,
    ),
    Step(
        number=10,
        name="find-demos",
        module="find_demos",
        summary="Find the demos that change the picture most.",
        reads=("s_matrix", "manifest", "codes", "pictures", "selected_features"),
        makes=("best_demo_candidates", "best_demo_ids"),
        settings=(
            *("steer_features", "demo_percentile_low", "demo_percentile_high", "demo_candidates"),
            *("demo_finalists", "demo_kept", "demo_strengths", "eps_alive", "base_seed", *STEERING),
        ),
    ),
    Step(
        number=11,
        name="assemble-grids",
        module="assemble_grids",
        summary="Assemble labelled steering grids of the demos.",
        reads=("manifest", "codes", "best_demo_candidates", "best_demos"),
        makes=("steering_grids_summary",),
        settings=("alpha_scale", "clip_percentile", "site_pattern", "target_step_number"),
    ),
)
