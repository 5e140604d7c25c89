"""FLUX.1-dev's shape on this machine: how much memory a batch takes, and what capture and encoding cost.

Builds the transformer at its true width (3,072, 24 heads of 128) with as many double blocks as memory
allows (16 of 19 at most, 8 when that does not fit), random bfloat16 weights, no text encoders, and denoises
two steps on random embeddings through the same `Model.sample` and `Capture` as step 1, with a TopK SAE of
12,288 features on block 5 and, where it is built, block 15. Prints memory and the shares of time.

    python benchmarks/flux_dev_shape.py [--blocks 16] [--size 256]
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

from fluxscope.models.capture import Capture
from fluxscope.models.model import Model
from fluxscope.models.sites import Site, parse_site
from fluxscope.models.spec import Embedding, PictureSpec
from fluxscope.sae import TopKSparseAutoencoder
from fluxscope.sae.base import encode_sparse

GIB = 2**30
WIDTH, FEATURES, K = 3072, 12288, 64
STEPS = 2


def build(blocks: int, device: torch.device) -> FluxPipeline:
    """A pipeline of FLUX.1-dev's width; its random bfloat16 weights are a million numbers, repeated."""
    config = {
        "num_layers": blocks,
        "num_single_layers": 0,
        "num_attention_heads": 24,
        "attention_head_dim": 128,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": True,
    }
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(**config).to(torch.bfloat16)
    transformer.to_empty(device=device)
    drawn = torch.randn(1_000_003, device=device).mul_(0.02).bfloat16()
    with torch.no_grad():
        for parameter in transformer.parameters():
            repeats = -(-parameter.numel() // len(drawn))
            parameter.copy_(drawn.repeat(repeats)[: parameter.numel()].view_as(parameter))
            if parameter.ndim == 1:
                parameter.add_(1)
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 32, 32),
        latent_channels=16,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    pipe = FluxPipeline(scheduler, vae, None, None, None, None, transformer.eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def blocks_that_fit(wanted: int, device: torch.device) -> int:
    per_block = 36 * WIDTH**2 * 2
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    return wanted if wanted * per_block + 5 * GIB < free else wanted // 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--size", type=int, default=256, help="pixels along a side")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    blocks = blocks_that_fit(arguments.blocks, device)
    pipe = build(blocks, device)
    model = Model.around(pipe)
    sites = [parse_site(f"double.{layer}.ff") for layer in (5, 15) if layer < blocks]
    saes = {site.name: TopKSparseAutoencoder(WIDTH, FEATURES, K).to(device).eval() for site in sites}
    spec = PictureSpec(arguments.size, arguments.size, STEPS, 3.5)
    rows = [Embedding(torch.randn(512, 4096), torch.randn(768))]
    encoding = 0.0

    def receive(site: Site, step: int, x: torch.Tensor) -> None:
        nonlocal encoding
        began = time.perf_counter()
        codes = encode_sparse(saes[site.name], x)
        assert codes.n_tokens == (arguments.size // 16) ** 2
        encoding += time.perf_counter() - began

    one_step = PictureSpec(arguments.size, arguments.size, 1, 3.5)
    model.sample(rows, [0], spec=one_step)  # first touch of the weights
    began = time.perf_counter()
    bare = model.sample(rows, [0], spec=spec)
    bare_seconds = time.perf_counter() - began
    began = time.perf_counter()
    captured = model.sample(rows, [0], Capture(sites, [STEPS - 1], receive), spec=spec)
    seconds = time.perf_counter() - began
    assert torch.equal(bare, captured), "capturing must not change the pictures"

    weights = sum(p.numel() * p.element_size() for p in pipe.transformer.parameters())
    peak = (
        torch.cuda.max_memory_allocated()
        if device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    print(
        f"{blocks} double blocks of width {WIDTH} on {device}, "
        f"{arguments.size} x {arguments.size} pixels, {STEPS} steps"
    )
    print(f"transformer weights  {weights / GIB:.1f} GiB, peak memory {peak / GIB:.1f} GiB")
    print(f"a step               {bare_seconds / STEPS:.2f} s")
    print(
        f"SAE encoding         {encoding / len(sites):.3f} s a site ({len(sites)} sites, {FEATURES} features)"
    )
    per_run = encoding / (20 * bare_seconds / STEPS)
    print(f"share of these {STEPS} steps {encoding / seconds:.1%}; of a run of 20 steps {per_run:.2%}")
    print(f"with capture / bare  {seconds / bare_seconds:.3f}")


if __name__ == "__main__":
    main()
