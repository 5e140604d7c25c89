"""The SAEs that ship with flux-shapes: `python -m fluxscope.shapes.saes`.

Pictures of random training captions are denoised up to the target step, and the activations of blocks 5
and 15 are kept at that step. One TopK SAE is trained for each block and one L1 SAE for block 15, evaluated
on pictures that were not trained on, and written to shapes/weights/. About 20 minutes on one core.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32

from fluxscope.config import Config
from fluxscope.embedded import FLUX_SHAPES, WEIGHTS
from fluxscope.files import save_npy, write_json
from fluxscope.models.flux import encode_prompts, load_denoiser
from fluxscope.models.listen import listen
from fluxscope.models.sample import PictureSpec
from fluxscope.models.sites import parse_site
from fluxscope.progress import Reporter
from fluxscope.sae.formats import save
from fluxscope.sae.metrics import evaluate
from fluxscope.sae.train import TrainConfig, train
from fluxscope.shapes.world import caption, sample_phrasing, sample_scene

LAYERS = (5, 15)
HELD_OUT_SHARE = 0.1
BATCH = 32


@dataclass(frozen=True)
class Bundled:
    """One SAE to make: its folder in shapes/weights/, its layer and how it is trained."""

    folder: str
    layer: int
    config: TrainConfig


BUNDLED = (
    Bundled("sae_layer05", 5, TrainConfig("topk", hidden_dim=768, k=16)),
    Bundled("sae_layer15", 15, TrainConfig("topk", hidden_dim=768, k=16)),
    Bundled("sae_layer15_l1", 15, TrainConfig("relu", hidden_dim=768, l1_coeff=0.15)),
)


def harvest(work: Path, pictures: int, seed: int = 0) -> dict[int, Float32[np.ndarray, "n d"]]:
    """Denoise pictures of random captions and keep the activations of both layers at the target step.

    Returns:
        by layer, float32 (pictures x tokens, d), as memory maps of files in `work` that are made once.
    """
    paths = {layer: work / f"activations_layer{layer:02d}_{pictures}.npy" for layer in LAYERS}
    if not all(path.is_file() for path in paths.values()):
        for layer, rows in _denoise_all(pictures, seed).items():
            save_npy(paths[layer], rows)
    return {layer: np.load(path, mmap_mode="r") for layer, path in paths.items()}


def _denoise_all(pictures: int, seed: int) -> dict[int, Float32[np.ndarray, "n d"]]:
    config = Config()
    device, dtype = torch.device("cpu"), torch.float32
    rng = np.random.default_rng(seed)
    prompts = [caption(sample_scene(rng, split="train"), sample_phrasing(rng)) for _ in range(pictures)]
    assert config.max_sequence_length is not None
    assert config.height is not None and config.width is not None
    embeddings, _ = encode_prompts(FLUX_SHAPES, prompts, config.max_sequence_length, device, dtype)
    pipe = load_denoiser(FLUX_SHAPES, device, dtype)
    spec = PictureSpec(config.height, config.width, config.num_inference_steps, config.guidance_scale)
    sites, step = [parse_site(config.site_of(layer)) for layer in LAYERS], config.target_step_index
    rows = [embeddings[prompt] for prompt in prompts]
    seeds = [1_000_000 + seed * pictures + i for i in range(pictures)]
    heard: dict[int, list[torch.Tensor]] = {layer: [] for layer in LAYERS}
    with Reporter().progress("pictures", pictures, "images") as advance:
        for _, activations in listen(pipe, rows, seeds, spec, sites, [step], BATCH):
            for site in sites:
                heard[site.layer].append(activations[site.name, step].flatten(0, 1))  # (b t) d
            advance(BATCH)
    return {layer: torch.cat(parts).numpy() for layer, parts in heard.items()}


def make(
    bundled: Bundled, training: TrainConfig, activations: Float32[np.ndarray, "n d"], out: Path
) -> dict[str, float]:
    """Train, evaluate and write one SAE; returns its scores on held-out pictures."""
    tokens = Config().n_image_tokens
    split = round(len(activations) * (1 - HELD_OUT_SHARE)) // tokens * tokens  # whole pictures
    sae, _ = train(np.asarray(activations[:split]), training, on_log=print)
    test = torch.from_numpy(np.asarray(activations[split:]))
    scores = evaluate(sae, test.split(4096)).scores()
    config = Config()
    save(
        out / bundled.folder / "sae_best.pt",
        sae,
        {
            "layer": bundled.layer,
            "timestep": config.target_step_number,
            "model_id": FLUX_SHAPES,
            "site": config.site_of(bundled.layer),
            "normalize_data": False,
            "trained_tokens": training.steps * training.batch_size,
            "explained_variance": float(scores.explained_variance),
            "l0": float(scores.l0),
        },
    )
    return {
        "explained_variance": float(scores.explained_variance),
        "l0": float(scores.l0),
        "dead": float(scores.dead),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("training/saes"), help="folder of the activations")
    parser.add_argument("--pictures", type=int, default=3200)
    parser.add_argument("--steps", type=int, default=4000, help="training steps of 2,048 tokens")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where the SAEs go")
    arguments = parser.parse_args()
    activations = harvest(arguments.work, arguments.pictures)
    results = {}
    for bundled in BUNDLED:
        config = replace(bundled.config, steps=arguments.steps)
        results[bundled.folder] = make(bundled, config, activations[bundled.layer], arguments.out)
        print(bundled.folder, results[bundled.folder])
    write_json(arguments.out / "saes.json", results)


if __name__ == "__main__":
    main()
