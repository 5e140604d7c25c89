"""The package's version, where the things lie that ship with it, and the short names they go by."""

from __future__ import annotations

from pathlib import Path

VERSION = "0.1.0"

SHAPES = Path(__file__).resolve().parent
WEIGHTS = SHAPES / "weights"
TEST_PROMPTS = SHAPES / "test_prompts.txt"

NATURAL_PAIRS = SHAPES.parent / "prompt_pairs.json"
"""Pairs of prompts that differ in one thing, for models of natural pictures."""

DONOR_SCORES = WEIGHTS / "donor_scores.json"
"""Where flux-shapes decides what, as `fluxscope site-map` found it."""

FLUX_SHAPES = "flux-shapes"
CLIP_SHAPES = "clip-shapes"

SHIPPED = {name: WEIGHTS / name for name in (FLUX_SHAPES, CLIP_SHAPES)}


OWN_SITE = "double.5.attn"
"""Where flux-shapes is looked at when nothing else is said: where features say most of what is true of a
picture (docs/studies/sites.md)."""


def shipped_sae(layer: int) -> Path:
    """The SAE that ships for the feed-forward of a block of flux-shapes."""
    return WEIGHTS / f"sae_layer{layer:02d}" / "sae_best.pt"


SHIPPED_SAES = {
    OWN_SITE: WEIGHTS / "sae_double.5.attn" / "sae_best.pt",
    "double.5.ff": shipped_sae(5),
    "double.15.ff": shipped_sae(15),
}
"""The SAEs that ship with flux-shapes, by their sites."""

STEERING_SITES = tuple(f"double.{block}.attn" for block in (1, 8, 11, 15, 18))
"""With the own site: the attention outputs that decide what flux-shapes draws. The network was grown from
these six blocks."""

TEXT_SITE = "double.0.context"
"""The text as the later blocks read it: who edits here tells the model another prompt."""

STEERING_SAES = {site: WEIGHTS / f"sae_{site}" / "sae_best.pt" for site in (OWN_SITE, *STEERING_SITES)}
"""The SAEs of these sites: small ones, for edits that act at all depths."""

TEXT_SAES = {TEXT_SITE: WEIGHTS / f"sae_{TEXT_SITE}" / "sae_best.pt"}
"""The SAE of the text stream, for edits in few features of what the model is told."""


def resolve(name: str) -> str:
    """The folder of a model that ships, for its short name; any other name comes back as it is."""
    return str(SHIPPED.get(name, name))
