"""What sparsity costs: `fluxscope sweep` trains SAEs of several k or penalties and draws the frontier.

All of them train in one pass over the same activations. Explained variance alone flatters an SAE, and so
does any one point: each is shown beside random directions at equal L0, and beside what is left of the
model's own behaviour with the reconstruction spliced in. With --truth (on flux-shapes) each is also scored by
what its best single features know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fluxscope import files
from fluxscope.commands.train_saes import Trained, Training, train
from fluxscope.draw.training_plots import Frontier, sparsity_frontier
from fluxscope.errors import ConfigError
from fluxscope.models.model import Model
from fluxscope.models.sites import parse_site
from fluxscope.progress import Reporter
from fluxscope.run.context import picture_spec
from fluxscope.run.lock import lock, sweep_beside
from fluxscope.run.sae_truth import TruthMaterial, TruthOfSae, score_sae
from fluxscope.run.truth import check_sites
from fluxscope.sae.formats import load
from fluxscope.sae.table import sparsity_of
from fluxscope.sae.train import TrainConfig
from fluxscope.settings.config import Config


def sweep(
    config: Config,
    model: Model,
    training: Training,
    report: Reporter,
    prompts: Sequence[str] | None = None,
    material: TruthMaterial | None = None,
) -> list[dict[str, Any]]:
    """Train and score the SAEs, then write sweep.json and sparsity_frontier.png into their folder.

    Args:
        prompts: as for `train`.
        material: where the pictures with truth are; None: SAEs are not scored by it.

    Returns:
        The points of sweep.json.

    Raises:
        ConfigError: fewer than two SAEs of a site, or truth is asked of a model or a site without it.
        RunDirError: another sweep works in the folder of the SAEs.
    """
    if material:
        check_sites(
            model,
            [parse_site(name) for name in training.sites],
            config.captured_step_indices,
            picture_spec(config),
        )
    if len(training.configs()) < 2:
        sparsity = sparsity_of(training.base.architecture)
        several = ",".join(f"{value:g}" for value in sparsity.sweep)
        raise ConfigError(
            "a sweep needs two sparsities or more",
            f"Give --{sparsity.flag} {several} ({training.base.architecture.name}).",
        )
    with lock(training.saes, report):  # other sweeps write there what this one will
        return _sweep(config, model, training, report, prompts, material)


def _sweep(
    config: Config,
    model: Model,
    training: Training,
    report: Reporter,
    prompts: Sequence[str] | None,
    material: TruthMaterial | None,
) -> list[dict[str, Any]]:
    trained = train(config, model, training, report, prompts)
    points = [point(each) for each in trained]
    if material:
        scores = _truth_scores(config, model, material, trained, report)
        points = [each | {"truth": found.record()} for each, found in zip(points, scores, strict=True)]
    target, picture = training.saes / "sweep.json", training.saes / "sparsity_frontier.png"
    for path in (target, picture):
        sweep_beside(path)
    files.write_json(target, {"model_id": config.model_id, "pictures": training.pictures, "points": points})
    files.save_image(picture, sparsity_frontier(frontiers(trained)))
    report.say(f"{target} and {picture.name}: {len(points)} SAEs")
    return points


def _truth_scores(
    config: Config, model: Model, material: TruthMaterial, trained: Sequence[Trained], report: Reporter
) -> list[TruthOfSae]:
    """Hold every SAE against the truth, and say which knows most."""
    sites = list({each.site.name: each.site for each in trained}.values())
    truth = material.make(model, sites, config.captured_step_indices, picture_spec(config), report)
    scores: list[TruthOfSae] = []
    for each in trained:
        sae, _ = load(each.job.folder / "sae_best.pt")
        found = score_sae(truth, each.site.name, each.step, sae, each.scores.l0)
        report.say(f"{each.job.folder.name}: {found.in_words()}")
        scores.append(found)
    best = int(np.argmax([found.f1 for found in scores]))
    report.say(f"single features say most in {trained[best].job.folder.name}")
    return scores


def point(trained: Trained) -> dict[str, Any]:
    """What sweep.json says of one SAE."""
    architecture = trained.job.config.architecture
    sparsity = sparsity_of(architecture)
    place = {"site": trained.site.name, "step": trained.step, "architecture": architecture.name}
    swept = {"setting": sparsity.setting, "value": sparsity.value(architecture)}
    return place | swept | {"spliced": None, "truth": None} | trained.record()


def frontiers(trained: Sequence[Trained]) -> dict[str, Frontier]:
    """The curves to draw, by site; by site and step where there are several steps."""
    several = len({each.step for each in trained}) > 1
    groups: dict[str, list[Trained]] = {}
    for each in trained:
        name = f"{each.site.name}, step {each.step + 1}" if several else each.site.name
        groups.setdefault(name, []).append(each)
    return {name: _frontier(group) for name, group in groups.items()}


def label(config: TrainConfig) -> str:
    """What the point of an SAE is marked with: the penalty's weight; k, which its L0 shows, is left out."""
    sparsity = sparsity_of(config.architecture)
    return f"{sparsity.label}{sparsity.value(config.architecture):g}" if sparsity.label else ""


def _frontier(group: Sequence[Trained]) -> Frontier:
    spliced = [each.spliced for each in group if each.spliced]
    return Frontier(
        labels=[label(each.job.config) for each in group],
        l0=[each.scores.l0 for each in group],
        explained=[each.scores.explained_variance for each in group],
        recovered=[s.velocity_vs_mean for s in spliced],
        random_explained=[each.random_explained_variance for each in group],
        random_recovered=[s.random_velocity_vs_mean for s in spliced],
    )
