"""Does steering work on this model, with this SAE, at this site? Four findings that need no interpretation.

Whoever then sees no effect knows that the feature is weak, not the wiring.
"""

from __future__ import annotations

import numpy as np
import torch

from fluxscope.models.capture import Capture
from fluxscope.models.edits import Change, Edit, Row, Scope
from fluxscope.models.sites import Site
from fluxscope.models.steering import Steerer
from fluxscope.progress import Reporter
from fluxscope.run.context import open_model_of
from fluxscope.run.manifest import read_prompts
from fluxscope.run.rundir import RunDir
from fluxscope.run.steering import load_steerer, random_direction, scope_of
from fluxscope.sae import encode_sparse
from fluxscope.settings.config import Config

PUSH = 4.0
"""Norm of the random push, in mean norms of a token's activation."""

VISIBLE = 0.01
"""A mean change of the pixels by this share of their range is one that nobody overlooks."""


def self_check(config: Config, prompt: str, seed: int, report: Reporter) -> bool:
    """Run the check and say what was found; returns whether all is well."""
    files = RunDir.of(config)
    assert config.prompts_path is not None
    prompt = prompt or read_prompts(config.prompts_path)[0]
    steerer = load_steerer(config, open_model_of(config, report), files.site, [prompt])
    scope = scope_of(config, files.site)
    norm, feature = survey(steerer, prompt, seed, scope)
    report.say(f"{config.model_id}, {scope.site.name}, steps {scope.steps[0]}-{scope.steps[-1]}")
    report.say(f"mean norm of a token {norm:.3g}; most active feature {feature}")
    plain, _ = latents_of(steerer, prompt, seed, None, scope)
    nothing: Row = [Change("add", 0.0, feature)]
    if scope.site.name == files.site:
        nothing = [*nothing, Change("scale", 1.0, feature)]
    same, fired = latents_of(steerer, prompt, seed, nothing, scope)
    push = Change("add", PUSH * norm, direction=random_direction(steerer.sae.input_dim, seed))
    pushed, _ = latents_of(steerer, prompt, seed, [push], scope)
    pixels = [steerer.model.decode(latents, steerer.spec)[0].numpy() for latents in (plain, pushed)]
    moved = float(np.abs(pixels[0].astype(float) - pixels[1].astype(float)).mean() / 255)
    largest = float((plain.float() - same.float()).abs().max())
    often = sorted(set(fired.values()))
    findings = (
        ("the picture is finite", bool(torch.isfinite(plain).all()), ""),
        (
            "an edit that does nothing changes no bit",
            torch.equal(plain, same),
            f"largest change {largest:.3g}",
        ),
        (f"a random push of {PUSH:g} norms changes the picture", moved > VISIBLE, f"pixels by {moved:.1%}"),
        ("the hook fired once in every planned step", often == [1], f"{len(fired)} steps, {often} times"),
    )
    for what, well, detail in findings:
        report.say(f"  {'ok  ' if well else 'FAIL'} {what}{f' ({detail})' if detail else ''}")
    return all(well for _, well, _ in findings)


def survey(steerer: Steerer, prompt: str, seed: int, scope: Scope) -> tuple[float, int]:
    """The mean norm of a token at the site in the first steered step, and the most active feature there."""
    heard: list[tuple[float, int]] = []

    def receive(site: Site, step: int, x: torch.Tensor) -> None:
        codes = encode_sparse(steerer.sae, x.to(steerer.sae.pre_bias.device))
        total = torch.zeros(codes.n_features, device=codes.value.device)
        total.index_add_(0, codes.feature.long(), codes.value)
        heard.append((float(x.float().norm(dim=-1).mean()), int(total.argmax())))

    first = scope.steps[0]
    capture = Capture([scope.site], [first], receive)
    steerer.model.sample([steerer.prompts[prompt]], [seed], capture, spec=steerer.spec, stop_after=first)
    return heard[0]


def latents_of(
    steerer: Steerer, prompt: str, seed: int, row: Row | None, scope: Scope
) -> tuple[torch.Tensor, dict[tuple[str, int], int]]:
    """A picture's latents, and how often the hook fired in each step; without a row there is no hook."""
    edits = [] if row is None else [Edit(steerer.sae, [row], scope)]
    latents = steerer.model.sample([steerer.prompts[prompt]], [seed], *edits, spec=steerer.spec)
    return latents, edits[0].fired if edits else {}
