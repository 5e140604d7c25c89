"""truth.json: what SAEs and their controls know of flux-shapes' pictures.

Lists go with the `concepts` of their level.
"""

from __future__ import annotations

from dataclasses import dataclass

from fluxscope.run.strict_json import Number, Record, ours, part


@dataclass(frozen=True, kw_only=True)
class TruthScores(Record):
    """How well one way of reading detects the concepts, on the part that is reported."""

    f1: list[Number] = part("F1 of each concept.")
    f1_low: list[Number] = part("Lower end of its 95% interval, prompts drawn anew.")
    f1_high: list[Number] = part("Upper end.")
    iou: list[Number] = part("Intersection over union of each concept.")
    auprc: list[Number] = part("Area under the curve of precision and recall of each concept.")
    mean: Number = part("Mean F1 over the attributes' values.")
    mean_low: Number = part("Lower end of its 95% interval.")
    mean_high: Number = part("Upper end.")
    mean_iou: Number = part("Mean IoU over the attributes' values.")
    mean_auprc: Number = part("Mean area under the curve over the attributes' values.")
    by_kind: dict[str, Number] = part("Mean F1 by kind of concept.")
    coverage: Number = part("Share of the attributes' values with an F1 of 0.8 or more.")


@dataclass(frozen=True, kw_only=True)
class PairResults(Record):
    """What the best single features do on exact pairs: same seed, prompts that differ in one word."""

    pairs: int = part("Pairs in which a concept of this kind came or went, summed over concepts.")
    follows: Number | None = part("Share of them in which the detector fires on the right picture alone.")
    leakage: Number | None = part("Share of the other pairs in which it comes or goes all the same.")
    selectivity: Number | None = part("How much it moves on its own pairs, of that and on others: 0 to 1.")


@dataclass(frozen=True, kw_only=True)
class FeatureDetails(Record):
    """What is known of the features that detect."""

    features: list[int | None] = part("The best single feature of each concept.")
    thresholds: list[Number | None] = part("It detects where its code is at least this.")
    distinct: int = part("How many different features these are, for the attributes' values.")
    p: list[Number] = part("Chance of as many hits with pictures permuted, corrected by Holm over concepts.")
    chance_chosen: Number = part("Mean F1 of the best feature with pictures permuted, where it was chosen.")
    chance: Number = part("The same where it is reported.")
    needed: list[int] = part("Features that reach 95% of what up to sixteen reach.")
    disentanglement: Number = part("1 where every feature matters to one attribute's value only.")
    completeness: Number = part("1 where one feature is all that matters to a value.")
    absorption: dict[str, Number] = part("By kind: share of its pairs with recall below half of that on all.")
    on_pairs: dict[str, PairResults] = part("By kind of concept.")


@dataclass(frozen=True, kw_only=True)
class DetectorScores(Record):
    """One detector at one site and step."""

    name: str = part("sae, untrained, frozen decoder, neurons, pca, ica, nmf, difference of means or probe.")
    checkpoint: str | None = ours("The SAE, or the one of whose size it is.")
    n_features: int | None = ours("How many features it has.")
    l0: Number | None = ours("How many of them are active on a token.")
    single: TruthScores | None = ours("The best single feature.")
    coalition_4: TruthScores | None = ours("The best coalition of up to four features.")
    coalition_16: TruthScores | None = ours("The best coalition of up to sixteen.")
    readout: TruthScores | None = ours("The detector itself, where it has no features.")
    details: FeatureDetails | None = ours("What is known of the features.")
    above_untrained: list[Number] | None = ours(
        "coalition_16 less that of the untrained twin: mean, low, high."
    )
    share_of_probe: Number | None = ours("Mean of coalition_16 as a share of the dense probe's.")


@dataclass(frozen=True, kw_only=True)
class SiteScores(Record):
    """All detectors at one site and step."""

    site: str = part("Where in the model.")
    step: int = part("The denoising step, from 0.")
    detectors: list[DetectorScores] = part("The detectors.")


@dataclass(frozen=True, kw_only=True)
class TruthLevel(Record):
    """What is scored on tokens, or on whole pictures."""

    concepts: list[str] = part("The concepts that are scored.")
    rare: list[str] = part("Those that are on too few pictures.")
    base: list[Number] = part("Share of the rows that have each concept.")
    sites: list[SiteScores] = part("The detectors by site and step.")


@dataclass(frozen=True, kw_only=True)
class TruthReport(Record):
    """truth.json"""

    model_id: str = part("The model.")
    pictures: int = part("Pictures that were made and read by the oracle.")
    prompts: int = part("Prompts, a pair's two counted as one: what is split and drawn as one.")
    parts: dict[str, int] = part("Pictures to choose on, to tune on and to report on.")
    exact_pairs: int = part("Exact pairs among the pictures to report on.")
    seed: int = part("Seed of the split and of all draws.")
    missing: list[str] = part("Controls that need what is not installed.")
    on_tokens: TruthLevel = part("Scores on tokens.")
    on_pictures: TruthLevel = part("Scores on whole pictures.")
