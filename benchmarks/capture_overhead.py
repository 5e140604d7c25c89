"""What does capturing cost? Generating with capture and SAE encoding against a bare FluxPipeline call.

Both make the same pictures from the same embeddings and seeds in the same batch; rounds alternate, so that
whatever else the machine does falls on both. Prints the ratio of the medians; the claim is 1.05 at most.

    python benchmarks/capture_overhead.py [--batch 16] [--rounds 5] [--layers 5 15]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from fluxscope.models.capture import Capture
from fluxscope.models.model import open_model
from fluxscope.models.sites import Site, parse_site
from fluxscope.run.context import picture_spec
from fluxscope.run.manifest import read_prompts
from fluxscope.sae.base import encode_sparse
from fluxscope.sae.codes import SparseCodes
from fluxscope.sae.formats import load
from fluxscope.settings.config import make_config


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, nargs="+", default=[15, 5])
    arguments = parser.parse_args()

    config = make_config()
    model = open_model(config.model_id, "cpu", "float32")
    prompts = read_prompts(config.prompts_path)[: arguments.batch]
    embedded = model.encode(prompts, config.max_sequence_length)
    rows, seeds = [embedded[prompt] for prompt in prompts], list(range(len(prompts)))
    pipe, spec = model.pipe, picture_spec(config)
    sites = [parse_site(config.numbered_site(layer)) for layer in arguments.layers]
    saes = {site.name: load(config.sae_paths[site.name])[0] for site in sites}

    def bare() -> torch.Tensor:
        return pipe(
            prompt_embeds=torch.stack([row.tokens for row in rows]),
            pooled_prompt_embeds=torch.stack([row.pooled for row in rows]),
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            height=spec.height,
            width=spec.width,
            num_inference_steps=spec.steps,
            guidance_scale=spec.guidance,
            output_type="latent",
        ).images

    def captured() -> torch.Tensor:
        codes: dict[str, SparseCodes] = {}

        def receive(site: Site, step: int, x: torch.Tensor) -> None:
            codes[site.name] = encode_sparse(saes[site.name], x, config.token_chunk_size)

        return model.sample(rows, seeds, Capture(sites, [config.target_step_index], receive), spec=spec)

    assert torch.equal(bare(), captured()), "capturing must not change the pictures"
    times: dict[str, list[float]] = {"bare": [], "captured": []}
    for _ in range(arguments.rounds):
        for name, generate in (("bare", bare), ("captured", captured)):
            began = time.perf_counter()
            generate()
            times[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in times.items()}
    threads = torch.get_num_threads()
    print(f"{len(rows)} pictures, {spec.steps} steps, layers {arguments.layers}, {threads} threads")
    for name, seconds in medians.items():
        print(f"{name:<9} {seconds:.3f} s  ({min(times[name]):.3f} to {max(times[name]):.3f})")
    print(f"ratio     {medians['captured'] / medians['bare']:.3f}  (claim: at most 1.05)")


if __name__ == "__main__":
    main()
