"""The eleven steps, in order. A new step is one file beside this one and one entry here."""

from __future__ import annotations

from fluxscope.steps.step import Step

STEPS: tuple[Step, ...] = (
    Step(
        number=1,
        name="collect",
        module="collect",
        summary="Generate the pictures and collect SAE feature activations.",
        needs=(),
        makes=("s_matrix", "manifest", "run_log", "codes"),
        settings=(
            *("device", "dtype", "batch_size"),
            *("layer5_sae_path", "layer15_sae_path", "site_pattern", "compare_layers"),
            *("sae_device", "token_chunk_size"),
            *("height", "width", "num_inference_steps", "guidance_scale", "max_sequence_length"),
            *("target_step_number", "capture_steps"),
            *("prompts_path", "max_prompts", "reps_per_prompt", "base_seed"),
        ),
    ),
    Step(
        number=2,
        name="analyze",
        module="analyze",
        summary="Find alive, dead, rare and common features, and the top images of each.",
        needs=("s_matrix",),
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
        needs=("manifest",),
        makes=("clip_embeddings", "clip_meta", "clip_image_ids", "clip_prompt_idx", "clip_seeds"),
        settings=("clip_model_id", "clip_batch_size", "clip_device"),
        shared=True,
    ),
    Step(
        number=4,
        name="select",
        module="select",
        summary="Select the most interpretable features by CLIP coherence.",
        needs=("s_matrix", "manifest", "activation_freq", "clip_embeddings"),
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
        summary="Draw where in its pictures each selected feature is active.",
        needs=("manifest", "codes", "selected_features"),
        makes=("overlay_summary",),
        settings=("alpha_scale", "clip_percentile", "overlay_style", "site_pattern", "target_step_number"),
    ),
    Step(
        number=6,
        name="contact-sheet",
        module="contact_sheet",
        summary="Lay the selected features and their pictures out on one sheet.",
        needs=("overlay_summary", "selected_features"),
        makes=("contact_sheet", "contact_sheet_comparison"),
        settings=(),
    ),
    Step(7, "steer", "", "Steer the selected features.", (), (), ()),
    Step(
        number=8,
        name="decoder",
        module="decoder",
        summary="Show the selected features' encoder and decoder directions.",
        needs=("selected_features",),
        makes=("decoder_stats", "decoder_directions", "decoder_similarity_matrix"),
        settings=("layer5_sae_path", "layer15_sae_path"),
    ),
    Step(9, "compare-layers", "", "Compare the features of two layers.", (), (), ()),
    Step(10, "find-demos", "", "Find the steering demos that change the picture most.", (), (), ()),
    Step(11, "assemble-grids", "", "Assemble steering grids of the demos.", (), (), ()),
)
