"""The records of steps 1 to 9, one class for each JSON file. Those of steering are in `steering_records`.

Fields made by `part` stand in every folder of this pipeline's form; those made by `ours` need not.
docs/make_disk_format.py writes the tables of docs/disk-format.md from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fluxscope.run.site_map_records import Share
from fluxscope.run.strict_json import Number, Record, is_number, others, ours, part


@dataclass(frozen=True, kw_only=True)
class RunLog(Record):
    """run_log.json"""

    settings: dict[str, Any] = others("Every setting of the run, by its name.")
    model_id: str | None = ours("The model.")
    num_inference_steps: int | None = ours("Denoising steps of a picture.")
    layer_index: int | None = ours("The double block that the files are about, from 0.")
    site: str | None = ours("Where in the model its SAE listens.")
    target_step_number: int | None = ours("The denoising step that was looked at, from 1.")
    target_step_index: int | None = ours("The same, from 0.")
    sae_ckpt_path: str | None = ours("The SAE's checkpoint.")
    sae_hidden_dim: int | None = ours("How many features it has.")
    sae_config: dict[str, Any] | None = ours("What the checkpoint says of itself.")
    sae_sha256: str | None = ours("The checkpoint's hash.")
    n_image_tokens: int | None = ours("Image tokens of a picture.")
    num_prompts: int | None = ours("Prompts of the run.")
    num_images: int | None = ours("Pictures of the run.")
    images_completed: int | None = ours("How many of them are finished.")
    total_time_seconds: Number | None = ours("Seconds that making them took, all sessions together.")
    identity: dict[str, Any] | None = ours("What decides which pictures and codes the folder holds.")
    fluxscope: str | None = ours("Version of fluxscope.")
    python: str | None = ours("Version of Python.")
    torch: str | None = ours("Version of torch.")
    diffusers: str | None = ours("Version of diffusers.")
    transformers: str | None = ours("Version of transformers.")

    @property
    def saes(self) -> dict[str, str]:
        """The SAEs that were named by their sites; runs with layer 5 and 15 alone name none."""
        named = self.settings.get("saes")
        return {site: str(path) for site, path in named.items()} if isinstance(named, dict) else {}


@dataclass(frozen=True, kw_only=True)
class FeatureAnalysis(Record):
    """feature_analysis_summary.json"""

    num_images: int = part("Pictures analysed.")
    hidden_dim: int = part("Features of the SAE.")
    eps_alive: Number = part("A feature is active on a picture where S exceeds this.")
    num_alive_features: int = part("Features that are active on some picture.")
    num_dead_features: int = part("Features that are active on none.")
    num_rare_features: int = part("Features of a frequency above 0 and below 1%.")
    num_common_features: int = part("Features of a frequency from 1% to below 10%.")
    num_very_common_features: int = part("Features of a frequency of 10% and above.")
    top_k: int = part("Top pictures kept for each feature.")
    files: dict[str, str] = part("Where the arrays beside it lie, by their names.")


@dataclass(frozen=True, kw_only=True)
class ClipMeta(Record):
    """clip_meta.json"""

    clip_model_id: str = part("The CLIP model.")
    num_images: int = part("Pictures embedded.")
    embed_dim: int = part("Length of an embedding.")
    device_used: str = part("The device that it ran on.")
    normalized: bool = part("Whether the rows are unit vectors.")


MEASURES = (
    *("clip_coherence", "coherence_z", "crop_coherence", "coverage", "frequency", "n_top", "clip_held_out"),
    *("p_value", "q_value", "chosen_score", "shown_score", "chosen_pictures", "shown_pictures"),
)
"""The measures of a selected feature that are fields of its record."""


@dataclass(frozen=True, kw_only=True)
class SelectedFeature(Record):
    """A feature of selected_features.json"""

    feature_id: int = part("The feature.")
    clip_coherence: Number = part("Mean pairwise cosine of its top pictures of distinct prompts.")
    coherence_z: Number | None = ours(
        "How far that lies above random sets of the same size, in their standard deviations.", null=True
    )
    crop_coherence: Number | None = ours(
        "The same mean for crops around the activation's peak; null where there are no codes.", null=True
    )
    coverage: int | None = ours("Distinct prompts on which it is active.")
    frequency: Number | None = ours("Share of pictures on which it is active.")
    n_top: int | None = ours("How many top pictures there are.")
    clip_held_out: Number | None = ours(
        "How well what other prompts' pictures taught tells where it fires: a correlation, on pictures that "
        "did not choose it; null where it was not measured.",
        null=True,
    )
    p_value: Number | None = ours(
        "The chance of so large a clip_held_out; null where the pictures are not enough to tell.", null=True
    )
    q_value: Number | None = ours(
        "The share of false discoveries among all alive features of such a p_value.", null=True
    )
    chosen_score: Number | None = ours("The score that ranks, on the pictures that chose it.", null=True)
    shown_score: Number | None = ours(
        "The same score on the other pictures, those that show it; null where the pictures were not parted.",
        null=True,
    )
    chosen_pictures: int | None = ours("How many pictures chose it.")
    shown_pictures: int | None = ours("How many others there are to show it.")
    further: dict[str, Any] = others("Further measures, by their names.")
    example_image_ids: list[int] = part("Pictures that it is shown on.")
    top_m_image_ids: list[int] = part("Its top pictures of distinct prompts, strongest first.")

    @classmethod
    def of(
        cls, feature_id: int, measures: Mapping[str, Number | None], examples: list[int], top: list[int]
    ) -> SelectedFeature:
        """A feature with its measures by name."""
        own: dict[str, Any] = {name: measures[name] for name in MEASURES}
        further = {name: value for name, value in measures.items() if name not in MEASURES}
        return cls(
            feature_id=feature_id,
            **own,
            further=further,
            example_image_ids=examples,
            top_m_image_ids=top,
        )

    def ranked_by(self, ranking: str) -> Number | None:
        """The score that ranked it; files of other programs, and older ones, hold it by its own name."""
        own: Number | None = self.measures.get(ranking)
        return own if self.chosen_score is None else self.chosen_score

    @property
    def measures(self) -> dict[str, Number | None]:
        """Every measure by its name; None where it was not taken. Keys that hold no number are none."""
        further = {name: value for name, value in self.further.items() if is_number(value)}
        return {name: getattr(self, name) for name in MEASURES} | further


SAME_SCORE = 1e-6
"""Scores that are less apart differ by the order in which the same pictures were averaged."""


@dataclass(frozen=True, kw_only=True)
class Selection(Record):
    """selected_features.json"""

    num_images: int = part("Pictures of the run.")
    num_alive_features: int = part("Features that are active on some picture.")
    num_beating_chance: int | None = ours(
        "How many of these have a q_value within false_discovery_rate; null where the pictures are not "
        "enough to tell.",
        null=True,
    )
    top_m_per_feature: int = part("Top pictures that a coherence is taken over, at most.")
    top_features: int = part("How many features were to be selected.")
    top_examples_per_feature: int = part("Example pictures of each.")
    enforce_global_unique_images: bool = part("Whether a picture is an example once only.")
    rank_by: str | None = ours("The score that ranks them.")
    min_prompts: int | None = ours("Distinct prompts that a feature must be active on.")
    most_alike: Number | None = ours("Features that fire more alike (correlation) are selected once.")
    false_discovery_rate: Number | None = ours("Share of false ones among those that beat chance.")
    layer_index: int | None = ours("Their layer.")
    donor_score: Share | None = ours(
        "How often a donor's activations, copied in at their site, bring about what its prompt asks for; "
        "null where it was not measured.",
        null=True,
    )
    features: list[SelectedFeature] = part("The selected features, best first.")

    @property
    def ranking(self) -> str:
        """The score that ranks the features; older files don't name it."""
        return self.rank_by or "clip_coherence"

    @property
    def tied(self) -> bool:
        """Whether all features have the same score, so that nothing ranks them: they stand by their ids."""
        scores = [each.ranked_by(self.ranking) for each in self.features]
        known = [score for score in scores if score is not None]
        return len(known) > 1 and len(known) == len(scores) and max(known) - min(known) < SAME_SCORE


@dataclass(frozen=True, kw_only=True)
class Overlay(Record):
    """An overlay of overlay_summary.json"""

    feature_id: int = part("The feature.")
    image_id: int = part("The picture.")
    prompt: str = part("Its prompt.")
    seed: int = part("Its seed.")
    base_image_path: str = part("The bare picture.", path=True)
    overlay_path: str = part("The picture with the heatmap.", path=True)
    tokenmap_path: str = part("The feature's code at every token.", path=True)
    activation_max: Number = part("The largest of these codes.")
    activation_mean: Number = part("Their mean.")


@dataclass(frozen=True, kw_only=True)
class OverlaySummary(Record):
    """overlays/overlay_summary.json"""

    layer_index: int = part("The layer.")
    target_step_number: int = part("The denoising step, from 1.")
    height: int = part("Height of a picture in pixels.")
    width: int = part("Its width.")
    token_grid_size: list[int] = part("Rows and columns of image tokens.")
    overlay_style: str | None = ours("smooth (bilinear) or blocky.")
    clip_percentile: Number | None = ours("Percentile of a token map that is drawn at full colour.")
    alpha_scale: Number | None = ours("Opacity of full colour.")
    site: str | None = ours("Where in the model the SAE listened.")
    model_id: str | None = ours("The model.")
    num_inference_steps: int | None = ours("Denoising steps of a picture.")
    items: list[Overlay] = part("The overlays, feature by feature.")


@dataclass(frozen=True, kw_only=True)
class Neighbour(Record):
    """A feature whose decoder direction is near another's."""

    feature_id: int = part("The other feature.")
    cosine_similarity: Number = part("Cosine of their decoder directions.")


@dataclass(frozen=True, kw_only=True)
class Directions(Record):
    """A feature of decoder_stats.json"""

    feature_id: int = part("The feature.")
    decoder_norm: Number = part("Norm of its decoder direction.")
    encoder_norm: Number = part("Norm of its encoder direction.")
    encoder_decoder_cosine: Number = part("Cosine of the two.")
    decoder_mean: Number = part("Mean of the decoder direction's entries.")
    decoder_std: Number = part("Their standard deviation.")
    decoder_max: Number = part("The largest of them.")
    decoder_min: Number = part("The smallest.")
    nearest_features: list[Neighbour] | None = ours("The features that point most nearly the same way.")


@dataclass(frozen=True, kw_only=True)
class Pair(Record):
    """A pair of decoder_stats.json"""

    feature_1: int = part("A selected feature.")
    feature_2: int = part("Another.")
    cosine_similarity: Number = part("Cosine of their decoder directions.")


@dataclass(frozen=True, kw_only=True)
class DecoderStats(Record):
    """decoder_stats.json"""

    layer_index: int | None = ours("The layer.")
    features: list[Directions] = part("The selected features' directions.")
    pairwise_similarities: list[Pair] = part("Every pair of selected features.")


@dataclass(frozen=True, kw_only=True)
class LayerCounts(Record):
    """A site of comparison_summary.json"""

    mean_l0: Number = part("Active features of a picture, mean.")
    std_l0: Number = part("Their standard deviation.")
    num_alive_features: int = part("Features that are active on some picture.")
    num_features: int | None = ours("Features of its SAE.")


@dataclass(frozen=True, kw_only=True)
class AliveCounts(Record):
    """Features of two sites counted by their ids, which two SAEs share by chance only."""

    alive_in_both: int = part("Ids that are alive in both.")
    alive_only_in: dict[str, int] = others(
        "Ids that are alive in one only, by `alive_only_in_5` and `alive_only_in_15`, or the site's name."
    )


@dataclass(frozen=True, kw_only=True)
class ComparisonSummary(Record):
    """layer_comparison/comparison_summary.json"""

    num_images: int = part("Pictures compared on.")
    hidden_dim: int = part("Features of the first SAE.")
    sites: dict[str, LayerCounts] = others(
        "Each of the two by itself, by `layer5` and `layer15`, or the site's name."
    )
    comparison: AliveCounts = part("Alive features counted by id.")


@dataclass(frozen=True, kw_only=True)
class L0(Record):
    """Active features of one layer."""

    per_token: Number = part("Active features of a token, mean.")
    per_token_std: Number = part("Their standard deviation.")
    per_image_mean: Number = part("Active features of a picture, mean.")
    per_image_std: Number = part("Their standard deviation.")


@dataclass(frozen=True, kw_only=True)
class Similarity(Record):
    """How similar the best partners are, by one measure."""

    median: Number | None = part("Median over the alive features of the first site.")
    median_by_chance: Number | None = part("The same where nothing can be shared.")


@dataclass(frozen=True, kw_only=True)
class Match(Record):
    """A feature of the first site and its partners in the second."""

    feature: int = part("The feature.")
    partner: int | None = part("The most similar feature of the other layer; null where none is.")
    similarity: Number | None = part("How similar they are.")
    one_to_one: int | None = part("Its partner where no two features share one (Hungarian matching).")


@dataclass(frozen=True, kw_only=True)
class BackMatch(Record):
    """A feature of the second site and its best partner in the first."""

    feature: int = part("The feature.")
    partner: int | None = part("The most similar feature of the other layer; null where none is.")
    similarity: Number | None = part("How similar they are.")


@dataclass(frozen=True, kw_only=True)
class Comparison(Record):
    """layer_comparison/comparison.json"""

    words: str = part("What becomes of the first site's features, in a sentence.")
    cka: Number = part("Linear CKA of the two SAEs' reconstructions over all tokens.")
    l0: dict[str, L0] = part("Active features, by site.")
    top_feature_overlap: Number | None = part(
        "Share of a picture's 20 most active features of the first whose partners are among the second's 20."
    )
    top_feature_overlap_per_image: list[Number | None] = part("The same, picture by picture.")
    similarity: dict[str, Similarity] = part("How similar the best partners are, by measure.")
    persist_by_chance: int = part("How many features would persist on other pictures.")
    persist: list[int] = part("Features of the first with a partner (token maps correlate at 0.5 or more).")
    vanish: list[int] = part("Features of the first without one.")
    appear: list[int] = part("Features of the second without one.")
    matches: dict[str, list[Match]] = part("Every alive feature of the first, by measure.")
    matches_back: dict[str, list[BackMatch]] = part("Every alive feature of the second, by measure.")


@dataclass(frozen=True, kw_only=True)
class FeatureProfile(Record):
    """A feature of steps_profile.json; every list has one entry a step."""

    feature_id: int = part("The feature.")
    mean_max_activation: list[Number] = part("Mean over the pictures of its largest code.")
    frequency: list[Number] = part("Share of pictures on which it is active.")


@dataclass(frozen=True, kw_only=True)
class StepsProfile(Record):
    """steps_profile.json; every list of numbers has one entry a step."""

    layer_index: int = part("The layer.")
    site: str = part("Where in the model its SAE listens.")
    num_images: int = part("Pictures denoised again.")
    steps: list[int] = part("The denoising steps, from 0.")
    explained_variance: list[Number] = part("Variance of the activations that the SAE explains.")
    l0: list[Number] = part("Active features of a token.")
    features: list[FeatureProfile] = part("The selected features.")
