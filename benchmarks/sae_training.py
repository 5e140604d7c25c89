"""Vectors a second of SAE training: ours in each precision against other libraries, in one run.

    sh benchmarks/sae_libraries.sh                       (once)
    python benchmarks/sae_training.py [--libraries .sae-libraries] [--aux] [--activations FILE.npy]

TopK, equal data, order, start, loss (squared error, AuxK at 1/32), clip at norm 1, Adam and learning rate;
one thread. Each library as shipped and with Adam fused ("best"). Contestants take turns, step by step, so
that whatever else the machine does strikes them alike; the median step counts. With --aux, 10% of the
latents start with a bias of -3, where they never are among the k largest, and count as dead at every step.
Explained variance is that of the last batches, at equal tokens.

dictionary_learning sums its squared error over dimensions where the others take the mean, so that clipping at
norm 1 shortens its gradients d times sooner. "ours, clipped as dictionary_learning" does so at norm 1 / d: it
is there to be compared with it in explained variance.

`floor` is the encoder's product in bf16, the four gathers and fused Adam, each measured alone: what no
step in PyTorch can beat. overcomplete has no AuxK and sits out with --aux; its TopKSAE gets a linear encoder
(by default there is a batch norm after it) and runs in its own `train_sae`.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
AUX, LR, DEAD_SHARE = 1 / 32, 3e-4, 0.1
Step = Callable[[torch.Tensor], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--libraries", type=Path, default=ROOT / ".sae-libraries")
    parser.add_argument("--activations", type=Path, help="(n, d) array; by default synthetic ones")
    parser.add_argument("--aux", action="store_true", help="AuxK on, 10%% of the latents dead")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--f", type=int, default=6144)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--inside", action="store_true", help="(already in the libraries' environment)")
    arguments = parser.parse_args()
    if arguments.inside:
        compete(arguments)
        return
    python = arguments.libraries / "bin" / "python"
    if not python.is_file():
        sys.exit(f"{python} is not there\nMake it with: sh benchmarks/sae_libraries.sh {arguments.libraries}")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    subprocess.run([python, __file__, "--inside", *sys.argv[1:]], env=environment, check=True)


def compete(arguments: Any) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    batches = make_batches(arguments)
    d = batches[0].shape[1]
    shape = (d, arguments.f, arguments.k)
    contestants = {
        name: make(*shape, arguments.aux)
        for name, make in CONTESTANTS.items()
        if not (arguments.aux and name.startswith("overcomplete"))
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    errors: dict[str, list[float]] = {name: [] for name in contestants}
    for batch in batches:
        for name, step in contestants.items():
            begin = time.perf_counter()
            error = step(batch)
            seconds[name].append(time.perf_counter() - begin)
            errors[name].append(error / float((batch - batch.mean(0)).square().sum()))
    floor = measure_floor(*shape, batches[0])
    print(f"d {d}, f {arguments.f}, k {arguments.k}, batch {len(batches[0])}, {len(batches)} steps, ", end="")
    print(f"AuxK {'on, 10% dead' if arguments.aux else 'off'}, torch {torch.__version__}, one thread")
    print(f"{'':38}{'ms a step':>10}{'vectors/s':>11}{'x floor':>9}{'explained':>11}")
    rows = {name: statistics.median(times[2:]) for name, times in seconds.items()} | {"floor": floor}
    for name, took in sorted(rows.items(), key=lambda row: row[1]):
        explained = 1 - statistics.mean(errors[name][-5:]) if name in errors else float("nan")
        rate = len(batches[0]) / took
        print(f"{name:38}{took * 1e3:10.1f}{rate:11,.0f}{took / floor:9.2f}{explained:11.4f}")
    ours = rows["ours, rescored"]
    for kind in ("as shipped", "best"):
        fastest = min(took for name, took in rows.items() if name.endswith(kind))
        print(f"rescored against the fastest {kind}: {fastest / ours:.2f} times as fast")


def make_batches(arguments: Any) -> list[torch.Tensor]:
    """Batches of mean zero and mean squared norm d; synthetic ones are sparse sums of 4,000 directions."""
    n = arguments.steps * arguments.batch
    if arguments.activations:
        import numpy as np

        rows = torch.from_numpy(np.array(np.load(arguments.activations, mmap_mode="r")[:n])).float()
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    else:
        directions = torch.nn.functional.normalize(torch.randn(4000, arguments.d), dim=1)
        parts = []
        for _ in range(arguments.steps):
            chosen = torch.randint(0, 4000, (arguments.batch, 40))
            parts.append((directions[chosen] * (0.2 + 2 * torch.rand(arguments.batch, 40, 1))).sum(1))
        rows = torch.cat(parts)
    rows = rows - rows.mean(0)
    rows *= (rows.shape[1] / rows.square().sum(1).mean()).sqrt()
    return [part for part in rows.split(arguments.batch) if len(part) == arguments.batch]


def start(d: int, f: int) -> torch.Tensor:
    """Everyone's first decoder, (f, d); the encoder starts as its transpose."""
    return torch.nn.functional.normalize(torch.randn(f, d, generator=torch.Generator().manual_seed(1)), dim=1)


def start_bias(f: int, aux: bool) -> torch.Tensor:
    """Everyone's first encoder bias: zero, but for latents that are to be dead."""
    bias = torch.zeros(f)
    bias[: int(f * DEAD_SHARE)] = -3.0 * aux
    return bias


def ours(precision: str, clip_sum: bool = False) -> Callable[..., Step]:
    def make(d: int, f: int, k: int, aux: bool) -> Step:
        from fluxscope.sae.normalisation import Normalisation
        from fluxscope.sae.topk import TopK
        from fluxscope.sae.train import TrainConfig, Trainer

        config = TrainConfig(
            TopK(k, precision=precision), hidden_dim=f, lr=LR, warmup_steps=0, decay_share=0.0,
            dead_after_tokens=10_000_000, log_every=10**9, steps=10**8, clip_norm=1 / d if clip_sum else 1.0,
        )  # fmt: skip
        trainer = Trainer(config, Normalisation(torch.zeros(d), 1.0))
        with torch.no_grad():
            trainer.sae.decoder.weight.copy_(start(d, f).T)
            trainer.sae.encoder.weight.copy_(start(d, f))
            trainer.sae.encoder.bias.copy_(start_bias(f, aux))

        def step(x: torch.Tensor) -> float:
            if aux:
                trainer.silent_tokens[: int(f * DEAD_SHARE)] = 10_000_000
            trainer.step(x)
            assert trainer.residual is not None
            return float(trainer.residual.square().sum())

        return step

    return make


def dictionary_learning(fused: bool) -> Callable[..., Step]:
    def make(d: int, f: int, k: int, aux: bool) -> Step:
        from dictionary_learning.trainers.top_k import TopKTrainer

        trainer = TopKTrainer(
            10**8, d, f, k, 0, "none", lr=LR, auxk_alpha=AUX, warmup_steps=0, seed=0, device="cpu"
        )
        trainer.ae.decoder.weight.data = start(d, f).T.contiguous()
        trainer.ae.encoder.weight.data = start(d, f)
        trainer.ae.encoder.bias.data = start_bias(f, aux)
        if fused:
            trainer.optimizer = torch.optim.Adam(trainer.ae.parameters(), lr=LR, fused=True)
            constant = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, lambda step: 1.0)
            trainer.scheduler = constant
        kept: dict[str, torch.Tensor] = {}
        decode = trainer.ae.decode

        def remembering(code: torch.Tensor) -> torch.Tensor:
            kept["output"] = decode(code)
            return kept["output"]

        trainer.ae.decode = remembering

        def step(x: torch.Tensor) -> float:
            if aux:
                trainer.num_tokens_since_fired[: int(f * DEAD_SHARE)] = 10_000_000
            trainer.update(1, x)
            return float((x - kept["output"].detach()).square().sum())

        return step

    return make


def sparsify(fused: bool) -> Callable[..., Step]:
    """Its SparseCoder with the loop of its trainer; the optimiser it names "adam"."""

    def make(d: int, f: int, k: int, aux: bool) -> Step:
        from sparsify import SparseCoder, SparseCoderConfig

        sae = SparseCoder(d, SparseCoderConfig(num_latents=f, k=k))
        sae.encoder.weight.data = start(d, f)
        sae.encoder.bias.data = start_bias(f, aux)
        sae.W_dec.data = start(d, f)
        optimiser = torch.optim.Adam(sae.parameters(), lr=LR, **({"fused": True} if fused else {}))
        dead = torch.zeros(f, dtype=torch.bool)
        dead[: int(f * DEAD_SHARE)] = aux

        def step(x: torch.Tensor) -> float:
            out = sae(x, dead_mask=dead if aux else None)
            (out.fvu + AUX * out.auxk_loss).backward()
            torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
            sae.remove_gradient_parallel_to_decoder_directions()
            optimiser.step()
            optimiser.zero_grad()
            sae.set_decoder_norm_to_unit_norm()
            return float(out.fvu.detach()) * float((x - x.mean(0)).square().sum())

        return step

    return make


def overcomplete(fused: bool) -> Callable[..., Step]:
    """Its TopKSAE in its own loop, unmonitored. No AuxK."""

    def make(d: int, f: int, k: int, aux: bool) -> Step:
        import_overcomplete()
        from overcomplete.sae import TopKSAE, train_sae

        encoder = LinearEncoder(start(d, f))
        sae = TopKSAE(d, f, top_k=k, encoder_module=encoder, dictionary_params={"initializer": start(d, f)})
        optimiser = torch.optim.Adam(sae.parameters(), lr=LR, **({"fused": True} if fused else {}))
        error: list[torch.Tensor] = []

        def loss(x: torch.Tensor, output: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
            residual = (x - output).square()
            error[:] = [residual.detach()]
            return residual.mean()

        def step(x: torch.Tensor) -> float:
            train_sae(sae, [x], loss, optimiser, nb_epochs=1, monitoring=0)
            return float(error[0].sum())

        return step

    return make


class LinearEncoder(torch.nn.Linear):
    """The encoder that everybody else has, as overcomplete wants it: (pre-codes, codes)."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            self.weight.copy_(weight)
            self.bias.zero_()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pre = super().forward(x)
        return pre, torch.relu(pre)


def import_overcomplete() -> None:
    """Let its parts be imported one by one: the whole wants torchvision and timm, its SAEs neither."""
    if "overcomplete" in sys.modules:
        return
    where = importlib.util.find_spec("overcomplete")
    assert where is not None and where.submodule_search_locations is not None
    package = types.ModuleType("overcomplete")
    package.__path__ = list(where.submodule_search_locations)
    sys.modules["overcomplete"] = package


def autograd(fused: bool) -> Callable[..., Step]:
    """What one writes first: dense codes, autograd, AuxK by scattering into a dense code."""

    def make(d: int, f: int, k: int, aux: bool) -> Step:
        from fluxscope.sae import TopKSparseAutoencoder

        sae = TopKSparseAutoencoder(d, f, k)
        with torch.no_grad():
            sae.decoder.weight.copy_(start(d, f).T)
            sae.encoder.weight.copy_(start(d, f))
            sae.encoder.bias.copy_(start_bias(f, aux))
        optimiser = torch.optim.Adam(sae.parameters(), lr=LR, **({"fused": True} if fused else {}))
        dead = torch.zeros(f, dtype=torch.bool)
        dead[: int(f * DEAD_SHARE)] = aux

        def step(x: torch.Tensor) -> float:
            optimiser.zero_grad()
            pre = torch.relu(sae.pre_activations(x))
            residual = x - sae.decode(scatter(pre, k))
            loss = residual.square().mean()
            if aux:
                target = residual.detach()
                guess = sae.decoder(scatter(torch.where(dead, pre, 0.0), min(d // 2, int(dead.sum()))))
                loss = (
                    loss + AUX * (target - guess).square().mean() / (target - target.mean(0)).square().mean()
                )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
            optimiser.step()
            sae.normalize_decoder()
            return float(residual.detach().square().sum())

        return step

    return make


def scatter(pre: torch.Tensor, k: int) -> torch.Tensor:
    value, place = pre.topk(k, dim=1, sorted=False)
    return torch.zeros_like(pre).scatter(1, place, value)


CONTESTANTS = {
    "ours, exact": ours("exact"),
    "ours, rescored": ours("rescored"),
    "ours, bf16": ours("bf16"),
    "ours, clipped as dictionary_learning": ours("exact", clip_sum=True),
    "dictionary_learning, as shipped": dictionary_learning(False),
    "dictionary_learning, best": dictionary_learning(True),
    "sparsify + Adam, as shipped": sparsify(False),
    "sparsify + Adam, best": sparsify(True),
    "overcomplete, as shipped": overcomplete(False),
    "overcomplete, best": overcomplete(True),
    "plain autograd, as shipped": autograd(False),
    "plain autograd, best": autograd(True),
}


@torch.no_grad()
def measure_floor(d: int, f: int, k: int, x: torch.Tensor) -> float:
    """Seconds of the parts that no TopK step can do without, each at its fastest."""
    from fluxscope.sae.kernels import ByFeature, gather_dot, weighted_rows

    b, table = len(x), start(d, f)
    low_x, low_table = x.bfloat16(), table.bfloat16()
    product = torch.empty(b, f, dtype=torch.bfloat16)
    feature = torch.randint(0, f, (b * k,))
    weight, row = torch.rand(b * k), torch.arange(b).repeat_interleave(k)
    offsets = torch.arange(0, b * k + 1, k)
    sort, out = ByFeature.sort(feature, f), torch.empty(f, d)
    parameters = [torch.nn.Parameter(torch.zeros(f, d)) for _ in range(2)]
    for parameter in parameters:
        parameter.grad = torch.ones(f, d)
    adam = torch.optim.Adam(parameters, fused=True)
    return sum(
        fastest(part)
        for part in (
            lambda: torch.mm(low_x, low_table.T, out=product),
            lambda: weighted_rows(table, feature, weight, offsets),
            lambda: gather_dot(x, table, feature, offsets),
            lambda: sort.product(weight, row, x, out),
            lambda: sort.product(weight, row, x, out),
            adam.step,
        )
    )


def fastest(part: Callable[[], Any], times: int = 7) -> float:
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        part()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


if __name__ == "__main__":
    main()
