"""names.json: what features could be called, and the evidence."""

from __future__ import annotations

from dataclasses import dataclass

from fluxscope.run.rundir import RunDir
from fluxscope.run.step_log import StepLog
from fluxscope.run.strict_json import Number, Record, ours, part


@dataclass(frozen=True, kw_only=True)
class FeatureName(Record):
    """A feature of names.json"""

    feature_id: int = part("The feature.")
    name: str | None = part("What it could be called; null: nothing that holds.")
    reason: str = part("Why it has no name; empty where it has one.")
    term: str | None = part("The words that its strong prompts share most, named or not.")
    z: Number | None = part("Log odds of these words in strong prompts, in standard errors.")
    shared: Number | None = part("Share of the strong prompts that have them.")
    strong_prompts: int = part("Prompts of the naming half that reach half of its largest strength.")
    clip_z: Number | None = part("By how many standard errors CLIP sees the words more where it fires.")
    held_out_r: Number | None = part("Pearson of its strength and the words on prompts that named nothing.")
    looks_like: list[str] = part("Words that CLIP sees more than others where it fires; no claim.")
    said: list[str] | None = ours(
        "Words that a vision-language model says more of what it fires on, where one was asked; no claim."
    )


@dataclass(frozen=True, kw_only=True)
class Names(Record):
    """names.json"""

    s_sha256: str = part("Hash of the S that the names are of.")
    num_prompts: int = part("Prompts of the run; one half names, the other tells how well.")
    clip_model_id: str = part("The CLIP model that was asked.")
    features: list[FeatureName] = part("One entry a feature.")


def names_of(files: RunDir, log: StepLog) -> dict[int, FeatureName]:
    """What features could be called; none where they were not named, or by another S."""
    if not files.names.is_file():
        return {}
    names = Names.read(files.names)
    if names.s_sha256 != log.digest(files.s_matrix.absolute()):
        return {}
    return {each.feature_id: each for each in names.features}


def in_words(feature: FeatureName) -> str:
    """The name with its evidence, short enough for a card."""
    if feature.name is None:
        return "unnamed"
    held = "?" if feature.held_out_r is None else f"{feature.held_out_r:.2f}"
    return f"{feature.name} (z {feature.z:.1f}, held out r {held})"
