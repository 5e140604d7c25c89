"""The records of the steering steps 7, 10 and 11, one class for each JSON file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fluxscope.run.site_map_records import Share
from fluxscope.run.strict_json import Number, Record, others, ours, part

Unit = Literal["activation", "absolute"]
"""What a strength of 1 is: the feature's 99th-percentile activation, or 1 along its unit direction."""


@dataclass(frozen=True, kw_only=True)
class OfFeature(Record):
    """A record about a feature."""

    feature_id: int = part("The feature.")


@dataclass(frozen=True, kw_only=True)
class Failure(OfFeature):
    """A feature that could not be steered."""

    error: str = part("Why.")


@dataclass(frozen=True, kw_only=True)
class Effect(Record):
    """What one scale or strength did to a picture."""

    value: Number = part("The scale, or the strength in the feature's unit.")
    distance: Number = part("Perceptual distance from the baseline.")
    inside: Number = part("Mean change of the pixels inside the feature's heatmap, 0 to 1.")
    outside: Number = part("The same outside it.")


@dataclass(frozen=True, kw_only=True)
class Dose(Record):
    """Where the change begins and where it breaks, to one side."""

    first_change: Number | None = part("Strength at which the distance is a tenth of unrelated pictures'.")
    breaks: Number | None = part("Strength at which it is as large; null where no tested one comes so far.")


@dataclass(frozen=True, kw_only=True)
class DoseResponse(Record):
    """The dose-response to either side."""

    positive: Dose = part("Of strengths above 0.")
    negative: Dose = part("Of strengths below 0.")


@dataclass(frozen=True, kw_only=True)
class Experiment(OfFeature):
    """A picture of steering_summary.json"""

    image_id: int = part("The picture.")
    prompt: str = part("Its prompt.")
    seed: int = part("Its seed.")
    grid_path: str = part("The grid over scales.", path=True)
    strength_grid_path: str | None = ours("The grid over strengths.", path=True)
    strength_unit: Unit | None = ours("What strengths are measured in: activation or absolute.")
    unit: Number | None = ours("How much a strength of 1 is, along the unit decoder direction.")
    distance_of_strangers: Number | None = ours("Median distance of pictures of different prompts.")
    scaled: list[Effect] | None = ours("What every scale did.")
    added: list[Effect] | None = ours("What every strength did.")
    random_direction: list[Effect] | None = ours("What a random direction did at the same strengths.")
    dose_response: DoseResponse | None = ours("Where the feature's change begins and breaks.")
    dose_response_random: DoseResponse | None = ours("The same for the random direction.")


@dataclass(frozen=True, kw_only=True)
class SteeringSummary(Record):
    """steering/steering_summary.json"""

    layer_index: int = part("The layer.")
    target_step_number: int = part("The denoising step that the features come from, from 1.")
    scales: list[Number] = part("What the code was multiplied by.")
    strengths: list[Number] | None = ours("What was added along the unit decoder direction.")
    images_per_feature: int | None = ours("Pictures steered by each feature.")
    distance: str | None = ours("The perceptual distance.")
    donor_score: Share | None = ours(
        "How often a donor's activations, copied in where strengths are added, bring about what its prompt "
        "asks for; null where it was not measured.",
        null=True,
    )
    made_with: dict[str, Any] | None = ours("The settings that the pictures depend on.")
    experiments: list[Experiment] = part("The steered pictures, feature by feature.")
    failed: list[Failure] | None = ours("Features that could not be steered.")


@dataclass(frozen=True, kw_only=True)
class Try(Record):
    """A demo at one strength, both ways."""

    strength: Number = part("The strength, in the feature's unit.")
    pos_lpips: Number = part("Distance of the picture steered up.")
    neg_lpips: Number = part("Distance of the picture steered down.")
    consistency: Number = part("The smaller distance by the larger.")
    combined_score: Number = part("Their mean x (0.5 + 0.5 x consistency).")
    broken: bool = part("Whether a picture is as far away as an unrelated one.")


@dataclass(frozen=True, kw_only=True)
class Demo(Record):
    """A demo of best_demo_candidates.json"""

    image_id: int = part("The picture.")
    prompt: str = part("Its prompt.")
    seed: int = part("Its seed.")
    activation: Number = part("The feature's S on it.")
    best_strength: Number = part("The strength that scores highest.")
    pos_lpips: Number = part("Distance of the picture steered up by it.")
    neg_lpips: Number = part("Distance of the picture steered down by it.")
    consistency: Number = part("The smaller distance by the larger.")
    combined_score: Number = part("Their mean x (0.5 + 0.5 x consistency).")
    broken: bool | None = ours("Whether a picture is as far away as an unrelated one: only where all are.")
    tries: list[Try] | None = ours("Every strength that was tried.")


@dataclass(frozen=True, kw_only=True)
class Candidates(Record):
    """How a feature's candidates were found."""

    how: str = part("In words.")
    low: Number = part("S at the lower percentile.")
    high: Number = part("S at the upper percentile.")
    n_active: int = part("Pictures on which the feature is active.")
    n_pool: int = part("Pictures that the candidates were drawn from.")
    image_ids: list[int] = part("The candidates.")
    activations: list[Number] = part("S on them.")


@dataclass(frozen=True, kw_only=True)
class FeatureDemos(OfFeature):
    """A feature of best_demo_candidates.json"""

    distance_of_strangers: Number | None = ours("Median distance of pictures of different prompts.")
    strength_unit: Unit | None = ours("What strengths are measured in: activation or absolute.")
    unit: Number | None = ours("How much a strength of 1 is, along the unit decoder direction.")
    candidates: Candidates | None = ours("How the candidates were found.")
    screened_at: Number | None = ours("The strength that all candidates were tried at.")
    best_demos: list[Demo] = part("The demos that are kept, best first.")
    all_scored: list[Any] = part("Every candidate with its scores, as in best_demos.")


@dataclass(frozen=True, kw_only=True)
class DemoConfig(Record):
    """What the demos of best_demo_candidates.json were made with."""

    demo_percentile_low: Number | None = ours("Our name of min_percentile.")
    demo_percentile_high: Number | None = ours("Our name of max_percentile.")
    demo_candidates: int | None = ours("Our name of n_candidates_to_sample.")
    demo_finalists: int | None = ours("Our name of n_candidates_to_test.")
    demo_kept: int | None = ours("Our name of n_final.")
    strengths: list[Number] | None = ours("Our name of test_strengths.")
    distance: str | None = ours("The perceptual distance.")
    donor_score: Share | None = ours(
        "The donor score of the site that is steered; null where it was not measured.", null=True
    )
    layer_index: int | None = ours("The layer.")
    settings: dict[str, Any] = others("The settings that the pictures depend on, by their names.")
    n_candidates_to_sample: int | None = ours("Pictures tried at one strength.")
    n_candidates_to_test: int | None = ours("How many of them are tried at all strengths.")
    n_final: int | None = ours("Demos kept of each feature.")
    test_strengths: list[Number] | None = ours("The strengths, each tried both ways.")
    step_range: list[int] | None = ours("First and last denoising step that is steered, from 0.")
    min_percentile: Number | None = ours("Candidates lie above this percentile of the feature's S.")
    max_percentile: Number | None = ours("And below this one.")
    seed: int | None = ours("Seed of the draw of the candidates.")
    save_images: bool | None = ours("Whether the pictures are kept.")

    def setting(self, name: str) -> str:
        """A setting in words; a dash where the file doesn't say."""
        return str(self.settings.get(name, "-"))

    @property
    def magnitudes(self) -> list[Number]:
        """The tested strengths, by whichever name the file gives."""
        return self.strengths or self.test_strengths or []

    @property
    def site(self) -> str:
        """Where the demos were steered."""
        elsewhere = self.settings.get("steer_site")
        return str(elsewhere).replace("{layer}", str(self.layer_index)) if elsewhere else self.setting("site")


@dataclass(frozen=True, kw_only=True)
class DemoCandidates(Record):
    """best_demos/best_demo_candidates.json"""

    config: DemoConfig = part("What the demos were made with.")
    features: list[FeatureDemos] = part("The features with demos.")
    failed: list[Failure] | None = ours("Features without any.")


@dataclass(frozen=True, kw_only=True)
class DemoId(Record):
    """A demo of best_demo_ids.json"""

    image_id: int = part("The picture.")
    strength: Number = part("Its best strength.")


@dataclass(frozen=True, kw_only=True)
class DemoIds(Record):
    """best_demos/best_demo_ids.json"""

    features: dict[str, list[DemoId]] = others("The demos that are kept, by feature.")


@dataclass(frozen=True, kw_only=True)
class DemoGrid(OfFeature):
    """A grid of steering_grids_summary.json"""

    demo_idx: int = part("Which of its demos, from 0.")
    image_id: int = part("The picture.")
    prompt: str = part("Its prompt.")
    seed: int = part("Its seed.")
    score: Number = part("The demo's combined_score.")
    grid_path: str = part("The labelled grid.", path=True)
    strip_path: str | None = ours("The same pictures without labels.", path=True)


@dataclass(frozen=True, kw_only=True)
class GridsSummary(Record):
    """steering_grids/steering_grids_summary.json"""

    layer_index: int | None = ours("The layer.")
    strengths: list[Number] = part("From the most negative to the most positive, 0 in the middle.")
    grids: list[DemoGrid] = part("The grids.")
