"""The record of a recipe: an edit as a small JSON file, to be replayed, composed with others and shared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fluxscope.run.strict_json import Number, Record, ours, part

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class FeatureMove(Record):
    """One feature of a site."""

    feature: int = part("The feature.")
    amount: Number | None = ours("Natural sizes that are added or set; for scale, the factor.")
    natural: Number | None = ours("The natural size: its mean code where active on the wished side.")
    kind: Literal["add", "scale", "clamp"] | None = ours("add unless said.")


@dataclass(frozen=True, kw_only=True)
class SiteMoves(Record):
    """A site and the features of its SAE."""

    site: str = part("The site.")
    sae_sha256: str | None = ours("The SAE's contents; null where the activation itself is carried over.")
    features: list[FeatureMove] | None = ours("The features; null for all.")
    window: list[Number] | None = ours("Noise levels from - to; the recipe's own unless said.")


@dataclass(frozen=True, kw_only=True)
class Region(Record):
    """Tokens of the picture."""

    grid: list[int] = part("Rows and columns of tokens.")
    rows: list[str] = part("A text for each row: # where the token belongs to the region, . where not.")


@dataclass(frozen=True, kw_only=True)
class Recipe(Record):
    """NAME.recipe.json"""

    fluxscope_recipe: int = part("Version of this form: 1.")
    name: str = part("What it does, in words.")
    method: Literal["push", "transport", "detector"] = part("How it is replayed.")
    found_by: str | None = ours("What found the amounts: shift, learned, ...")
    model: str = part("The model's name.")
    source: str | None = ours("A prompt that it was made for; any other is as good.")
    target: str | None = ours("The donor's prompt (transport), or the one that says how (detector).")
    sites: list[SiteMoves] | None = ours("What is moved, carried over or, by a detector, read.")
    window: list[Number] = part("Noise levels from - to between which it acts.")
    region: Region | None = ours("The tokens that may change; all unless said.")
    weight: Number | None = ours(
        "Share of the way to the donor, or weight of the other velocity: 1 unless said."
    )
    level: Number | None = ours(
        "Detector: from this height of the features' map on a token is meant; 0.1 unless said."
    )
    only_active: bool | None = ours("Push: move features only where they are active.")
    keep_norm: bool | None = ours("Bring each token back to the norm that it had.")
    made_with: dict[str, Any] | None = ours("What else its maker tells; not read.")
