"""How faithful flux-shapes is to its captions, read back by the oracle.

    python benchmarks/shapes_fidelity.py                    # 500 captions a row, as the model card
    python benchmarks/shapes_fidelity.py --n 64 --rows test,held-out

Rows: captions not trained on ("test"), captions of training scenes ("train"), captions with a (shape,
colour) pair that no training picture holds ("held-out"), each at --guidance, and "plain": test captions
at guidance 1. Picture i has seed i. Shares are of pictures, but shape, colour and size of objects; their
95% intervals are Wilson's, over pictures or objects.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxPipeline
from PIL import Image

from fluxscope.shapes import FLUX_SHAPES, oracle, world

ROWS = ("test", "train", "held-out", "plain")
COLUMNS = ("all right", "background", "count", "shape", "color", "size", "relation")
_TRAINING_DATA_SEED = 5  # of the recipe's latents: the scenes that the transformer met


def scenes(row: str, n: int) -> list[world.Scene]:
    """The scenes of a row, always the same ones."""
    if row == "train":
        rngs = (np.random.default_rng((_TRAINING_DATA_SEED, i)) for i in range(n))
        return [world.sample_scene(rng, split="train") for rng in rngs]
    rng = np.random.default_rng(2026)
    held_out = row == "held-out"
    return [world.sample_scene(rng, held_out=held_out, split="test") for _ in range(n)]


def pictures(
    pipeline: FluxPipeline, texts: list[str], guidance: float, steps: int, batch: int
) -> Iterator[np.ndarray]:
    """One picture of each text; number i with seed i."""
    for start in range(0, len(texts), batch):
        part = texts[start : start + batch]
        made = pipeline(
            part,
            height=world.RESOLUTION,
            width=world.RESOLUTION,
            guidance_scale=guidance,
            num_inference_steps=steps,
            max_sequence_length=20,
            generator=[torch.Generator("cpu").manual_seed(start + i) for i in range(len(part))],
        )
        yield from (np.asarray(image) for image in made.images)


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share of n trials (Wilson, 1927)."""
    if n == 0:
        return 0.0, 1.0
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def summarise(judged: list[oracle.Judgement], wanted: list[world.Scene]) -> dict[str, tuple[float, int]]:
    """Each column's share, and the number of pictures or objects it is over."""
    counts = [len(scene.objects) for scene in wanted]
    placed = [j.relation for j in judged if j.relation is not None]
    table = {
        "all right": (float(np.mean([j.all_right for j in judged])), len(judged)),
        "background": (float(np.mean([j.background for j in judged])), len(judged)),
        "count": (float(np.mean([j.count for j in judged])), len(judged)),
        "relation": (float(np.mean(placed)) if placed else 1.0, len(placed)),
    }
    for key in ("shape", "color", "size"):
        right = sum(getattr(j, key) * n for j, n in zip(judged, counts, strict=True))
        table[key] = (right / sum(counts), sum(counts))
    return table


def print_row(name: str, table: dict[str, tuple[float, int]], iou: float, seconds: float) -> None:
    cells = []
    for column in COLUMNS:
        share, n = table[column]
        low, high = wilson(share, n)
        cells.append(f"{share:6.1%} [{low:4.0%},{high:5.0%}]")
    print(f"{name:16}" + "  ".join(cells) + f"  {iou:.3f}  {seconds:5.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how faithful flux-shapes is to its captions.")
    parser.add_argument("--n", type=int, default=500, help="captions in each row")
    parser.add_argument("--guidance", type=float, default=3.5)
    parser.add_argument("--denoise-steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--rows", default=",".join(ROWS), help=f"some of {', '.join(ROWS)}")
    parser.add_argument("--model", type=Path, default=FLUX_SHAPES)
    parser.add_argument("--sheet", type=Path, help="where to keep the first 32 pictures of the last row")
    chosen = parser.parse_args()
    if unknown := set(chosen.rows.split(",")) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    steps = chosen.denoise_steps
    started = time.perf_counter()
    pipeline = FluxPipeline.from_pretrained(chosen.model, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    print(f"loaded in {time.perf_counter() - started:.1f} s; {chosen.n} captions a row, {steps} steps")
    print(f"{'captions':16}" + "  ".join(f"{c:>20}" for c in COLUMNS) + "    IoU     time")
    for row in chosen.rows.split(","):
        wanted = scenes(row, chosen.n)
        guidance = 1.0 if row == "plain" else chosen.guidance
        started = time.perf_counter()
        texts = [world.caption(scene) for scene in wanted]
        images = list(pictures(pipeline, texts, guidance, steps, chosen.batch))
        seconds = time.perf_counter() - started
        judged = [oracle.judge(scene, image) for scene, image in zip(wanted, images, strict=True)]
        iou = float(np.mean([j.iou for j in judged]))
        print_row(f"{row}, g {guidance:g}", summarise(judged, wanted), iou, seconds)
    if chosen.sheet:
        from recipes.flux_shapes.preview import sheet

        Image.Image.save(sheet(np.stack(images[:32])), chosen.sheet)


if __name__ == "__main__":
    main()
