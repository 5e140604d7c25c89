"""Steps 2 and 4 on a large synthetic S: against a plain loop over features, and streamed from the disk.

    python benchmarks/analysis.py               20,000 x 12,288: same results, ratio, peak memory
    python benchmarks/analysis.py --streamed    50,000 x 49,152 (9.8 GB on disk): peak memory

Each side runs in a process of its own, so that its peak memory is its own. S has half of its features dead
and 3% of its entries active. The plain loop holds S in memory; ours reads it from the disk through a map.
The plain loop draws random image sets for each feature's z-score; where ours has the exact moments of all
such sets, its z can only agree within the draws' error. So the ratio is printed without that part, too.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from fluxscope.measures.selection import score_features, select_features
from fluxscope.measures.stats import feature_stats
from fluxscope.measures.top_images import rank_images

EPS, TOP, MIN_PROMPTS, EMBED = 1e-4, 20, 6, 512
DRAWS = 100  # random sets that the plain loop draws for each feature
SIZES = {"plain": (20_000, 12_288), "streamed": (50_000, 49_152)}
LIMIT = 2 << 30  # bytes: the peak memory that both must stay below
NEEDED = 20.0  # times faster than the plain loop


def make_inputs(folder: Path, n: int, f: int) -> None:
    """Write S.npy by blocks of rows, and unit embeddings that cluster by prompt."""
    rng = np.random.default_rng(0)
    S = np.lib.format.open_memmap(folder / "S.npy", "w+", np.float32, (n, f))
    alive = np.flatnonzero(rng.permutation(f) < f // 2)
    for start in range(0, n, 500):
        rows = np.zeros((min(500, n - start), f), np.float32)
        active = rng.random((len(rows), len(alive)), dtype=np.float32) < 0.06
        rows[:, alive] = active * rng.exponential(1, active.shape).astype(np.float32)
        S[start : start + len(rows)] = rows
    S.flush()
    e = np.repeat(rng.standard_normal(((n + 1) // 2, EMBED)) + 0.5, 2, axis=0)[:n]
    e += 0.5 * rng.standard_normal(e.shape)
    np.save(folder / "embeddings.npy", (e / np.linalg.norm(e, axis=1, keepdims=True)).astype(np.float32))


def ours(folder: Path) -> dict[str, np.ndarray]:
    S = np.load(folder / "S.npy", mmap_mode="r")
    embeddings, prompts = np.load(folder / "embeddings.npy"), np.arange(len(S)) // 2
    stats = feature_stats(S, EPS, TOP)
    scores = score_features(rank_images(S, prompts, EPS, TOP), embeddings, prompts, MIN_PROMPTS)
    scores = replace(scores, chosen_score=scores.clip_coherence)
    chosen = select_features(scores, scores.ranked, np.arange(len(S)))
    return {
        "frequency": stats.frequency,
        "mean": stats.mean,
        "std": stats.std,
        "maximum": stats.maximum,
        "top_idx": stats.top_idx,
        "coherence": scores.clip_coherence,
        "z": scores.coherence_z,
        "coverage": scores.coverage,
        "chosen": np.array([r.feature_id for r in chosen]),
        "examples": np.array([r.example_image_ids for r in chosen]),
    }


def plain(folder: Path) -> dict[str, np.ndarray]:
    """The same, feature by feature, as one would write it first."""
    S = np.load(folder / "S.npy")
    embeddings, prompts = np.load(folder / "embeddings.npy"), np.arange(len(S)) // 2
    f = S.shape[1]
    frequency, mean, std, maximum = np.zeros((4, f), np.float32)
    top_idx = np.zeros((TOP, f), np.int32)
    for j in range(f):  # step 2
        column = S[:, j]
        active = column[column > EPS].astype(np.float64)
        frequency[j] = len(active) / len(S)
        if len(active):
            mean[j], std[j] = active.mean(), active.std()
        maximum[j] = column.max()
        top_idx[:, j] = np.argsort(-column, kind="stable")[:TOP]
    coherence, z, coverage = np.full(f, np.nan), np.full(f, np.nan), np.zeros(f, int)
    tops: dict[int, list[int]] = {}
    rng, drawing = np.random.default_rng(0), 0.0
    for j in np.flatnonzero(maximum > EPS):  # step 4
        column = S[:, j]
        coverage[j] = len({int(p) for p in prompts[column > EPS]})
        tops[j] = first_of_each_prompt(column, prompts)
        if len(tops[j]) >= MIN_PROMPTS:
            pairs = [float(embeddings[a] @ embeddings[b]) for a, b in combinations(tops[j], 2)]
            coherence[j] = sum(pairs) / len(pairs)
            begun = time.perf_counter()
            chance = [draw_coherence(embeddings, len(tops[j]), rng) for _ in range(DRAWS)]
            z[j] = (coherence[j] - np.mean(chance)) / np.std(chance)
            drawing += time.perf_counter() - begun
    chosen, examples = choose(coherence, tops)
    return {
        "frequency": frequency,
        "mean": mean,
        "std": std,
        "maximum": maximum,
        "top_idx": top_idx,
        "coherence": coherence,
        "z": z,
        "coverage": coverage,
        "chosen": np.array(chosen),
        "examples": np.array(examples),
        "drawing": np.array(drawing),
    }


def draw_coherence(embeddings: np.ndarray, size: int, rng: np.random.Generator) -> float:
    """The coherence of one random set of images of distinct prompts, two images a prompt."""
    prompts = rng.choice(len(embeddings) // 2, size, replace=False)
    rows = embeddings[2 * prompts + rng.integers(0, 2, size)]
    return float(((rows @ rows.T).sum() - size) / (size * (size - 1)))


def first_of_each_prompt(column: np.ndarray, prompts: np.ndarray) -> list[int]:
    kept: list[int] = []
    seen: set[int] = set()
    for image in np.argsort(-column, kind="stable"):
        if column[image] <= EPS or len(kept) == TOP:
            break
        if prompts[image] not in seen:
            seen.add(prompts[image])
            kept.append(int(image))
    return kept


def choose(coherence: np.ndarray, tops: dict[int, list[int]]) -> tuple[list[int], list[list[int]]]:
    used: set[int] = set()
    chosen: list[int] = []
    examples: list[list[int]] = []
    for j in sorted(np.flatnonzero(np.isfinite(coherence)), key=lambda j: -coherence[j]):
        free = [i for i in tops[j] if i not in used][:4]
        if len(chosen) < 10 and len(free) == 4:
            used.update(free)
            chosen.append(int(j))
            examples.append(free)
    return chosen, examples


def run_side(side: str, folder: Path) -> dict[str, Any]:
    """Run one side in a process of its own: seconds (wall and processor) and peak memory."""
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    print(
        f"{side:6s} {report['wall']:8.2f} s wall {report['cpu']:8.2f} s processor"
        f"   peak memory {report['peak'] / 2**30:.2f} GiB",
        flush=True,
    )
    return report


def side_main(side: str, folder: Path) -> None:
    start, cpu = time.perf_counter(), time.process_time()
    results = {"ours": ours, "plain": plain}[side](folder)
    report = {"wall": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    report["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    np.savez(folder / f"{side}.npz", **results)
    print(json.dumps(report))


def same_results(folder: Path) -> bool:
    a, b = np.load(folder / "ours.npz"), np.load(folder / "plain.npz")
    good = True
    for name in a.files:
        if name == "z":  # a mean and a deviation of DRAWS draws are off by about 1 / sqrt(DRAWS)
            off = np.nanmax(np.abs(a[name] - b[name]) / (1 + np.abs(a[name])))
            same, how = off < 6 / np.sqrt(DRAWS), f"within the error of {DRAWS} draws"
        elif a[name].dtype.kind in "iu":
            same, how = np.array_equal(a[name], b[name]), "equal"
        else:
            same, how = np.allclose(a[name], b[name], 1e-4, 1e-5, equal_nan=True), "within 1e-5"
        good &= bool(same)
        print(f"  {name:10s} {how}: {'yes' if same else 'NO'}")
    return good


def compare(folder: Path) -> bool:
    """Both sides, ours before and after the plain loop, the better of the two times counting."""
    first, other, again = (run_side(side, folder) for side in ("ours", "plain", "ours"))
    seconds = min(first["wall"], again["wall"])
    drawing = float(np.load(folder / "plain.npz")["drawing"])
    good = same_results(folder)
    print(f"ratio {other['wall'] / seconds:.1f} (wanted: {NEEDED:.0f})")
    print(f"ratio {(other['wall'] - drawing) / seconds:.1f} without the plain loop's random sets")
    return good and first["peak"] < LIMIT and other["wall"] / seconds >= NEEDED


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streamed", action="store_true", help="the large S, ours alone")
    parser.add_argument("--folder", type=Path, help="where to put S (default: a temporary folder)")
    parser.add_argument("--side", choices=("make", "ours", "plain"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    n, f = SIZES["streamed" if args.streamed else "plain"]
    if args.side == "make":
        make_inputs(args.folder, n, f)
        return 0
    if args.side:
        side_main(args.side, args.folder)
        return 0
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        folder = Path(temporary)
        if shutil.disk_usage(folder).free < 1.1 * n * f * 4:
            print(f"{folder} has less than {1.1 * n * f * 4 / 1e9:.1f} GB free: name a larger --folder")
            return 2
        print(f"S of {n:,} images x {f:,} features, {n * f * 4 / 1e9:.1f} GB, half of them dead, 3% active")
        # In a process of its own: a child's peak memory begins with its parent's.
        make = [sys.executable, __file__, "--side", "make", "--folder", str(folder)]
        subprocess.run(make + ["--streamed"] * args.streamed, check=True)
        good = run_side("ours", folder)["peak"] < LIMIT if args.streamed else compare(folder)
    print("as claimed" if good else "NOT as claimed")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
