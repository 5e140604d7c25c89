"""Step 10: the pictures that show best what a feature does when it is turned up and down.

Candidates are images on which the feature is relevant, but not saturated. All are tried at one strength both
ways; the best of them at all strengths; the best of those are kept. A good demo changes visibly both ways
without breaking: strengths at which a picture is as far from its baseline as an unrelated one don't count.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32
from PIL import Image

from fluxscope.errors import MissingInputError
from fluxscope.files import save_image
from fluxscope.measures.effect import demo_score
from fluxscope.run.context import Context, step_work
from fluxscope.run.donor_table import tell_donor_score
from fluxscope.run.ledger import Ledger
from fluxscope.run.manifest import Manifest
from fluxscope.run.matrices import load_s
from fluxscope.run.site_map_records import Share
from fluxscope.run.steering import SteeringSetup, load_distance, scope_of, selected, settings_of_run
from fluxscope.run.steering_records import Candidates, Demo, DemoConfig, DemoId, DemoIds, FeatureDemos, Try
from fluxscope.settings.config import Config
from fluxscope.settings.steering import STEERED
from fluxscope.steps.step import Step

if TYPE_CHECKING:
    from fluxscope.models.steering import Steered

STEP = Step(
    number=10,
    name="find-demos",
    module=__name__,
    summary="Find the demos that change the picture most.",
    reads=("s_matrix", "manifest", "codes", "pictures", "selected_features"),
    reads_if_there=("site_map",),
    makes=("best_demo_candidates", "best_demo_ids"),
    settings=(
        *("steer_features", "demo_percentile_low", "demo_percentile_high", "demo_candidates"),
        *("demo_finalists", "demo_kept", "demo_strengths", "eps_alive", "base_seed", *STEERED),
    ),
)


def run(context: Context) -> str:
    config, files, report = context.config, context.files, context.report
    features = [record.feature_id for record in selected(context)]
    distance = load_distance(config)
    donors = tell_donor_score(context, scope_of(config, files.site).site.name)
    own = {"selected_features": None, "steer_features": None, "site_map": None, "distance": distance.name}
    ledger = Ledger(step_work(context), dict.fromkeys(features, own), FeatureDemos)
    if ledger.missing:
        chosen = candidates_of(context, ledger)
        images = [image for candidates in chosen.values() for image in candidates.image_ids]
        setup = SteeringSetup.of(context, list(chosen), images, distance)
        unrelated = setup.distance_of_unrelated()
        with report.progress("     features", len(chosen), "features") as advance:
            for feature, candidates in chosen.items():
                ledger.do(feature, partial(demos_of, setup, feature, candidates, unrelated))
                advance()
    for feature, reason in ledger.failed.items():
        report.say(f"     warning: feature {feature} is passed over: {reason}")
    if features and not ledger.records:
        raise MissingInputError("no feature has a demo", "The warnings above say why.")
    write_ids(context, ledger)
    made_with = config_of(context, distance.name, donors)
    ledger.write(files.best_demo_candidates, "features", {"config": made_with})
    if not features:
        return "nothing is selected, so there are no demos"
    kept = sum(len(record.best_demos) for record in ledger.records)
    return f"{kept} demos of {len(ledger.records)} features in {files.best_demos}"


def config_of(context: Context, distance: str, donors: Share | None) -> DemoConfig:
    """Everything that the demos depend on, by our names and by those that other scripts read."""
    config, files = context.config, context.files
    strengths, steps = list(config.demo_strengths), scope_of(config, files.site).steps
    return DemoConfig(
        demo_percentile_low=config.demo_percentile_low,
        demo_percentile_high=config.demo_percentile_high,
        demo_candidates=config.demo_candidates,
        demo_finalists=config.demo_finalists,
        demo_kept=config.demo_kept,
        strengths=strengths,
        distance=distance,
        donor_score=donors,
        layer_index=files.layer,
        settings=settings_of_run(context),
        n_candidates_to_sample=config.demo_candidates,
        n_candidates_to_test=config.demo_finalists,
        n_final=config.demo_kept,
        test_strengths=strengths,
        step_range=[steps[0], steps[-1]],
        min_percentile=config.demo_percentile_low,
        max_percentile=config.demo_percentile_high,
        seed=config.base_seed,
        save_images=True,
    )


def candidates_of(context: Context, ledger: Ledger[FeatureDemos]) -> dict[int, Candidates]:
    """The candidates of each feature that is still to do; a feature without any is noted as failed."""
    config, files = context.config, context.files
    image_ids = [row.image_id for row in Manifest.read(files.manifest, files.root).rows]
    s = load_s(files, len(image_ids))
    chosen = {}
    for feature in tuple(ledger.missing):
        try:
            if not 0 <= feature < s.shape[1]:
                raise MissingInputError(f"S has no feature {feature}", "Run step 4 again.", redo="select")
            chosen[feature] = pick_candidates(np.asarray(s[:, feature]), image_ids, config, feature)
        except MissingInputError as error:
            ledger.fail(feature, error.message)
    if not chosen and not ledger.records:
        for feature, reason in ledger.failed.items():
            context.report.say(f"     warning: feature {feature} is passed over: {reason}")
        raise MissingInputError("no feature has a candidate for a demo", "Collect more pictures: step 1.")
    return chosen


def pick_candidates(
    column: Float32[np.ndarray, " n"], image_ids: list[int], config: Config, feature: int
) -> Candidates:
    """Images with activations between two percentiles of the feature's column of S, sampled with a seed.

    Where the feature is silent on so many images that the lower percentile is no activation, the active
    images below the largest activation are taken, and where there are none below it, those at it.

    Raises:
        MissingInputError: the feature is active on no image.
    """
    low, high = np.percentile(column, [config.demo_percentile_low, config.demo_percentile_high])
    active = column > config.eps_alive
    if not active.any():
        raise MissingInputError(
            f"feature {feature} is active on no image: there are no candidates", "Choose another feature."
        )
    how = f"percentiles {config.demo_percentile_low:g} to {config.demo_percentile_high:g}"
    pool = np.flatnonzero(active & (column >= low) & (column <= high))
    if low <= config.eps_alive or not len(pool):
        how = "active, below the maximum"
        pool = np.flatnonzero(active & (column < column.max()))
    if not len(pool):
        how, pool = "active, at the maximum", np.flatnonzero(active)
    rng = np.random.default_rng([config.base_seed, feature])
    sample = np.sort(rng.permutation(pool)[: config.demo_candidates])
    return Candidates(
        how=how,
        low=float(low),
        high=float(high),
        n_active=int(active.sum()),
        n_pool=len(pool),
        image_ids=[image_ids[i] for i in sample],
        activations=[float(column[i]) for i in sample],
    )


def demos_of(
    setup: SteeringSetup, feature: int, candidates: Candidates, unrelated: float
) -> list[FeatureDemos]:
    """A feature's record, as a list of one."""
    setup.check(feature)
    return [find_demos(setup, feature, candidates, unrelated)]


def find_demos(setup: SteeringSetup, feature: int, candidates: Candidates, unrelated: float) -> FeatureDemos:
    """Screen the candidates, try the best at every strength, keep the best of those; returns the record."""
    config = setup.context.config
    middle = config.demo_strengths[len(config.demo_strengths) // 2]
    screened = [
        try_one(setup, feature, image_id, activation, (middle,), unrelated).demo
        for image_id, activation in zip(candidates.image_ids, candidates.activations, strict=True)
    ]
    screened.sort(key=worth_of_demo, reverse=True)
    finals = [
        try_one(setup, feature, demo.image_id, demo.activation, config.demo_strengths, unrelated)
        for demo in screened[: config.demo_finalists]
    ]
    finals.sort(key=lambda final: worth_of_demo(final.demo), reverse=True)
    best = finals[: config.demo_kept]
    for final in best:
        save_pictures(setup, feature, final)
    tried = {final.demo.image_id: final.demo for final in finals}
    return FeatureDemos(
        feature_id=feature,
        distance_of_strangers=unrelated,
        strength_unit=setup.unit(feature)[0],
        unit=setup.unit(feature)[1],
        candidates=candidates,
        screened_at=middle,
        best_demos=[final.demo for final in best],
        all_scored=[tried.get(demo.image_id, demo) for demo in screened],
    )


@dataclass(frozen=True)
class Tried:
    """A demo with its pictures and their strengths."""

    demo: Demo
    made: Steered
    strengths: list[float]


def try_one(
    setup: SteeringSetup,
    feature: int,
    image_id: int,
    activation: float,
    magnitudes: tuple[float, ...],
    unrelated: float,
) -> Tried:
    """Steer one image both ways at some strengths and score it by its best one."""
    config, row = setup.context.config, setup.manifest.row(image_id)
    strengths = [sign * m for m in magnitudes for sign in (1, -1)]
    rows = [[setup.change(s, feature)] for s in strengths]
    made = setup.steerer.steer(row.prompt, row.seed, rows, scope_of(config, setup.context.files.site))
    distances = setup.distance(list(made.pictures.numpy()), list(made.baselines.numpy())).tolist()
    pairs = zip(magnitudes, distances[::2], distances[1::2], strict=True)
    tries = [score(magnitude, positive, negative, unrelated) for magnitude, positive, negative in pairs]
    best = max(tries, key=worth)
    demo = Demo(
        image_id=image_id,
        prompt=row.prompt,
        seed=row.seed,
        activation=activation,
        best_strength=best.strength,
        pos_lpips=best.pos_lpips,
        neg_lpips=best.neg_lpips,
        consistency=best.consistency,
        combined_score=best.combined_score,
        broken=best.broken,
        tries=tries,
    )
    return Tried(demo, made, strengths)


def worth(tried: Try) -> tuple[bool, float]:
    """What to prefer: whole pictures that score high; of broken ones, those of the least strength."""
    return not tried.broken, -tried.strength if tried.broken else tried.combined_score


def worth_of_demo(demo: Demo) -> tuple[bool, float]:
    """What a demo is worth by its best strength."""
    return not demo.broken, -demo.best_strength if demo.broken else demo.combined_score


def score(magnitude: float, positive: float, negative: float, unrelated: float) -> Try:
    """One strength's distances and score; broken when either picture is as far away as an unrelated one."""
    consistency, combined = demo_score(positive, negative)
    return Try(
        strength=magnitude,
        pos_lpips=positive,
        neg_lpips=negative,
        consistency=consistency,
        combined_score=combined,
        broken=max(positive, negative) >= unrelated,
    )


def save_pictures(setup: SteeringSetup, feature: int, tried: Tried) -> None:
    files, image_id = setup.context.files, tried.demo.image_id
    save_image(files.demo(feature, image_id, 0.0), Image.fromarray(tried.made.baseline.numpy()))
    for strength, pixels in zip(tried.strengths, tried.made.pictures.numpy(), strict=True):
        save_image(files.demo(feature, image_id, strength), Image.fromarray(pixels))


def write_ids(context: Context, ledger: Ledger[FeatureDemos]) -> None:
    ids = {
        str(record.feature_id): [
            DemoId(image_id=demo.image_id, strength=demo.best_strength) for demo in record.best_demos
        ]
        for record in ledger.records
    }
    DemoIds(features=ids).write(context.files.best_demo_ids)
