"""Training SAEs on a model's own activations: `fluxscope train`.

The pictures are denoised once for all layers and steps and their activations stored in shards; every SAE
of a site then trains in one pass over them. A tenth of the pictures chooses the checkpoint and a tenth is
reported on, of prompts that were not trained on. Interrupted and run again with the same settings, both
parts go on where they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fluxscope import files
from fluxscope.commands.wandb_log import check_wandb, wandb_run
from fluxscope.draw.training_plots import feature_density, training_curves
from fluxscope.errors import ConfigError
from fluxscope.models.model import Model
from fluxscope.models.placement import pick_device
from fluxscope.models.sites import Site, parse_site
from fluxscope.models.splice import SplicedScores, random_twin, spliced_scores
from fluxscope.progress import Reporter
from fluxscope.run.activations import ActivationStore
from fluxscope.run.context import picture_spec
from fluxscope.run.harvest import Wanted, harvest, token_batches
from fluxscope.run.lock import lock_folders, sweep_beside
from fluxscope.run.manifest import read_prompts
from fluxscope.sae import LinearSae
from fluxscope.sae.data import ByImage, split_by_prompt
from fluxscope.sae.formats import load
from fluxscope.sae.jobs import Job, folder_name, train_jobs
from fluxscope.sae.metrics import Scores, evaluate
from fluxscope.sae.table import sparsity_of
from fluxscope.sae.train import Log, TrainConfig
from fluxscope.settings.config import Config

SEEDS_FROM = 1_000_000
"""Training pictures have seeds of their own, far from those of runs."""


@dataclass(frozen=True)
class Training:
    """What to train.

    Attributes:
        sites: names of the sites that are trained on.
        pictures: training pictures, the held-out tenth included.
        base: the other settings of every SAE.
        activations: folder of the shards.
        saes: folder in which the SAEs' folders appear.
        stamp: the end of the SAEs' folder names; the same stamp goes on where it was.
        sparsities: values of the setting that makes the architecture sparse, one SAE each; empty: the one
            of `base`.
        spliced_pictures: held-out pictures on which the model runs with the reconstruction spliced in.
        wandb: project of Weights & Biases to log to; None: none.
    """

    sites: tuple[str, ...]
    pictures: int
    base: TrainConfig
    activations: Path
    saes: Path
    stamp: str
    sparsities: tuple[int | float, ...] = ()
    spliced_pictures: int = 16
    wandb: str | None = None

    def configs(self) -> list[TrainConfig]:
        """The settings of every SAE of a site."""
        base, sparsity = self.base, sparsity_of(self.base.architecture)
        swept = [sparsity.given(base.architecture, value) for value in self.sparsities]
        return [replace(base, architecture=architecture) for architecture in swept] or [base]


@dataclass(frozen=True)
class Trained:
    """One finished SAE.

    Attributes:
        step: denoising step, counted from 0.
        scores: on the tokens that are reported on.
        random_explained_variance: of as many random directions at the same L0, on the same tokens.
        spliced: None where no picture was run.
    """

    site: Site
    step: int
    job: Job
    scores: Scores
    random_explained_variance: float
    spliced: SplicedScores | None

    def record(self) -> dict[str, Any]:
        """What scores_....json says of it."""
        found = {"folder": self.job.folder.name, **asdict(self.scores)}
        found["random_explained_variance"] = self.random_explained_variance
        return found | ({"spliced": asdict(self.spliced)} if self.spliced else {})

    def in_words(self) -> str:
        s = self.scores
        words = f"explained variance {s.explained_variance:.3f} at L0 {s.l0:.1f}, "
        words += f"{s.dead:.1%} dead on {s.n_tokens} held-out tokens"
        if self.spliced:
            words += f"; spliced in, {self.spliced.velocity_vs_mean:.1%} of the velocity recovered"
            words += f" (random directions {self.spliced.random_velocity_vs_mean:.1%})"
        return words


def train(
    config: Config, model: Model, training: Training, report: Reporter, prompts: Sequence[str] | None = None
) -> list[Trained]:
    """Harvest activations and train the SAEs.

    Args:
        prompts: of the training pictures, repeated with new seeds; None for those of the prompts file.

    Raises:
        FluxscopeError: what cannot be trained: too few pictures, k beyond the width, wandb without wandb.
        RunDirError: another process works on these activations or SAEs.
    """
    if training.pictures < 20:
        raise ConfigError(
            f"{training.pictures} pictures are too few to train on", "Give --pictures 20 or more."
        )
    training.configs()  # settings that cannot be are refused here, before any work
    check_wandb(training.wandb)
    sites = [parse_site(name) for name in training.sites]
    wanted = wanted_activations(config, training, sites, prompts)
    saes = [
        job_of(config, training, site, step, each, model.spec.width).folder
        for site in sites
        for step in config.captured_step_indices
        for each in training.configs()
    ]
    with lock_folders([training.activations, *saes], report):
        return _train_sites(config, model, training, wanted, report)


def _train_sites(
    config: Config, model: Model, training: Training, wanted: Wanted, report: Reporter
) -> list[Trained]:
    """Harvest, then train the SAEs of one site and step after the other."""
    stores = harvest(model, wanted, training.activations, config.batch_size or 1, report)
    finished = []
    for site in wanted.sites:
        for step in config.captured_step_indices:
            trained = train_site(config, model, training, wanted, site, step, stores[site.name, step], report)
            scores = training.saes / f"scores_{site.name}_t{step + 1}_{training.stamp}.json"
            sweep_beside(scores)  # it is written by whoever holds the SAEs' folders
            files.write_json(scores, [each.record() for each in trained])
            finished += trained
    return finished


def wanted_activations(
    config: Config, training: Training, sites: Sequence[Site], prompts: Sequence[str] | None
) -> Wanted:
    """The training pictures: the prompts in turn, each picture with a seed of its own."""
    assert config.prompts_path is not None and config.max_sequence_length is not None
    texts = list(prompts) if prompts else read_prompts(config.prompts_path)
    return Wanted(
        config.model_id,
        picture_spec(config),
        config.max_sequence_length,
        sites,
        config.captured_step_indices,
        [texts[i % len(texts)] for i in range(training.pictures)],
        [SEEDS_FROM + config.base_seed + i for i in range(training.pictures)],
    )


def train_site(
    config: Config,
    model: Model,
    training: Training,
    wanted: Wanted,
    site: Site,
    step: int,
    store: ActivationStore,
    report: Reporter,
) -> list[Trained]:
    """Train every SAE of one site and step in one pass over its activations, then score and draw them."""
    base, split = training.base, split_by_prompt(wanted.prompts)
    if not split.by_prompt:
        report.say("warning: the prompts are too few to hold some out: held-out pictures share theirs")
    source = ByImage(store.read, split.train, base.batch_size, base.seed, whitening=base.whitening)
    choosing = token_batches(store, split.choose, base.batch_size)
    held_out = token_batches(store, split.report, base.batch_size)
    jobs = [job_of(config, training, site, step, each, store.width) for each in training.configs()]
    device = pick_device(config.sae_device, fallback=str(model.device))
    with (
        wandb_run(training.wandb, f"{site.name}_t{step + 1}_{training.stamp}", jobs) as send,
        report.progress(f"SAEs of {site.name}", base.steps, "steps") as advance,
    ):

        def on_step(done: int, logs: dict[str, Log]) -> None:
            advance()
            send(done, logs)

        train_jobs(source, jobs, choosing, device, on_step=on_step)
    if source.bad_rows:
        bad = f"{source.bad_rows} of {source.rows_seen} activations"
        report.say(f"warning: {bad} read in training hold NaN or infinity and were left out")
    saes = [load(job.folder / "sae_best.pt")[0] for job in jobs]
    scores = [evaluate(sae, held_out).scores() for sae in saes]
    shown = split.report[: training.spliced_pictures]
    spliced = splice(config, model, shown, wanted, site, step, saes)
    trained = [
        Trained(site, step, job, score, random_explained_variance(sae, score, held_out), recovered)
        for job, sae, score, recovered in zip(jobs, saes, scores, spliced, strict=True)
    ]
    for each in trained:
        draw(each)
        report.say(f"{each.job.folder / 'sae_best.pt'}: {each.in_words()}")
    return trained


def random_explained_variance(sae: LinearSae, scores: Scores, held_out: Sequence[Tensor]) -> float:
    """The control of explained variance: what as many random directions explain at the same L0."""
    twin = random_twin(sae, round(scores.l0))
    return evaluate(twin, held_out).scores().explained_variance


def draw(trained: Trained) -> None:
    """Put the plots of one SAE's training into its folder."""
    folder = trained.job.folder
    log = files.read_jsonl(folder / "log.jsonl")
    files.save_image(folder / "training_curves.png", training_curves(log))
    frequency = files.load_npy(folder / "frequency.npy")
    tokens = files.read_json(folder / "scores.json")["n_tokens"]
    files.save_image(folder / "feature_density.png", feature_density(frequency, tokens))


def splice(
    config: Config,
    model: Model,
    pictures: Sequence[int],
    wanted: Wanted,
    site: Site,
    step: int,
    saes: Sequence[LinearSae],
) -> list[SplicedScores | None]:
    """How much of the model's behaviour each SAE leaves, on some held-out pictures."""
    prompts = [wanted.prompts[number] for number in pictures]
    if not prompts:
        return [None] * len(saes)
    embedded = model.encode(prompts, wanted.max_sequence_length)
    return list(
        spliced_scores(
            model,
            [embedded[prompt] for prompt in prompts],
            [wanted.seeds[number] for number in pictures],
            wanted.spec,
            site,
            step,
            [sae.to(model.device) for sae in saes],
            config.batch_size or 1,
        )
    )


def job_of(config: Config, training: Training, site: Site, step: int, each: TrainConfig, width: int) -> Job:
    """One SAE to train, and what its checkpoint says beside its weights."""
    name = folder_name(place_of(config, site), step + 1, each, width, training.stamp)
    entries = {
        "layer": site.layer,
        "timestep": step + 1,
        "site": site.name,
        "model_id": config.model_id,
        "normalize_data": False,
        "whitening": each.whitening,
    }
    return Job(training.saes / name, each, entries)


def place_of(config: Config, site: Site) -> str:
    """A site in the name of its SAE's folder: the block's number where `site_pattern` says the rest."""
    pattern = config.site_pattern.replace("{layer}", str(site.layer))
    return f"layer{site.layer}" if site.name == pattern else site.name
