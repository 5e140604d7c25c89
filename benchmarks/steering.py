"""A grid of seven strengths from step 8 of 20, against seven plain runs: calls, time, and equal pictures.

    python benchmarks/steering.py

Both make the same pictures on flux-shapes: the plain way runs the whole pipeline once for each strength;
ours denoises the first eight steps once and goes on with one batch of seven rows.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from fluxscope.models.edits import Change, Edit
from fluxscope.models.model import open_model
from fluxscope.models.steering import Steerer
from fluxscope.run.steering import load_steerer, scope_of
from fluxscope.settings.config import make_config

PROMPT = "a large red circle on a white background"
STRENGTHS = (-300.0, -200.0, -100.0, 100.0, 200.0, 300.0)
ROUNDS = 3


def main() -> None:
    config = make_config(steer_steps="8-12", active_layer=15)
    model = open_model(config.model_id, config.device, config.dtype)
    steerer = load_steerer(config, model, config.site, [PROMPT])
    rows = [[Change("add", s, 3)] for s in STRENGTHS]
    scope = scope_of(config, config.site)
    calls: list[int] = []
    model.transformer.register_forward_hook(lambda m, a, output: calls.append(len(output[0])))

    def plain() -> torch.Tensor:
        pictures = []
        for row in [(), *rows]:
            edit = Edit(steerer.sae, [row], scope)
            latents = model.sample([steerer.prompts[PROMPT]], [1], edit, spec=steerer.spec)
            pictures.append(model.decode(latents, steerer.spec))
        return torch.cat(pictures)

    def shared(exact: bool = False) -> torch.Tensor:
        fresh = Steerer(model, steerer.sae, steerer.spec, steerer.prompts, exact=exact)
        made = fresh.steer(PROMPT, 1, rows, scope)
        return torch.cat([made.baselines[:1], made.pictures])

    def timed(make: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, float, list[int]]:
        calls.clear()
        began = time.perf_counter()
        pictures = make()
        return pictures, time.perf_counter() - began, list(calls)

    for make in (plain, shared):
        make()  # the first of its kind is slower
    ratios = []
    for _ in range(ROUNDS):
        theirs, slow, slow_calls = timed(plain)
        ours, fast, fast_calls = timed(shared)
        ratios.append(slow / fast)
    exact = shared(exact=True)
    print(f"plain:  {len(slow_calls)} calls of the transformer on {sum(slow_calls)} rows, {slow:.2f} s")
    print(f"shared: {len(fast_calls)} calls on {sum(fast_calls)} rows, {fast:.2f} s")
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"time saved: {statistics.median(ratios):.2f} x (median of {ROUNDS}; {spread})")
    print(f"largest difference of a pixel: {(ours.int() - theirs.int()).abs().max()} of 255")
    print(f"with exact: true, equal bits: {torch.equal(exact, theirs)}")
    print(f"pixels that steering changed: {((theirs[1:] != theirs[:1]).any(-1)).float().mean():.0%}")


if __name__ == "__main__":
    main()
