"""Recorders: the sites that step 1 listens at in its one pass, and what each of them keeps.

A recorder with an SAE keeps sparse codes, one without keeps raw activations in bfloat16. What a killed run
wrote past its last commit is cut off when a recorder is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from fluxscope.errors import CheckpointError, ConfigError, FluxscopeError, clean, clear_memory_errors
from fluxscope.models.sites import Site, parse_site
from fluxscope.models.spec import ModelSpec
from fluxscope.run.activations import ActivationStore
from fluxscope.run.codes import CodeStore
from fluxscope.run.rundir import RunDir
from fluxscope.sae.base import LinearSae, encode_sparse
from fluxscope.sae.codes import SparseCodes
from fluxscope.sae.data import MAX_BAD_SHARE
from fluxscope.sae.formats import SaeInfo, load
from fluxscope.settings.config import Config

Kept = SparseCodes | Tensor
"""What is kept of a batch: the codes of its tokens, or its activations (b, t, d)."""


@dataclass
class Recorder:
    """A site, what encodes there, and where its codes or activations of each step go.

    Attributes:
        stores: by step (counted from 0), the target step first.
        done: how many pictures are committed.
        seen, bad: tokens heard so far, and those of them that hold NaN or infinity.
    """

    site: Site
    sae: LinearSae | None
    stores: dict[int, CodeStore] | dict[int, ActivationStore]
    done: int
    seen: int = 0
    bad: int = 0

    @clear_memory_errors("encoding activations with an SAE")
    def keep(self, x: Tensor, chunk: int) -> Kept:
        """What is to be stored of one batch (b, t, d); tokens with NaN or infinity get no codes.

        Raises:
            FluxscopeError: more than 1% of the tokens so far hold NaN or infinity.
        """
        bad = ~torch.isfinite(x).all(-1).flatten()  # (b t)
        codes = None
        if self.sae is not None:
            finite = torch.where(bad.view(*x.shape[:2], 1), 0, x)
            codes = encode_sparse(self.sae, finite.to(self.sae.pre_bias.device), chunk).to("cpu")
            bad = bad.cpu()
            bad[codes.token()[~torch.isfinite(codes.value)]] = True
        self._count(bad)
        if codes is None:
            return x.to(torch.bfloat16).cpu()
        return _without(codes, bad) if bad.any() else codes

    @property
    def bad_in_words(self) -> str:
        """How many tokens hold NaN or infinity."""
        return f"{self.bad} of {self.seen} tokens at {self.site.name} hold NaN or infinity"

    def _count(self, bad: Bool[Tensor, " t"]) -> None:
        self.seen, self.bad = self.seen + len(bad), self.bad + int(bad.sum())
        if self.bad > MAX_BAD_SHARE * self.seen:
            raise FluxscopeError(
                self.bad_in_words,
                "The model's weights or its precision are at fault: see that its files are whole, or give "
                "--dtype float32.",
            )

    def append(self, kept: dict[int, Kept], pictures: int, first: int) -> None:
        """Store a batch of so many pictures, the first being number `first`, but for those stored already."""
        skipped = self.done - first
        for step, store in self.stores.items():
            rows = kept[step]
            if isinstance(store, CodeStore):
                assert isinstance(rows, SparseCodes)
                store.append(rows.rows(slice(skipped * store.n_tokens, rows.n_tokens)))
            else:
                assert isinstance(rows, Tensor)
                store.append(rows[skipped:])
        self.done = first + pictures


def _without(codes: SparseCodes, bad: Bool[Tensor, " t"]) -> SparseCodes:
    """The codes but for those of bad tokens."""
    token = codes.token()
    kept = ~bad[token]
    counts = torch.bincount(token[kept], minlength=codes.n_tokens)
    indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return SparseCodes(indptr, codes.feature[kept], codes.value[kept], codes.n_features)


def open_recorder(
    config: Config,
    spec: ModelSpec,
    site: Site,
    sae: LinearSae | None,
    committed: int,
    identity: Mapping[str, Any],
) -> Recorder:
    """Open the stores of a site, cut back to the committed pictures, or to fewer where one holds fewer.

    Args:
        identity: what the pictures are, for stores of raw activations (`activations.identity_of`).

    Raises:
        RunDirError: the stores are of other sizes or other pictures, or damaged.
    """
    files, steps = RunDir.of(config), config.captured_step_indices
    tokens = config.n_image_tokens if site.kind.stream == "image" else config.max_sequence_length
    assert tokens is not None
    stores: dict[int, CodeStore] | dict[int, ActivationStore]
    if sae is None:
        stores = {
            step: ActivationStore.create(
                files.activations / site.name / f"step_{step}",
                spec.width,
                tokens,
                extra={"site": site.name, "step": step, **identity},
            )
            for step in steps
        }
    else:
        stores = {s: CodeStore.create(files.codes, site.name, s, tokens, sae.hidden_dim) for s in steps}
    done = min(committed, *(store.n_images for store in stores.values()))
    if done < committed:  # whole batches, as an uninterrupted run makes them
        done -= done % (config.batch_size or 1)
    for store in stores.values():
        store.truncate(done)
    return Recorder(site, sae, stores, done)


def load_further(
    config: Config, spec: ModelSpec, device: torch.device, taken: set[str]
) -> list[tuple[Site, LinearSae | None, SaeInfo | None]]:
    """The places of `sites`: "single.1" keeps raw activations, "single.1=path/to/sae_best.pt" codes.

    They have no manifest of their own: they are as far as their stores are, but never past the run's last
    commit.

    Args:
        taken: sites that are listened at anyway.

    Raises:
        CheckpointError: an SAE is missing, damaged, or of another width than its site.
        ConfigError: the model lacks a site, or one is named twice.
    """
    further: dict[str, tuple[Site, LinearSae | None, SaeInfo | None]] = {}
    for entry in config.sites:
        name, _, path = entry.partition("=")
        site = parse_site(name)
        spec.check_site(site)
        if name in further:
            raise ConfigError(f"the site {name} is named twice", "Name each of --sites once.")
        sae = info = None
        if path:
            sae, info = load(path, device)
            check_width(config, name, path, sae, spec)
        if name not in taken:
            further[name] = site, sae, info
    return list(further.values())


def check_width(config: Config, site: str, path: str, sae: LinearSae, spec: ModelSpec) -> None:
    """Raise CheckpointError, naming both widths, when an SAE does not fit the model."""
    if sae.input_dim != spec.width:
        raise CheckpointError(
            f"the SAE {path} reads activations of width {sae.input_dim}, "
            f"but {site} of {config.model_id} has width {spec.width}",
            "Choose an SAE that was trained on this model and site.",
        )


def used_elsewhere(config: Config, site: Site, info: SaeInfo) -> str | None:
    """What the user should know where an SAE says that it was trained at another place than it is used at."""
    said, here = [], []
    place, layer, step = (info.config.get(name) for name in ("site", "layer", "timestep"))
    if isinstance(place, str) and place != site.name:
        said, here = [clean(place)], [site.name]
    elif not isinstance(place, str) and isinstance(layer, int) and layer != site.layer:
        said, here = [f"block {layer}"], [site.name]
    if isinstance(step, int) and step != config.target_step_number:
        said.append(f"step {step}")
        here.append(f"step {config.target_step_number} of {config.num_inference_steps}")
    if not said:
        return None
    return f"{info.path} says that it was trained at {', '.join(said)}; it is used at {', '.join(here)}"
