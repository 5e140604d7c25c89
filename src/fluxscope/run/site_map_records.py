"""The records of `fluxscope site-map`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fluxscope.run.strict_json import Number, Record, ours, part

Control = Literal["donor", "unrelated", "noise"]
"""Where what is copied in comes from: the donor of the pair, one of an unrelated prompt, or noise."""

Measure = Literal["oracle", "distance"]
"""What says whether the change came about: flux-shapes' oracle, or nearness to the donor's picture."""


@dataclass(frozen=True, kw_only=True)
class PromptPair(Record):
    """A pair of prompts."""

    source: str = part("The prompt of the picture that is changed.")
    target: str = part("The donor's prompt, which differs in one thing.")


@dataclass(frozen=True, kw_only=True)
class PromptPairs(Record):
    """A file of pairs of prompts."""

    pairs: list[PromptPair] = part("The pairs.")


@dataclass(frozen=True, kw_only=True)
class Outcome(Record):
    """What one copy did to one picture."""

    cell: str = part("What was copied: kind of site, blocks, window of noise levels.")
    control: Control = part("Where it came from: donor, unrelated or noise.")
    became: bool | None = ours("Whether the picture has the wished value.")
    clean: bool | None = ours("Whether it has, and nothing else changed.")
    closed: Number | None = ours("Share of the perceptual distance to the donor's picture that is closed.")
    clip: Number | None = ours("The same share of the distance of CLIP's embeddings.")
    inside: Number | None = ours("The same of the pixels, where source and donor differ.")
    outside: Number | None = ours("Change of the pixels elsewhere, as a share of the donor's change inside.")


@dataclass(frozen=True, kw_only=True)
class Share(Record):
    """How often something came about."""

    hits: int = part("In how many pictures.")
    n: int = part("Of how many.")
    share: Number = part("hits / n.")
    low: Number = part("Lower end of Wilson's 95% interval.")
    high: Number = part("Its upper end.")


@dataclass(frozen=True, kw_only=True)
class CellScore(Record):
    """A cell of site_map.json"""

    name: str = part("Kind of site, blocks, window of noise levels.")
    kind: str = part("Kind of site.")
    blocks: list[int] = part("First and last block.")
    window: list[Number] = part("Highest and lowest noise level; the whole of denoising is 1 to 0.")
    steps: list[int] = part("First and last denoising step in it, from 0.")
    sites: list[str] = part("The sites that were copied.")
    control: Control = part("Where the copy came from: donor, unrelated or noise.")
    score: Share | None = ours("The donor score: how often what the donor's prompt asks for came about.")
    clean: Share | None = ours("How often it did and nothing else changed (oracle only).")
    by_attribute: dict[str, Share] | None = ours("Clean changes by attribute (oracle only).")
    nearer: Share | None = ours("How often the picture came nearer to the donor's than to its own.")
    closed: Number | None = ours("Mean share of the perceptual distance that is closed.")
    clip: Number | None = ours("The same of the distance of CLIP's embeddings.")
    inside: Number | None = ours("The same of the pixels, where source and donor differ.")
    outside: Number | None = ours("Mean change of the pixels elsewhere, as a share of the change inside.")


@dataclass(frozen=True, kw_only=True)
class SiteMap(Record):
    """site_map.json"""

    model_id: str = part("The model.")
    measure: Measure = part("What says whether a change came about: oracle or distance.")
    words: str = part("Where to steer and where not, in a sentence.")
    distance: str = part("The perceptual distance.")
    made_with: dict[str, Any] = part("The settings that it depends on.")
    sigmas: list[Number] = part("The noise level before each denoising step.")
    pairs: list[PromptPair] = part("The pairs of prompts.")
    donors: CellScore = part("The donors' own pictures: what a perfect copy would give.")
    ranked: list[str] = part("The single blocks, best donor score first; the end of the model left out.")
    cells: list[CellScore] = part("All that was measured.")


@dataclass(frozen=True, kw_only=True)
class DonorTable(Record):
    """What is kept of a site map to warn by."""

    model_id: str = part("The model.")
    measure: Measure = part("What says whether a change came about: oracle or distance.")
    made_with: dict[str, Any] = part("The settings that it depends on.")
    sites: dict[str, Share] = part("Donor scores of single sites, best first.")
