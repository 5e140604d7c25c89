"""Activations to train SAEs on: many pictures denoised once, for all sites and steps, into shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fluxscope.models.capture import listen
from fluxscope.models.model import Model
from fluxscope.models.sites import Site
from fluxscope.models.spec import PATCH, PictureSpec
from fluxscope.progress import Reporter
from fluxscope.sae.shards import ActivationStore, planned_bytes, require_space

Stores = dict[tuple[str, int], ActivationStore]
"""By site name and step, counted from 0."""


@dataclass(frozen=True)
class Wanted:
    """What is to be harvested.

    Attributes:
        model_id: the model.
        spec: how the pictures are made.
        max_sequence_length: text tokens of a prompt.
        sites, steps: where and when; steps are counted from 0.
        prompts, seeds: one a picture.
    """

    model_id: str
    spec: PictureSpec
    max_sequence_length: int
    sites: Sequence[Site]
    steps: Sequence[int]
    prompts: Sequence[str]
    seeds: Sequence[int]

    def tokens(self, site: Site) -> int:
        image_tokens = (self.spec.height // PATCH) * (self.spec.width // PATCH)
        return image_tokens if site.kind.stream == "image" else self.max_sequence_length


def planned_size(wanted: Wanted, width: int, dtype: str = "bfloat16") -> int:
    """Bytes that the harvest takes on the disk."""
    a_step = sum(planned_bytes(len(wanted.seeds), wanted.tokens(s), width, dtype) for s in wanted.sites)
    return a_step * len(wanted.steps)


def harvest(
    model: Model,
    wanted: Wanted,
    folder: Path,
    batch_size: int,
    report: Reporter,
    stored_as: str = "bfloat16",
) -> Stores:
    """Denoise what is not there yet and store it; interrupted and called again, it goes on where it was.

    Raises:
        ConfigError: the model lacks a site.
        FluxscopeError: the disk cannot hold it, or the folder holds a harvest of other settings.
    """
    width = model.spec.width
    stores = open_stores(wanted, folder, width, batch_size, stored_as)
    done = min(store.n_images for store in stores.values())
    missing = len(wanted.seeds) - done
    if not missing:
        return stores
    size = planned_size(wanted, width, stored_as)
    report.say(f"activations take {size / 2**20:.0f} MiB in {folder}")
    require_space(folder, size * missing // len(wanted.seeds))
    prompts = model.encode(wanted.prompts, wanted.max_sequence_length)
    for warning in prompts.warnings:
        report.say(f"warning: {warning}")
    texts, seeds = wanted.prompts[done:], wanted.seeds[done:]
    heard = listen(model, prompts, texts, seeds, wanted.spec, wanted.sites, wanted.steps, batch_size)
    with report.progress("training pictures", len(wanted.seeds), "images", done) as advance:
        for first, activations in heard:
            for place, store in stores.items():
                x = activations[place]
                store.append(x[max(store.n_images - done - first, 0) :])
            advance(len(texts[first : first + batch_size]))
    for store in stores.values():
        store.finish()
    return stores


def open_stores(wanted: Wanted, folder: Path, width: int, batch_size: int, stored_as: str) -> Stores:
    """One store for each site and step. A shard holds whole batches, so that batches go on unbroken."""
    return {
        (site.name, step): ActivationStore.create(
            folder / site.name / f"step_{step}",
            width,
            wanted.tokens(site),
            stored_as,
            images_per_shard=batch_size * max(1, 64 // batch_size),
            extra={
                "site": site.name,
                "step": step,
                "model_id": wanted.model_id,
                "n_images": len(wanted.seeds),
            },
        )
        for site in wanted.sites
        for step in wanted.steps
    }
