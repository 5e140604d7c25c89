"""The SAEs that ship with flux-shapes: `python -m recipes.flux_shapes.saes`.

Pictures of random training captions are denoised, and the activations of each site kept at the steps that
its SAEs are trained on. TopK SAEs are trained for the feed-forward of blocks 5 and 15, an L1 SAE for block
15, and a BatchTopK SAE for the attention output of block 5: where a run looks when nothing else is said,
since there single features say most of what is true of a picture (docs/studies/sites.md). Scored on a
tenth of the pictures that they were not trained on, they are written to shapes/weights/. About twenty minutes
on two cores; killed and run again, it goes on where it was. `--only sae_double.5.attn` makes one of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fluxscope.files import read_json, write_json
from fluxscope.models.model import open_model
from fluxscope.models.sites import parse_site
from fluxscope.models.splice import SplicedScores, spliced_scores
from fluxscope.progress import Reporter
from fluxscope.run.context import picture_spec
from fluxscope.run.harvest import Stores, Wanted, harvest, held_out_batches
from fluxscope.run.lock import lock_folders
from fluxscope.run.sae_truth import TruthMaterial, TruthOfSae, score_sae
from fluxscope.sae import LinearSae
from fluxscope.sae.batch_topk import BatchTopK, ThresholdedSae
from fluxscope.sae.data import ByImage, first_held_out
from fluxscope.sae.ensemble import joined
from fluxscope.sae.formats import load, save
from fluxscope.sae.jobs import Job, train_jobs
from fluxscope.sae.metrics import evaluate
from fluxscope.sae.relu import ReLU
from fluxscope.sae.topk import TopK
from fluxscope.sae.train import TrainConfig
from fluxscope.settings.config import Config
from fluxscope.shapes.shipped import FLUX_SHAPES, OWN_SITE, STEERING_SITES, TEXT_SITE, WEIGHTS
from fluxscope.shapes.world import caption, sample_scene, training_captions

SEED = 1_000_000


@dataclass(frozen=True)
class Material:
    """What SAEs are trained on.

    Attributes:
        sites: where.
        steps: when, counted from 0; an SAE is trained on the tokens of all of them.
        pictures: how many, the held-out tenth included.
        batch: pictures that are denoised at a time.
    """

    sites: tuple[str, ...]
    steps: tuple[int, ...]
    pictures: int
    batch: int


@dataclass(frozen=True)
class Bundled:
    """One SAE to make.

    Attributes:
        folder: in shapes/weights/.
        site: where it reads.
        members: how it is trained; where there are several, all are trained and then joined to one.
        material: on what.
    """

    folder: str
    site: str
    members: tuple[TrainConfig, ...]
    material: Material


TARGET = 13
_FEED_FORWARD = Material(("double.5.ff", "double.15.ff"), (TARGET,), 4000, 32)
_ATTENTION = Material((OWN_SITE,), (9, 11, TARGET, 15, 17, 19), 2400, 20)
_TOPK = TrainConfig(TopK(k=16), hidden_dim=1536, steps=6000, lr=4e-3, dead_after_tokens=20_000)
_OWN = TrainConfig(BatchTopK(k=16), hidden_dim=256, steps=1500, lr=4e-3, whitening="soft_pca")
_STEERING = Material(STEERING_SITES, (1, 4, 7, 10, TARGET, 16), 640, 20)
_TEXT = Material((TEXT_SITE,), (1, 4, 7, 10, TARGET, 16), 640, 20)
_SMALL = replace(_OWN, hidden_dim=512, steps=2000)
"""For steering at all depths: trained on noise levels from 0.95 to 0.2, since edits act in most steps."""
_SPARSITIES = (16, 16, 24, 16, 16, 24)
"""Of the six SAEs that are joined to one: at 16 colours are found more often whole, at 24 sizes."""

THRESHOLD = 1.75
"""By what their thresholds are raised when they are joined: two features of five fewer are active on a token,
and the best ones say as much."""

BUNDLED = (
    Bundled("sae_layer05", "double.5.ff", (_TOPK,), _FEED_FORWARD),
    Bundled("sae_layer15", "double.15.ff", (replace(_TOPK, hidden_dim=3072),), _FEED_FORWARD),
    Bundled(
        "sae_layer15_l1",
        "double.15.ff",
        (TrainConfig(ReLU(l1_coeff=0.15), hidden_dim=768, steps=6000),),
        _FEED_FORWARD,
    ),
    Bundled(
        f"sae_{OWN_SITE}",
        OWN_SITE,
        tuple(replace(_OWN, architecture=BatchTopK(k), seed=seed) for seed, k in enumerate(_SPARSITIES)),
        _ATTENTION,
    ),
    *(Bundled(f"sae_{site}", site, (_SMALL,), _STEERING) for site in STEERING_SITES),
    Bundled(f"sae_{TEXT_SITE}", TEXT_SITE, (_SMALL,), _TEXT),
)


def gather(work: Path, material: Material) -> Stores:
    """Activations for pictures of random training captions."""
    config = Config()
    assert config.max_sequence_length is not None
    assert config.target_step_index == TARGET
    wanted = Wanted(
        FLUX_SHAPES,
        picture_spec(config),
        config.max_sequence_length,
        [parse_site(site) for site in material.sites],
        material.steps,
        training_captions(material.pictures),
        [SEED + i for i in range(material.pictures)],
    )
    sites = "_".join(material.sites)
    folder = work / f"activations_{sites}_{material.pictures}"
    model = open_model(FLUX_SHAPES, "cpu", "float32", prompt_folder=folder / "prompt_embeddings")
    with lock_folders([folder], Reporter()):
        return harvest(model, wanted, folder, material.batch, Reporter())


def make(bundled: Bundled, stores: Stores, work: Path, only: int | None = None) -> list[LinearSae]:
    """Train an SAE's members in one pass over the site's activations.

    Args:
        only: the number of the one member to train; members can so be trained side by side.
    """
    site, material, first = bundled.site, bundled.material, bundled.members[0]
    here = [stores[site, step] for step in material.steps]
    split = first_held_out(material.pictures)

    def read(numbers: Sequence[int]) -> Float[Tensor, "n t d"]:
        """The tokens of a picture at a step: all pictures at the first step, then all at the second, ..."""
        places = [divmod(number, split) for number in numbers]
        return torch.cat([store.read([p for s, p in places if s == step]) for step, store in enumerate(here)])

    every = range(split * len(here))
    source = ByImage(read, every, first.batch_size, 0, len(every), first.whitening)
    entries = {
        "layer": parse_site(site).layer,
        "timestep": TARGET + 1,
        "site": site,
        "model_id": FLUX_SHAPES,
        "normalize_data": False,
        "whitening": first.whitening,
    }
    wanted = [each for number, each in enumerate(bundled.members) if only in (None, number)]
    names = [f"{bundled.folder}_{each.steps}_{material.pictures}_seed{each.seed}" for each in wanted]
    jobs = [Job(work / name, each, entries) for name, each in zip(names, wanted, strict=True)]
    train_jobs(source, jobs, held_out_batches(stores[site, TARGET], first.batch_size))
    return [load(job.folder / "sae_best.pt")[0] for job in jobs]


def finish(bundled: Bundled, members: list[LinearSae], stores: Stores, out: Path) -> dict[str, Any]:
    """Join the members where there are several, keep the SAE, and score it at the target step."""
    sae = members[0]
    if len(members) > 1:
        sae = joined([each for each in members if isinstance(each, ThresholdedSae)], THRESHOLD)
    held_out = held_out_batches(stores[bundled.site, TARGET], bundled.members[0].batch_size)
    scores = evaluate(sae, held_out).scores()
    entries = {
        "layer": parse_site(bundled.site).layer,
        "timestep": TARGET + 1,
        "site": bundled.site,
        "model_id": FLUX_SHAPES,
        "normalize_data": False,
        "explained_variance": scores.explained_variance,
        "l0": scores.l0,
    }
    target = out / bundled.folder / "sae_best.pt"
    target.parent.mkdir(parents=True, exist_ok=True)
    save(target, sae, entries)
    print(f"{target}: explained variance {scores.explained_variance:.3f} at L0 {scores.l0:.1f}")
    return asdict(scores) | {"spliced": asdict(spliced(bundled.site, [sae])[0])}


def spliced(site: str, saes: list[LinearSae], pictures: int = 32) -> list[SplicedScores]:
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
        parse_site(site),
        config.target_step_index,
        saes,
        pictures,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=Path("training/saes"), help="folder of what can be resumed"
    )
    parser.add_argument("--only", choices=[b.folder for b in BUNDLED], help="make this one alone")
    parser.add_argument("--member", type=int, help="train this member of it alone, and write nothing yet")
    parser.add_argument("--truth", type=Path, help="folder of the pictures with truth to score on")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where the SAEs go")
    arguments = parser.parse_args()
    kept = arguments.out / "saes.json"
    for bundled in BUNDLED:
        if arguments.only not in (None, bundled.folder):
            continue
        stores = gather(arguments.work, bundled.material)
        members = make(bundled, stores, arguments.work, arguments.member)
        if arguments.member is not None:
            continue
        found = finish(bundled, members, stores, arguments.out)
        if arguments.truth:
            sae, _ = load(arguments.out / bundled.folder / "sae_best.pt")
            found["truth"] = truth_of(arguments.truth, bundled.site, sae, found["l0"]).record()
        write_json(kept, (read_json(kept) if kept.is_file() else {}) | {bundled.folder: found})


def truth_of(folder: Path, site: str, sae: LinearSae, l0: float) -> TruthOfSae:
    """What its single features know, on pictures of prompts that no SAE was trained on."""
    config = Config()
    model = open_model(FLUX_SHAPES, "cpu", "float32", prompt_folder=folder / "prompt_embeddings")
    material = TruthMaterial(folder, 2000)
    truth = material.make(model, [parse_site(site)], [TARGET], picture_spec(config), Reporter())
    found = score_sae(truth, site, TARGET, sae, l0)
    print(found.in_words())
    return found


if __name__ == "__main__":
    main()
