"""What sparsity costs: `fluxscope sweep` trains SAEs of several k or penalties and draws the frontier.

All of them train in one pass over the same activations. Explained variance alone flatters an SAE, and so
does any one point: each is shown beside random directions at equal L0, and beside what is left of the
model's own behaviour with the reconstruction spliced in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fluxscope import files
from fluxscope.draw.training_plots import Frontier, sparsity_frontier
from fluxscope.errors import ConfigError
from fluxscope.models.model import Model
from fluxscope.progress import Reporter
from fluxscope.sae.train import TrainConfig
from fluxscope.settings.config import Config
from fluxscope.training.train import Trained, Training, train


def sweep(
    config: Config, model: Model, training: Training, report: Reporter, prompts: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Train and score the SAEs, then write sweep.json and sparsity_frontier.png into their folder.

    Args:
        prompts: as for `train`.

    Returns:
        The points of sweep.json.

    Raises:
        ConfigError: fewer than two sparsities.
    """
    if len(training.configs()) < 2:
        raise ConfigError(
            "a sweep needs two sparsities or more",
            "Give --k 4,8,16 (the TopK family), --l1 0.1,0.2,0.4 (relu) or --l0 0.002,0.004 (jumprelu).",
        )
    trained = train(config, model, training, report, prompts)
    points = [point(each) for each in trained]
    target = training.saes / "sweep.json"
    files.write_json(target, {"model_id": config.model_id, "pictures": training.pictures, "points": points})
    picture = training.saes / "sparsity_frontier.png"
    files.save_image(picture, sparsity_frontier(frontiers(trained)))
    report.say(f"{target} and {picture.name}: {len(points)} SAEs")
    return points


def point(trained: Trained) -> dict[str, Any]:
    """What sweep.json says of one SAE."""
    config = trained.job.config
    name = config.sparsity_setting
    place = {"site": trained.site.name, "step": trained.step, "architecture": config.architecture}
    return place | {"setting": name, "value": getattr(config, name)} | {"spliced": None} | trained.record()


def frontiers(trained: Sequence[Trained]) -> dict[str, Frontier]:
    """The curves to draw, by site; by site and step where there are several steps."""
    several = len({each.step for each in trained}) > 1
    groups: dict[str, list[Trained]] = {}
    for each in trained:
        name = f"{each.site.name}, step {each.step + 1}" if several else each.site.name
        groups.setdefault(name, []).append(each)
    return {name: _frontier(group) for name, group in groups.items()}


def label(config: TrainConfig) -> str:
    """What the point of an SAE is marked with: the penalty; k, which its L0 shows, is left out."""
    named = {"l1_coeff": f"L1 {config.l1_coeff:g}", "l0_coeff": f"price {config.l0_coeff:g}"}
    return named.get(config.sparsity_setting, "")


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
