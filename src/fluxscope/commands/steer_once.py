"""One picture steered, beside its baseline, and a bench of strengths and step ranges: no run is needed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fluxscope.draw.difference import difference_legend, difference_map
from fluxscope.draw.grid import GridRow, labelled_grid
from fluxscope.errors import ConfigError, MissingInputError
from fluxscope.files import save_image
from fluxscope.measures.distance import pixel_change
from fluxscope.models.capture import Capture
from fluxscope.models.edits import Change, box_to_tokens
from fluxscope.models.sites import Site, parse_site
from fluxscope.models.steering import Steered, Steerer
from fluxscope.progress import Reporter
from fluxscope.run.codes import CodeStore
from fluxscope.run.context import open_model_of
from fluxscope.run.inputs import values_of
from fluxscope.run.rundir import RunDir
from fluxscope.run.steering import (
    heat_over,
    load_distance,
    load_steerer,
    scope_of,
    signed,
    strength_units,
    unit_of,
    when_and_where,
)
from fluxscope.run.step_log import StepLog, as_json
from fluxscope.sae import encode_sparse
from fluxscope.settings.config import Config
from fluxscope.settings.steering import STEERED


@dataclass(frozen=True)
class Request:
    """What is asked for on the command line.

    Attributes:
        features: one or several.
        kind: add, scale or clamp.
        amounts: one for all features, or one for each.
        region: x0,y0,x1,y1 in pixels, or None for the whole picture.
    """

    features: tuple[int, ...]
    kind: str
    amounts: tuple[float, ...]
    prompt: str
    seed: int
    region: tuple[int, int, int, int] | None = None

    def __post_init__(self) -> None:
        if len(self.amounts) not in (1, len(self.features)):
            raise ConfigError(
                f"{len(self.features)} features cannot be steered by {len(self.amounts)} numbers",
                "Give one number for all features, or one for each.",
            )
        self.changes({})  # raises for a number that is not finite
        if len(set(self.features)) != len(self.features):
            raise ConfigError("a feature is named twice", "Name each feature once.")

    def changes(self, units: dict[int, float]) -> list[Change]:
        amounts = self.amounts * len(self.features) if len(self.amounts) == 1 else self.amounts
        unit = units if self.kind == "add" else {}
        pairs = zip(self.features, amounts, strict=True)
        return [Change(self.kind, amount * unit.get(f, 1.0), f) for f, amount in pairs]

    @property
    def words(self) -> str:
        """What is done, in a few words that also name a file."""
        verb = {"add": "strength", "scale": "scale", "clamp": "clamp"}[self.kind]
        return f"{verb} {', '.join(f'{amount:g}' for amount in self.amounts)}"

    @property
    def names(self) -> str:
        plural = "s" if len(self.features) > 1 else ""
        return f"feature{plural} {', '.join(map(str, self.features))}"


def steer_once(config: Config, request: Request, report: Reporter) -> Path:
    """Make one picture with the changes and without, and a sheet with both; returns the sheet's path.

    Raises:
        ConfigError: a feature, region or step range that there is not.
    """
    files = RunDir.of(config)
    region = None
    if request.region is not None:
        assert config.height and config.width
        region = box_to_tokens(request.region, config.height, config.width, config.patch_size)
    scope = scope_of(config, files.site, request.kind, region)
    units = units_of(config, files, request, report)
    steerer = loaded(config, request, report)
    heard: list[torch.Tensor] = []
    capture = listening(config, files.site, steerer, request.features, heard)
    changes = [request.changes(units)]
    made = steerer.steer(request.prompt, request.seed, changes, scope, also=[capture])
    how = [seed_of(request), when_and_where(config, scope)]
    how += where(request)
    if request.kind == "add":
        how.append(units_in_words(units))
    return write_sheet(config, files, request, made, heard[0].numpy(), " · ".join(how), report)


def seed_of(request: Request) -> str:
    return f"seed {request.seed}"


def where(request: Request) -> list[str]:
    """The region in words; nothing where the whole picture is steered."""
    return [f"region {','.join(map(str, request.region))}"] if request.region else []


def file_name(config: Config, request: Request, *words: str, also: Any = None) -> str:
    """A name that tells one request from another, so that a second try leaves the first in place.

    Its last word stands for the whole request, every setting that a steered picture depends on, and the SAE's
    contents: one that was trained anew under the same path makes other pictures.

    Args:
        also: what else tells it from others.
    """
    key = {"words": words, "also": also, "site": config.site, **dataclasses.asdict(request)}
    key |= values_of(config, STEERED, [config.site], StepLog.open(RunDir.of(config).step_log))
    short = hashlib.sha256(json.dumps(as_json(key), sort_keys=True).encode()).hexdigest()[:8]
    return "_".join((*words, short)).replace(", ", "_").replace(" ", "_")


def loaded(config: Config, request: Request, report: Reporter) -> Steerer:
    """The model with the request's prompt; says what the user should know of it, and of the SAE."""
    model = open_model_of(config, report)
    return load_steerer(config, model, config.site, [request.prompt], request.features, report)


def units_of(config: Config, files: RunDir, request: Request, report: Reporter) -> dict[int, float]:
    """How much a strength of 1 is for each feature; warns of features that the run never saw active."""
    try:
        store = CodeStore(files.codes, files.site, config.target_step_index)
    except MissingInputError:
        if config.strength_unit == "activation" and request.kind == "add":
            raise
        return {}
    activations = strength_units(config, store, request.features)
    for feature, activation in activations.items():
        if not activation:
            report.say(f"warning: feature {feature} was never active in {files.root}")
    if request.kind != "add":
        return {}
    units = {feature: unit_of(config, activations, feature) for feature in activations}
    for feature, (name, amount) in units.items():
        if name == "activation":
            report.say(f"feature {feature}: a strength of 1 is {amount:.3g}, its 99th-percentile activation")
    return {feature: amount for feature, (_, amount) in units.items()}


def units_in_words(units: dict[int, float]) -> str:
    """What a strength of 1 is; without a run it is 1 along the unit decoder direction."""
    amounts = ", ".join(f"{amount:.3g}" for amount in units.values() or (1.0,))
    return f"strength 1 is {amounts} along the unit direction"


def listening(
    config: Config, site: str, steerer: Steerer, features: tuple[int, ...], heard: list[torch.Tensor]
) -> Capture:
    """A hook that puts the features' codes in the baseline at the target step into `heard`."""

    def receive(_: Site, step: int, x: torch.Tensor) -> None:
        codes = encode_sparse(steerer.sae, x[:1].to(steerer.sae.pre_bias.device)).to("cpu")
        heard.append(torch.stack([codes.column(feature) for feature in features]).amax(0))

    return Capture([parse_site(site)], [config.target_step_index], receive)


def write_sheet(
    config: Config,
    files: RunDir,
    request: Request,
    made: Steered,
    token_map: np.ndarray,
    how: str,
    report: Reporter,
) -> Path:
    """Write the picture, its baseline and the sheet with both, and say what changed."""
    baseline, steered = made.baseline.numpy(), made.pictures[0].numpy()
    distance = load_distance(config)
    far, change = float(distance([steered], [baseline])[0]), pixel_change(steered, baseline).mean()
    active = int((token_map > 0).sum())
    words = [request.names, request.words, f"steps {config.steer_steps}", *where(request), seed_of(request)]
    name = file_name(config, request, *words)
    folder = files.steering / "once"
    for which, pixels in (("baseline", baseline), ("steered", steered)):
        save_image(folder / f"{name}_{which}.png", Image.fromarray(pixels))
    fires = f"active on {active} of {len(token_map)} tokens"
    notes = ["", f"distance {far:.3f}", f"mean change {change:.1%}"]
    pictures = [baseline, steered, difference_map(steered, baseline)]
    sheet = labelled_grid(
        [GridRow(pictures, request.prompt, notes, heat_over(config, baseline, token_map))],
        ["baseline", request.words, "difference"],
        title=f"{request.names}, {request.words}".capitalize(),
        subtitle=how,
        footer=f"{config.model_id} · distance: {distance.name} · {difference_legend()}",
        baseline=0,
        tile=224,
    )
    path = folder / f"{name}.png"
    save_image(path, sheet)
    report.say(f"{request.names}: {fires} of the baseline in step {config.target_step_number}")
    report.say(f"distance from the baseline {far:.3f}, mean change of a pixel {change:.2%}")
    report.say(f"{path}")
    return path


def steer_bench(
    config: Config, request: Request, strengths: tuple[float, ...], ranges: tuple[str, ...], report: Reporter
) -> Path:
    """One feature on one prompt: every strength over every range of steps, with difference maps below."""
    files = RunDir.of(config)
    parts = [dataclasses.replace(config, steer_steps=steps) for steps in ranges]
    scopes = [scope_of(part, files.site, request.kind) for part in parts]
    units = units_of(config, files, request, report)
    steerer = loaded(config, request, report)
    distance = load_distance(config)
    rows = []
    for steps, scope in zip(ranges, scopes, strict=True):
        changes = [dataclasses.replace(request, amounts=(s,)).changes(units) for s in strengths]
        made = steerer.steer(request.prompt, request.seed, changes, scope)
        rows += bench_rows(made, f"steps {steps}", distance)
        report.say(f"steps {steps}: done")
    labels = ["baseline", *(signed(s) if request.kind == "add" else f"{s:g}" for s in strengths)]
    sheet = labelled_grid(
        rows,
        labels,
        title=f"{request.names}: strengths and steps".capitalize(),
        subtitle=f"{request.prompt} · seed {request.seed} · {units_in_words(units)}",
        footer=f"{config.model_id} · {scopes[0].site.name} · distance: {distance.name} · "
        f"{difference_legend()}",
        baseline=0,
        tile=128,
    )
    name = file_name(config, request, request.names, "bench", seed_of(request), also=(strengths, ranges))
    path = files.steering / "once" / f"{name}.png"
    save_image(path, sheet)
    report.say(f"{path}")
    return path


def bench_rows(made: Steered, label: str, distance: Any) -> list[GridRow]:
    pictures, baselines = list(made.pictures.numpy()), list(made.baselines.numpy())
    far = distance(pictures, baselines)
    maps = [difference_map(p, b) for p, b in zip(pictures, baselines, strict=True)]
    notes = ["", *(f"distance {d:.3f}" for d in far)]
    return [
        GridRow([baselines[0], *pictures], label, notes),
        GridRow([None, *maps], f"{label}: difference"),
    ]
