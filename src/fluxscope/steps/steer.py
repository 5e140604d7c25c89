"""Step 7: the selected features turned up and down on their example pictures, and what it did to them.

Each picture gets a grid over scales (the feature's code multiplied) and one over strengths (its direction
added), the latter beside a random direction of the same norm, which any effect must be held against.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from fluxscope.draw.grid import GridRow, labelled_grid
from fluxscope.errors import MissingInputError
from fluxscope.files import save_image
from fluxscope.measures.distance import Distance, locality, pixel_change
from fluxscope.measures.effect import dose_response
from fluxscope.run.context import Context, step_work
from fluxscope.run.donor_table import donor_score, in_words, tell_donor_score, verdict
from fluxscope.run.ledger import Ledger
from fluxscope.run.manifest import ManifestRow
from fluxscope.run.rundir import shown
from fluxscope.run.site_map_records import Share
from fluxscope.run.steering import (
    SteeringSetup,
    heat_of,
    load_distance,
    random_direction,
    scope_of,
    selected,
    settings_of_run,
    signed,
    unit_in_words,
    when_and_where,
)
from fluxscope.run.steering_records import Dose, DoseResponse, Effect, Experiment
from fluxscope.settings.steering import STEERED
from fluxscope.steps.step import Step

if TYPE_CHECKING:
    from fluxscope.models.steering import Steered

STEP = Step(
    number=7,
    name="steer",
    module=__name__,
    summary="Steer the selected features: grids over scales and strengths.",
    reads=("manifest", "codes", "pictures", "selected_features"),
    reads_if_there=("site_map",),
    makes=("steering_summary",),
    settings=(
        *("steer_features", "steer_images", "steer_scales", "steer_strengths"),
        *("alpha_scale", "clip_percentile", *STEERED),
    ),
)


def run(context: Context) -> str:
    config, files, report = context.config, context.files, context.report
    images = {r.feature_id: r.example_image_ids[: config.steer_images] for r in selected(context)}
    distance = load_distance(config)
    donors = tell_donor_score(context, scope_of(config, files.site).site.name, files.site)
    own = {feature: own_key(images[feature], distance, donors) for feature in images}
    ledger = Ledger(step_work(context), own, Experiment)
    if ledger.missing:
        wanted = [image for feature in ledger.missing for image in images[feature]]
        setup = SteeringSetup.of(context, ledger.missing, wanted, distance)
        unrelated = setup.distance_of_unrelated()
        finished = len(images) - len(ledger.missing)
        with report.progress("     features", len(images), "features", finished) as advance:
            for feature in tuple(ledger.missing):
                ledger.do(feature, partial(experiments, setup, feature, images[feature], unrelated))
                advance()
    for feature, reason in ledger.failed.items():
        report.say(f"     warning: feature {feature} is passed over: {reason}")
    if images and not ledger.records:
        raise MissingInputError("no feature could be steered", "The warnings above say why.")
    ledger.write(files.steering_summary, "experiments", head_of(context, distance.name, donors))
    if not images:
        return "nothing is selected, so there is nothing to steer"
    return (
        f"{len(ledger.records)} pictures of {len(images) - len(ledger.failed)} features in {files.steering}"
    )


def own_key(images: list[int], distance: Distance, donors: Share | None) -> dict[str, Any]:
    """What a feature's pictures depend on: of the selection its own example pictures, of the site map the
    donor score that their titles tell."""
    return {
        "selected_features": images,
        "steer_features": None,
        "steer_images": None,
        "site_map": None if donors is None else donors.share,
        "distance": distance.name,
    }


def head_of(context: Context, distance: str, donors: Share | None) -> dict[str, Any]:
    """What the summary begins with."""
    config, files = context.config, context.files
    return {
        "layer_index": files.layer,
        "target_step_number": config.target_step_number,
        "scales": list(config.steer_scales),
        "strengths": list(config.steer_strengths),
        "images_per_feature": config.steer_images,
        "distance": distance,
        "donor_score": donors,
        "made_with": settings_of_run(context),
    }


def experiments(setup: SteeringSetup, feature: int, images: list[int], unrelated: float) -> list[Experiment]:
    """Steer a feature on its example pictures; returns their records."""
    setup.check(feature)
    return [experiment(setup, feature, image, unrelated) for image in images]


def experiment(setup: SteeringSetup, feature: int, image_id: int, unrelated: float) -> Experiment:
    """Steer one picture, write its pictures and grids, and return its record."""
    row = setup.manifest.row(image_id)
    scales = by_scale(setup, feature, row)
    strengths, controls = by_strength(setup, feature, row)
    files = setup.context.files
    scaled = measured(setup, feature, image_id, setup.context.config.steer_scales, scales)
    added = measured(setup, feature, image_id, nonzero(setup), strengths)
    pushed = measured(setup, feature, image_id, nonzero(setup), controls)
    save_pictures(setup, feature, image_id, scales, strengths)
    draw_scales(setup, feature, row, scales, scaled)
    draw_strengths(setup, feature, row, strengths, controls, added, pushed)
    return Experiment(
        feature_id=feature,
        image_id=image_id,
        prompt=row.prompt,
        seed=row.seed,
        grid_path=files.relative(files.steered(feature, image_id, "steering_grid")),
        strength_grid_path=files.relative(files.steered(feature, image_id, "strength_grid")),
        strength_unit=setup.unit(feature)[0],
        unit=setup.unit(feature)[1],
        distance_of_strangers=unrelated,
        scaled=scaled,
        added=added,
        random_direction=pushed,
        dose_response=doses(added, unrelated),
        dose_response_random=doses(pushed, unrelated),
    )


def nonzero(setup: SteeringSetup) -> list[float]:
    return [s for s in setup.context.config.steer_strengths if s != 0]


def by_scale(setup: SteeringSetup, feature: int, row: ManifestRow) -> Steered:
    from fluxscope.models.edits import Change

    config = setup.context.config
    rows = [[Change("scale", scale, feature)] for scale in config.steer_scales]
    return setup.steerer.steer(
        row.prompt, row.seed, rows, scope_of(config, setup.context.files.site, "scale")
    )


def by_strength(setup: SteeringSetup, feature: int, row: ManifestRow) -> tuple[Steered, Steered]:
    """The pictures with the feature added at each strength, and with a random direction at the same norm."""
    from fluxscope.models.steering import Steered

    control = random_direction(setup.steerer.sae.input_dim, feature)
    own = [[setup.change(s, feature)] for s in nonzero(setup)]
    other = [[setup.change(s, feature, control)] for s in nonzero(setup)]
    scope = scope_of(setup.context.config, setup.context.files.site)
    made = setup.steerer.steer(row.prompt, row.seed, [*own, *other], scope)
    n = len(own)
    return (
        Steered(made.pictures[:n], made.baselines[:n]),
        Steered(made.pictures[n:], made.baselines[n:]),
    )


def measured(
    setup: SteeringSetup, feature: int, image_id: int, values: Sequence[float], made: Steered
) -> list[Effect]:
    """For each picture its distance from the baseline, and how much changed in and out of the heatmap."""
    pictures, baselines = made.pictures.numpy(), made.baselines.numpy()
    distances = setup.distance(list(pictures), list(baselines))
    heat = heat_of(setup.context.config, pictures[0].shape, setup.token_map(feature, image_id))
    records = []
    for value, picture, baseline, distance in zip(values, pictures, baselines, distances, strict=True):
        inside, outside = locality(pixel_change(picture, baseline), heat)
        records.append(Effect(value=value, distance=float(distance), inside=inside, outside=outside))
    return records


def doses(records: list[Effect], unrelated: float) -> DoseResponse:
    """The dose-response to either side."""

    def of(own: list[Effect]) -> Dose:
        return Dose(**dose_response([r.value for r in own], [r.distance for r in own], unrelated))

    positive, negative = ([r for r in records if sign * r.value > 0] for sign in (1, -1))
    return DoseResponse(positive=of(positive), negative=of(negative))


def save_pictures(
    setup: SteeringSetup, feature: int, image_id: int, scales: Steered, strengths: Steered
) -> None:
    config, files = setup.context.config, setup.context.files
    names = [f"scale_{shown(s, 1)}" for s in config.steer_scales]
    names += [f"strength_{shown(s, 1)}" for s in nonzero(setup)]
    pictures = [*scales.pictures.numpy(), *strengths.pictures.numpy()]
    for name, pixels in zip(names, pictures, strict=True):
        save_image(files.steered(feature, image_id, name), Image.fromarray(pixels))
    baseline = files.steered(feature, image_id, "baseline")
    save_image(baseline, Image.fromarray(strengths.baseline.numpy()))


def notes(records: list[Effect]) -> list[str]:
    return [f"distance {record.distance:.3f}" for record in records]


def draw_scales(
    setup: SteeringSetup, feature: int, row: ManifestRow, made: Steered, records: list[Effect]
) -> None:
    """The grid over scales; scale 1, the unchanged picture, is framed."""
    config, files = setup.context.config, setup.context.files
    scales = list(config.steer_scales)
    donors = donors_of(setup, "scale")
    overlay = setup.overlay(feature, row.image_id, made.baseline.numpy())
    grid = labelled_grid(
        [GridRow(list(made.pictures.numpy()), row.prompt, notes(records), overlay)],
        [f"{scale:g}x" for scale in scales],
        title=f"Feature {feature}: its code scaled{verdict(donors)}",
        subtitle=f"image {row.image_id} · seed {row.seed} · 1x changes nothing, 0x ablates{in_words(donors)}",
        footer=foot(setup, "scale"),
        baseline=scales.index(1.0) if 1.0 in scales else None,
    )
    save_image(files.steered(feature, row.image_id, "steering_grid"), grid)


def draw_strengths(
    setup: SteeringSetup,
    feature: int,
    row: ManifestRow,
    own: Steered,
    control: Steered,
    own_records: list[Effect],
    control_records: list[Effect],
) -> None:
    """The grid over strengths, the baseline in its place among them, the random direction below."""
    files = setup.context.files
    strengths = nonzero(setup)
    middle = int(np.searchsorted(strengths, 0.0))
    baseline = own.baseline.numpy()
    rows = []
    for label, made, records in (
        (row.prompt, own, own_records),
        ("a random direction", control, control_records),
    ):
        pictures, words = list(made.pictures.numpy()), notes(records)
        pictures.insert(middle, baseline)
        words.insert(middle, "unchanged")
        beside = setup.overlay(feature, row.image_id, baseline) if made is own else None
        rows.append(GridRow(pictures, label, words, beside))
    labels = [signed(s) for s in strengths]
    labels.insert(middle, "0")
    donors, unit = donors_of(setup, "add"), unit_in_words(*setup.unit(feature))
    grid = labelled_grid(
        rows,
        labels,
        title=f"Feature {feature}: its direction added{verdict(donors)}",
        subtitle=f"image {row.image_id} · seed {row.seed} · {unit}{in_words(donors)}",
        footer=foot(setup, "add"),
        baseline=middle,
    )
    save_image(files.steered(feature, row.image_id, "strength_grid"), grid)


def donors_of(setup: SteeringSetup, kind: str) -> Share | None:
    """The donor score of the site where such changes are made."""
    context = setup.context
    return donor_score(context, scope_of(context.config, context.files.site, kind).site.name).share


def foot(setup: SteeringSetup, kind: str) -> str:
    config = setup.context.config
    scope = scope_of(config, setup.context.files.site, kind)
    return f"{config.model_id} · {when_and_where(config, scope)} · distance: {setup.distance.name}"
