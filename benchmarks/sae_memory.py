"""Memory of a training step at FLUX.1's size, computed and measured.

    python benchmarks/sae_memory.py [--steps 3]

TopK, d = 3,072, f = 49,152, k = 64, batch 4,096. The limit is weights, gradients, optimiser, and 1.5 dense
codes (batch x f x 4 bytes) for all else. Measured as the growth of the process's peak, in a process of its
own, with an eighth of the latents dead in the last step. Takes a minute a step on one core.
"""

from __future__ import annotations

import argparse
import resource
import time

import torch

D, F, K, BATCH = 3072, 49152, 64, 4096
GIB = 2**30


def peak() -> int:
    """Largest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--precision", default="rescored")
    arguments = parser.parse_args()
    from fluxscope.sae.normalisation import Normalisation
    from fluxscope.sae.topk import TopK
    from fluxscope.sae.train import TrainConfig, Trainer

    batch = torch.randn(BATCH, D)
    batch @ batch[:8].T  # the libraries' own memory counts before the start
    before = peak()
    config = TrainConfig(
        TopK(K, precision=arguments.precision), hidden_dim=F, batch_size=BATCH, log_every=10**9
    )
    trainer = Trainer(config, Normalisation(torch.zeros(D), 1.0))
    weights = sum(parameter.numel() * 4 for parameter in trainer.sae.parameters())
    for step in range(arguments.steps):
        if step == arguments.steps - 1:
            trainer.silent_tokens[: F // 8] = config.dead_after()
        begin = time.perf_counter()
        trainer.step(batch)
        took = time.perf_counter() - begin
        print(f"step {step + 1}: {took:.1f} s, {(peak() - before) / GIB:.2f} GiB", flush=True)
    dense = BATCH * F * 4
    limit = 4 * weights + 1.5 * dense
    used = peak() - before
    print(f"weights {weights / GIB:.2f} GiB, gradients {weights / GIB:.2f}, Adam {2 * weights / GIB:.2f}")
    print(f"one dense code {dense / GIB:.2f} GiB; limit {limit / GIB:.2f}, used {used / GIB:.2f} GiB")
    print(f"beside weights, gradients and Adam: {(used - 4 * weights) / dense:.2f} dense codes (1.5 allowed)")


if __name__ == "__main__":
    main()
