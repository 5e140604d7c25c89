"""How well the oracle reads renders, and what the autoencoder's round trip leaves to read.

    python benchmarks/shapes_oracle.py            # 2,000 renders, as the model card

A fifth of the renders hold a (shape, colour) pair that nothing was trained on. Shares are of objects;
"mask IoU" is the mean overlap of the masks read with the true ones, "ideal IoU" that of the objects read
with their ideal shapes (how crisp edges are). Intervals are Wilson's, at 95%.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from fluxscope.shapes import FLUX_SHAPES, oracle, world
from recipes.flux_shapes.autoencoder import round_trip
from shapes_fidelity import wilson

_SEED = 77


def renders(n: int) -> tuple[list[world.Scene], list[world.Rendering]]:
    """Scenes that nothing was trained on, and their pictures."""
    rng = np.random.default_rng(_SEED)
    scenes = [world.sample_scene(rng, held_out=i % 5 == 0, split="test") for i in range(n)]
    return scenes, [world.render(scene) for scene in scenes]


def print_row(name: str, scenes: list[world.Scene], drawn: list[world.Rendering], images: np.ndarray) -> None:
    """Judge the pictures, and compare the masks read with the true ones."""
    judged, overlaps = [], []
    for scene, truth, image in zip(scenes, drawn, images, strict=True):
        judged.append(oracle.judge(scene, image))
        seen = [o.mask for o in oracle.read(image).objects]
        overlaps += [max(((m & s).sum() / (m | s).sum() for s in seen), default=0.0) for m in truth.masks]
    counts = np.array([len(scene.objects) for scene in scenes])
    total, cells = int(counts.sum()), []
    for key in ("color", "shape", "size"):
        share = float(counts @ np.array([getattr(j, key) for j in judged])) / total
        low, high = wilson(share, total)
        cells.append(f"{key} {share:.2%} [{low:.1%}, {high:.1%}]")
    ideal = np.mean([j.iou for j in judged])
    print(f"{name:12}" + "  ".join(cells) + f"  mask IoU {np.mean(overlaps):.4f}  ideal IoU {ideal:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the oracle on renders and on round trips.")
    parser.add_argument("--n", type=int, default=2000, help="renders")
    parser.add_argument("--model", type=Path, default=FLUX_SHAPES)
    chosen = parser.parse_args()
    scenes, drawn = renders(chosen.n)
    images = np.stack([d.image for d in drawn])
    print_row("renders", scenes, drawn, images)
    vae = AutoencoderKL.from_pretrained(chosen.model / "vae", torch_dtype=torch.float32)
    print_row("round trip", scenes, drawn, round_trip(vae, images))


if __name__ == "__main__":
    main()
