"""The SAEs that ship with flux-shapes: `python -m recipes.flux_shapes.saes`.

Pictures of random training captions are denoised up to the target step, and the activations of blocks 5
and 15 are kept at that step. One TopK SAE is trained for each block and one L1 SAE for block 15, scored on
a tenth of the pictures that they were not trained on, and written to shapes/weights/. About ten minutes
on two cores; killed and run again, it goes on where it was.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from fluxscope.embedded import FLUX_SHAPES, WEIGHTS
from fluxscope.files import write_json
from fluxscope.models.model import open_model
from fluxscope.models.sites import parse_site
from fluxscope.models.splice import SplicedScores, spliced_scores
from fluxscope.progress import Reporter
from fluxscope.run.context import picture_spec
from fluxscope.run.harvest import Stores, Wanted, harvest, held_out_batches
from fluxscope.sae import LinearSae
from fluxscope.sae.data import ByImage, first_held_out
from fluxscope.sae.formats import load
from fluxscope.sae.jobs import Job, train_jobs
from fluxscope.sae.metrics import Scores
from fluxscope.sae.relu import ReLU
from fluxscope.sae.topk import TopK
from fluxscope.sae.train import TrainConfig
from fluxscope.settings.config import Config
from fluxscope.shapes.world import caption, sample_scene, training_captions

LAYERS = (5, 15)
BATCH = 32
SEED = 1_000_000


@dataclass(frozen=True)
class Bundled:
    """One SAE to make: its folder in shapes/weights/, its layer and how it is trained."""

    folder: str
    layer: int
    training: TrainConfig


_TOPK = TrainConfig(TopK(k=16), hidden_dim=1536, lr=4e-3, dead_after_tokens=20_000)
BUNDLED = (
    Bundled("sae_layer05", 5, _TOPK),
    Bundled("sae_layer15", 15, replace(_TOPK, hidden_dim=3072)),
    Bundled("sae_layer15_l1", 15, TrainConfig(ReLU(l1_coeff=0.15), hidden_dim=768)),
)


def gather(work: Path, pictures: int) -> Stores:
    """Activations of both layers at the target step, for pictures of random training captions."""
    config = Config()
    assert config.max_sequence_length is not None
    wanted = Wanted(
        FLUX_SHAPES,
        picture_spec(config),
        config.max_sequence_length,
        [parse_site(config.numbered_site(layer)) for layer in LAYERS],
        [config.target_step_index],
        training_captions(pictures),
        [SEED + i for i in range(pictures)],
    )
    folder = work / f"activations_{pictures}"
    model = open_model(FLUX_SHAPES, "cpu", "float32", folder / "prompt_embeddings")
    return harvest(model, wanted, folder, BATCH, Reporter())


def make(
    layer: int, bundled: list[Bundled], steps: int, stores: Stores, work: Path
) -> list[tuple[Path, Scores]]:
    """Train and score a layer's SAEs in one pass over its activations; returns their checkpoints."""
    config = Config()
    site = config.numbered_site(layer)
    store = stores[site, config.target_step_index]
    split, batch = first_held_out(store.n_images), bundled[0].training.batch_size
    source = ByImage(store.read, range(split), batch, seed=0, buffer_images=store.n_images)
    entries = {
        "layer": layer,
        "timestep": config.target_step_number,
        "site": site,
        "model_id": FLUX_SHAPES,
        "normalize_data": False,
    }
    jobs = [
        Job(work / f"{b.folder}_{steps}_{store.n_images}", replace(b.training, steps=steps), entries)
        for b in bundled
    ]
    scores = train_jobs(source, jobs, held_out_batches(store, batch))
    return [(job.folder / "sae_best.pt", score) for job, score in zip(jobs, scores, strict=True)]


def spliced(layer: int, saes: list[LinearSae], pictures: int = 32) -> list[SplicedScores]:
    """How much of flux-shapes' behaviour each SAE leaves, on pictures of captions kept for testing."""
    config, rng = Config(), np.random.default_rng(1)
    prompts = [caption(sample_scene(rng, split="test")) for _ in range(pictures)]
    model = open_model(FLUX_SHAPES, "cpu", "float32")
    embedded = model.encode(prompts)
    return spliced_scores(
        model,
        [embedded[prompt] for prompt in prompts],
        list(range(pictures)),
        picture_spec(config),
        parse_site(config.numbered_site(layer)),
        config.target_step_index,
        saes,
        BATCH,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=Path("training/saes"), help="folder of what can be resumed"
    )
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--training-steps", type=int, default=6000, help="training steps of 2,048 tokens")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where the SAEs go")
    arguments = parser.parse_args()
    stores = gather(arguments.work, arguments.pictures)
    results = {}
    for layer in LAYERS:
        bundled = [b for b in BUNDLED if b.layer == layer]
        made = make(layer, bundled, arguments.training_steps, stores, arguments.work)
        recovered = spliced(layer, [load(checkpoint)[0] for checkpoint, _ in made])
        for one, (checkpoint, scores), left in zip(bundled, made, recovered, strict=True):
            target = arguments.out / one.folder / "sae_best.pt"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkpoint, target)
            results[one.folder] = asdict(scores) | {"spliced": asdict(left)}
            print(f"{target}: explained variance {scores.explained_variance:.3f} at L0 {scores.l0:.1f}")
    write_json(arguments.out / "saes.json", results)


if __name__ == "__main__":
    main()
