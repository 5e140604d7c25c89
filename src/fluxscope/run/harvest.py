"""Activations to train SAEs on: many pictures denoised once, for all sites and steps, into shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fluxscope.models.capture import listen
from fluxscope.models.model import Model
from fluxscope.models.sites import Site
from fluxscope.models.spec import PATCH, PictureSpec
from fluxscope.progress import Reporter
from fluxscope.run.activations import ActivationStore, identity_of, planned_bytes, require_space
from fluxscope.sae.data import bad_rows, finite_rows, first_held_out, refuse_many_bad

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
        FluxscopeError: the disk cannot hold it, the folder holds a harvest of other settings, or more than
            1% of the tokens hold NaN or infinity.
    """
    width = model.spec.width
    stores = open_stores(wanted, folder, width, model.dtype, stored_as)
    done = cut_back(list(stores.values()), len(wanted.seeds), batch_size)
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
    bad = seen = 0
    with report.progress("training pictures", len(wanted.seeds), "images", done) as advance:
        for first, activations in heard:
            for x in activations.values():
                bad, seen = bad + bad_rows(x), seen + x.shape[0] * x.shape[1]
            refuse_many_bad(bad, seen)
            for place, store in stores.items():
                store.append(activations[place])
            advance(len(texts[first : first + batch_size]))
    if bad:
        report.say(f"warning: {bad} of {seen} activations hold NaN or infinity")
    return stores


def cut_back(stores: Sequence[ActivationStore], wanted: int, batch_size: int) -> int:
    """Cut all stores back to the last batch that all of them hold whole; returns the pictures left.

    So the pictures that follow come from the same batches as in an uninterrupted run.
    """
    done = min(store.n_images for store in stores)
    done = done if done == wanted else done // batch_size * batch_size
    for store in stores:
        store.truncate(done)
    return done


def held_out_batches(store: ActivationStore, batch_size: int) -> list[Tensor]:
    """The tokens that are kept from training, those with NaN or infinity left out.

    Raises:
        FluxscopeError: there are none, or more than 1% are bad.
    """
    return token_batches(store, range(first_held_out(store.n_images), store.n_images), batch_size)


def token_batches(store: ActivationStore, images: Sequence[int], batch_size: int) -> list[Tensor]:
    """The tokens of pictures, those with NaN or infinity left out.

    Raises:
        FluxscopeError: there are none, or more than 1% are bad.
    """
    tokens = store.read(images).float().flatten(0, 1)
    return list(tokens[finite_rows(tokens)].split(batch_size))


def open_stores(wanted: Wanted, folder: Path, width: int, model_dtype: torch.dtype, stored_as: str) -> Stores:
    """One store for each site and step, which says what it is of: others are refused."""
    identity = identity_of(
        wanted.model_id,
        model_dtype,
        wanted.spec,
        wanted.max_sequence_length,
        wanted.prompts,
        wanted.seeds,
    )
    return {
        (site.name, step): ActivationStore.create(
            folder / site.name / f"step_{step}",
            width,
            wanted.tokens(site),
            stored_as,
            extra={"site": site.name, "step": step, **identity},
        )
        for site in wanted.sites
        for step in wanted.steps
    }
