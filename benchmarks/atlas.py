"""What does the atlas of a large run cost? Its bytes, the time and memory that it takes, and how fast it is.

    python benchmarks/atlas.py FOLDER [--features 12288] [--pictures 2000] [--width 3072]

Makes a synthetic run of FLUX.1's sizes (256 px, 256 tokens, TopK 64) once in FOLDER, builds its page in a
process of its own, prints the bytes by kind, and drives the page in Chromium, where that and playwright are
installed. Asked: 12,288 features and 2,000 pictures at most 40 MB, 49,152 and 5,000 at most 120 MB; built in
180 s on two cores within 2 GiB; the first feature open in 1 s, a search in 0.2 s, 60 frames a second while
scrolling.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import zoom

from fluxscope.files import write_json
from fluxscope.measures.names import vocabulary
from fluxscope.run.codes import CodeStore
from fluxscope.sae.codes import SparseCodes
from fluxscope.sae.formats import save
from fluxscope.sae.topk import TopKSparseAutoencoder

SITE, STEP, PIXELS, SIDE, K = "double.15.ff", 13, 256, 16, 64
WORDS_A_PROMPT, BY_WORDS, BY_CHANCE = 4, 300, 1200
"""Features active on a picture: those of its prompt's words, and others; a seventh of them all, at 12,288."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--features", type=int, default=12288)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--width", type=int, default=3072, help="of the site, and of decoder directions")
    arguments = parser.parse_args()
    run = arguments.folder / f"run_{arguments.features}_{arguments.pictures}"
    if not (run / "run_log.json").is_file():
        make_run(run, arguments.features, arguments.pictures, arguments.width)
    build(run)
    bytes_by_kind(run / "atlas")
    in_browser(run / "atlas" / "index.html")


def make_run(run: Path, features: int, pictures: int, width: int) -> None:
    """Write a run: pictures with the statistics of photographs, and codes that cluster on the picture."""
    (run / "images").mkdir(parents=True, exist_ok=True)
    shutil.rmtree(run / "codes.zarr", ignore_errors=True)
    rng = np.random.default_rng(0)
    store = CodeStore.create(run / "codes.zarr", SITE, STEP, SIDE * SIDE, features)
    s = np.lib.format.open_memmap(run / "S_matrix.npy", "w+", np.float32, (pictures, features))
    words = vocabulary()
    popular = rng.permutation(features)
    rows = []
    for number in range(pictures):
        prompt, rep = divmod(number, 2)
        drawn = np.random.default_rng((1, prompt)).choice(len(words), WORDS_A_PROMPT, replace=False)
        codes = codes_of_picture(rng, drawn, popular, len(words))
        store.append(codes)
        _, feature, value = codes.numpy()
        np.maximum.at(s[number], feature, value)
        name = f"images/img_{number:06d}_p{prompt:04d}_r{rep}_seed{42 + number}.png"
        photograph(rng).save(run / name, compress_level=1)
        rows.append(
            line_of(number, prompt, rep, " ".join(["a picture of", *(words[w] for w in drawn)]), name, width)
        )
    s.flush()
    store.write_index()
    (run / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    torch.manual_seed(0)
    sae = TopKSparseAutoencoder(width, features, k=K)
    save(run / "sae.pt", sae)
    write_json(run / "run_log.json", {"layer_index": 15, "site": SITE, "target_step_index": STEP})


def line_of(number: int, prompt: int, rep: int, text: str, name: str, width: int) -> dict[str, object]:
    return {
        "image_id": number,
        "prompt_idx": prompt,
        "rep_idx": rep,
        "seed": 42 + number,
        "prompt": text,
        "image_path": name,
        "height": PIXELS,
        "width": PIXELS,
        "site": SITE,
        "step": STEP,
        "layer_index": 15,
        "target_step_number": STEP + 1,
        "activation_shape": [SIDE * SIDE, width],
        "generation_time": 1.0,
    }


def codes_of_picture(
    rng: np.random.Generator, words: np.ndarray, popular: np.ndarray, n_words: int
) -> SparseCodes:
    """K codes a token: features of the prompt's words and others, each a blob somewhere on the picture."""
    f = len(popular)
    own = np.concatenate(
        [np.random.default_rng((2, int(w))).integers(f, size=BY_WORDS // len(words)) for w in words]
    )
    others = popular[
        (f * rng.random(BY_CHANCE) ** 1.5).astype(int)
    ]  # some features are active more often than others
    active = np.unique(np.concatenate([own, others]))
    y, x = np.mgrid[:SIDE, :SIDE].reshape(2, -1)
    centre, spread = rng.random((2, len(active))) * SIDE, rng.uniform(1, 4, len(active))
    distance = (x[:, None] - centre[0]) ** 2 + (y[:, None] - centre[1]) ** 2  # t a
    strength = rng.lognormal(0, 0.4, len(active)) * np.where(np.isin(active, own), 2, 1)
    code = strength * np.exp(-distance / (2 * spread**2)) * rng.uniform(0.7, 1, distance.shape)
    chosen = np.argpartition(-code, K, axis=1)[:, :K]
    chosen.sort(axis=1)
    value = np.take_along_axis(code, chosen, 1).astype(np.float32)
    kept = value > 1e-3
    indptr = np.concatenate([[0], np.cumsum(kept.sum(1))])
    return SparseCodes.from_numpy(indptr, active[chosen][kept].astype(np.int32), value[kept], f)


def photograph(rng: np.random.Generator) -> Image.Image:
    """Noise whose amplitude falls as 1/f, as that of photographs does (Field 1987)."""
    layers = [
        zoom(rng.normal(size=(side, side, 3)), (PIXELS / side, PIXELS / side, 1), order=1) * 0.45 / side**0.5
        for side in (4, 16, 64)
    ]
    grey = zoom(rng.normal(size=(128, 128, 1)), (2, 2, 1), order=1) * 0.03
    return Image.fromarray((255 * np.clip(0.5 + sum(layers) + grey, 0, 1)).astype(np.uint8))


def build(run: Path) -> None:
    """Build the page in a process of its own, and print its time and its largest memory."""
    command = [sys.executable, "-m", "fluxscope", "atlas", "--out-dir", str(run), "--force", "--quiet"]
    began = time.monotonic()
    subprocess.run([*command, "--layer", "15", "--layer15-sae-path", str(run / "sae.pt")], check=True)
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"built in {seconds:.0f} s (asked: 180), at most {peak:.2f} GiB (asked: 2)")


def bytes_by_kind(atlas: Path) -> None:
    """Print what the page's bytes are for."""
    size: Counter[str] = Counter()
    for path in atlas.rglob("*"):
        if path.is_file():
            kind = re.sub(r"\d+$", "", path.stem) if path.suffix == ".js" else path.suffix
            size[kind] += path.stat().st_size
    print(
        f"{size.total() / 1e6:.1f} MB: "
        + ", ".join(f"{name} {each / 1e6:.2f}" for name, each in size.most_common())
    )


FRAMES = """() => new Promise((done) => {
  const times = [];
  const step = (now) => {
    times.push(now);
    window.scrollBy(0, 40);
    times.length < 180 ? requestAnimationFrame(step) : done(times);
  };
  requestAnimationFrame(step);
})"""


def in_browser(page: Path) -> None:
    """Print how long a reader waits."""
    chromium = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        chromium = None
    if chromium is None:
        print("NOT MEASURED IN A BROWSER: playwright or Chromium is not installed")
        return
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1280, "height": 900})
        began = time.monotonic()
        opened.goto(page.as_uri())
        opened.wait_for_selector(".card")
        print(f"list open in {time.monotonic() - began:.2f} s")
        began = time.monotonic()
        opened.click(".card")
        opened.wait_for_selector(".wall")
        print(f"first feature open in {time.monotonic() - began:.2f} s (asked: 1)")
        direct = browser.new_page(viewport={"width": 1280, "height": 900})
        began = time.monotonic()
        direct.goto(f"{page.as_uri()}#feature=5")
        direct.wait_for_selector(".wall, .empty")
        print(f"a permalink opens in {time.monotonic() - began:.2f} s (asked: 1)")
        opened.keyboard.press("/")
        waits = []
        for text in ("red", "red lion", "lion -red", "zzz", ""):
            waits.append(opened.evaluate(SEARCH, text))
        print(f"searches take {', '.join(f'{each / 1000:.3f}' for each in waits)} s (asked: 0.2)")
        times = np.diff(opened.evaluate(FRAMES))
        print(
            f"scrolling: {1000 / times.mean():.0f} frames a second, "
            f"the slowest twentieth {1000 / np.quantile(times, 0.95):.0f}"
        )
        browser.close()


SEARCH = """(text) => new Promise((done) => {
  const box = document.getElementById("search"), began = performance.now();
  box.value = text;
  box.dispatchEvent(new Event("input", { bubbles: true }));
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - began)));
})"""


if __name__ == "__main__":
    main()
