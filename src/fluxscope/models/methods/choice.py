"""Which features to carry over: those whose codes differ most between two runs of one seed.

    score_f = sum over tokens and steps of |z_f(donor) - z_f(own)| |W_dec_f|

It says how far a feature would be moved, not what the move brings about; that a gradient says
(`models/attribution.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import Tensor

from fluxscope.models.capture import Capture
from fluxscope.models.cells import WHOLE, Window
from fluxscope.models.model import Model
from fluxscope.models.sites import Site, parse_site
from fluxscope.models.spec import Embedding, PictureSpec
from fluxscope.sae import LinearSae, encode_sparse


@dataclass(frozen=True)
class Differences:
    """How two runs differ, by site.

    Attributes:
        scores: of every feature.
        live: whether it is active at all in either run.
    """

    scores: Mapping[str, Float32[Tensor, " f"]]
    live: Mapping[str, Tensor]

    def top(self, k: int) -> dict[str, tuple[int, ...]]:
        """The k features with the highest scores over all sites, by site; sites without any are left out."""
        every = torch.cat(list(self.scores.values()))
        found: dict[str, tuple[int, ...]] = {}
        best = {int(i) for i in every.topk(min(k, len(every))).indices if every[i] > 0}
        first = 0
        for name, scores in self.scores.items():
            own = tuple(i - first for i in sorted(best) if first <= i < first + len(scores))
            if own:
                found[name] = own
            first += len(scores)
        return found


def differences(
    model: Model,
    own: Embedding,
    donor: Embedding,
    seed: int,
    spec: PictureSpec,
    saes: Mapping[str, LinearSae],
    window: Window = WHOLE,
) -> Differences:
    """Run both prompts from one seed and compare their codes.

    Args:
        saes: by the name of the site.
    """
    scores = {name: torch.zeros(sae.hidden_dim) for name, sae in saes.items()}
    live = {name: torch.zeros(sae.hidden_dim, dtype=torch.bool) for name, sae in saes.items()}

    def receive(site: Site, step: int, x: Tensor) -> None:
        sae = saes[site.name]
        for part in x.split(256, dim=1):  # so few tokens' dense codes at a time
            codes = encode_sparse(sae, part.to(sae.pre_bias.device)).to_dense().cpu()
            mine, theirs = codes.chunk(2)
            scores[site.name] += (theirs - mine).abs().sum(0)
            live[site.name] |= (codes > 0).any(0)

    steps = window.steps_on(model.family.sigmas(model.pipe.scheduler, spec))
    capture = Capture([parse_site(name) for name in saes], steps, receive)
    model.sample([own, donor], [seed, seed], capture, spec=spec, stop_after=max(steps))
    norms = {name: sae.decoder.weight.detach().float().norm(dim=0).cpu() for name, sae in saes.items()}
    return Differences({name: each * norms[name] for name, each in scores.items()}, live)


def natural_sizes(
    model: Model,
    prompt: Embedding,
    seed: int,
    spec: PictureSpec,
    site: str,
    sae: LinearSae,
    window: Window = WHOLE,
) -> Float32[Tensor, " f"]:
    """Each feature's mean code over the tokens and steps where it is active; 0 where it never is."""
    total, count = torch.zeros(sae.hidden_dim), torch.zeros(sae.hidden_dim)

    def receive(_: Site, step: int, x: Tensor) -> None:
        codes = encode_sparse(sae, x.to(sae.pre_bias.device)).to("cpu")
        total.index_add_(0, codes.feature.long(), codes.value)
        count.index_add_(0, codes.feature.long(), torch.ones_like(codes.value))

    steps = window.steps_on(model.family.sigmas(model.pipe.scheduler, spec))
    capture = Capture([parse_site(site)], steps, receive)
    model.sample([prompt], [seed], capture, spec=spec, stop_after=max(steps))
    return total / count.clamp_min(1)
