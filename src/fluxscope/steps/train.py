"""Training SAEs on a model's own activations: `fluxscope train`.

The pictures are denoised once for all layers and steps and their activations stored in shards; every SAE
of a site then trains in one pass over them. A tenth of the pictures is held out, and scores are taken on
those. Interrupted and run again with the same settings, both parts go on where they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fluxscope.config import Config
from fluxscope.errors import ConfigError
from fluxscope.files import write_json
from fluxscope.models.flux import encode_prompts, load_denoiser
from fluxscope.models.harvest import Wanted, harvest
from fluxscope.models.placement import pick_device, pick_dtype
from fluxscope.models.sites import Site, parse_site
from fluxscope.models.splice import SplicedScores, spliced_scores
from fluxscope.progress import Reporter
from fluxscope.records import read_prompts
from fluxscope.sae.data import ByImage
from fluxscope.sae.formats import load
from fluxscope.sae.metrics import Scores
from fluxscope.sae.run import Job, folder_name, run
from fluxscope.sae.shards import ActivationStore
from fluxscope.sae.train import Log, TrainConfig
from fluxscope.steps.jobs import picture_spec

HELD_OUT_SHARE = 0.1
SEEDS_FROM = 1_000_000
"""Training pictures have seeds of their own, far from those of runs."""


@dataclass(frozen=True)
class Training:
    """What to train.

    Attributes:
        layers: blocks whose site is trained on.
        ks: values of k, one SAE each (the TopK family); otherwise one SAE.
        pictures: training pictures, the held-out tenth included.
        base: the other settings of every SAE.
        activations: folder of the shards.
        saes: folder in which the SAEs' folders appear.
        spliced_pictures: held-out pictures on which the model runs with the reconstruction spliced in.
        stamp: the end of the SAEs' folder names; the same stamp goes on where it was.
    """

    layers: tuple[int, ...]
    ks: tuple[int, ...]
    pictures: int
    base: TrainConfig
    activations: Path
    saes: Path
    stamp: str
    spliced_pictures: int = 16

    def configs(self) -> list[TrainConfig]:
        if "topk" not in self.base.architecture:
            return [self.base]
        return [replace(self.base, k=k) for k in self.ks]


def train(config: Config, training: Training, report: Reporter, prompts: Sequence[str] | None = None) -> None:
    """Harvest activations and train the SAEs.

    Args:
        prompts: of the training pictures, repeated with new seeds; None for those of the prompts file.

    Raises:
        ConfigError: too few pictures.
    """
    if training.pictures < 20:
        raise ConfigError(
            f"{training.pictures} pictures are too few to train on", "Give --pictures 20 or more."
        )
    assert config.prompts_path is not None and config.max_sequence_length is not None
    texts = list(prompts) if prompts else read_prompts(config.prompts_path)
    device = pick_device(config.device)
    sites = [parse_site(config.site_of(layer)) for layer in training.layers]
    wanted = Wanted(
        config.model_id,
        picture_spec(config),
        config.max_sequence_length,
        sites,
        config.captured_step_indices,
        [texts[i % len(texts)] for i in range(training.pictures)],
        [SEEDS_FROM + config.base_seed + i for i in range(training.pictures)],
    )
    dtype = pick_dtype(config.dtype, device)
    stores = harvest(wanted, training.activations, device, dtype, config.batch_size or 1, report)
    for site in sites:
        for step in config.captured_step_indices:
            jobs, scores = train_site(config, training, site, step, stores[site.name, step], report)
            spliced = splice(config, training, wanted, site, step, jobs)
            tell(training, site, step, jobs, scores, spliced, report)


def train_site(
    config: Config, training: Training, site: Site, step: int, store: ActivationStore, report: Reporter
) -> tuple[list[Job], list[Scores]]:
    """Train every SAE of one site and step in one pass over its activations."""
    split = first_held_out(store.n_images)
    batch = training.base.batch_size
    source = ByImage(store.read, range(split), batch, training.base.seed)
    held_out = list(store.read(range(split, store.n_images)).float().flatten(0, 1).split(batch))
    jobs = [job_of(config, training, site, step, each, store.width) for each in training.configs()]
    device = pick_device(config.sae_device, fallback=str(pick_device(config.device)))
    with report.progress(f"SAEs of {site.name}", training.base.steps, "steps") as advance:

        def on_step(done: int, logs: list[Log]) -> None:
            advance()

        return jobs, run(source, jobs, held_out, device, on_step=on_step)


def first_held_out(pictures: int) -> int:
    """The first of the pictures that are kept from training."""
    return round(pictures * (1 - HELD_OUT_SHARE))


def splice(
    config: Config, training: Training, wanted: Wanted, site: Site, step: int, jobs: Sequence[Job]
) -> list[SplicedScores]:
    """How much of the model's behaviour each SAE leaves, on held-out pictures."""
    first = first_held_out(len(wanted.seeds))
    rows = slice(first, first + training.spliced_pictures)
    if not wanted.seeds[rows]:
        return []
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    prompts = wanted.prompts[rows]
    embedded, _ = encode_prompts(config.model_id, prompts, wanted.max_sequence_length, device, dtype)
    pipe = load_denoiser(config.model_id, device, dtype)
    embeddings, batch = [embedded[prompt] for prompt in prompts], config.batch_size or 1
    return [
        spliced_scores(
            pipe,
            embeddings,
            wanted.seeds[rows],
            wanted.spec,
            site,
            step,
            load(job.folder / "sae_best.pt", device)[0],
            batch,
        )
        for job in jobs
    ]


def tell(
    training: Training,
    site: Site,
    step: int,
    jobs: Sequence[Job],
    scores: Sequence[Scores],
    spliced: Sequence[SplicedScores],
    report: Reporter,
) -> None:
    """Say and write how good the SAEs of a site are."""
    records = []
    for number, (job, score) in enumerate(zip(jobs, scores, strict=True)):
        record: dict[str, Any] = {"folder": job.folder.name, **asdict(score)}
        words = in_words(score)
        if spliced:
            record["spliced"] = asdict(spliced[number])
            words += f"; spliced in, {spliced[number].velocity_vs_mean:.1%} of the velocity recovered"
            words += f" (random directions {spliced[number].random_velocity_vs_mean:.1%})"
        records.append(record)
        report.say(f"{job.folder / 'sae_best.pt'}: {words}")
    write_json(training.saes / f"scores_{site.name}_t{step + 1}_{training.stamp}.json", records)


def job_of(config: Config, training: Training, site: Site, step: int, each: TrainConfig, width: int) -> Job:
    """One SAE to train, and what its checkpoint says beside its weights."""
    name = folder_name(site.layer, step + 1, each, width, training.stamp)
    entries = {
        "layer": site.layer,
        "timestep": step + 1,
        "site": site.name,
        "model_id": config.model_id,
        "normalize_data": False,
    }
    return Job(training.saes / name, each, entries)


def in_words(scores: Scores) -> str:
    return (
        f"explained variance {scores.explained_variance:.3f} at L0 {scores.l0:.1f}, "
        f"{scores.dead:.1%} dead on {scores.n_tokens} held-out tokens"
    )
