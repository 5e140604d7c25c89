"""Step 10: the pictures that show best what a feature does when it is turned up and down.

Candidates are images on which the feature is relevant, but not saturated. All are tried at one strength both
ways; the best of them at all strengths; the best of those are kept. A good demo changes visibly both ways
without breaking: strengths at which a picture is as far from its baseline as a stranger don't count.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float32
from PIL import Image

from fluxscope.errors import MissingInputError
from fluxscope.files import load_npy, save_image, write_json
from fluxscope.measures.effect import demo_score
from fluxscope.models.steering import Steered
from fluxscope.run.context import Context, step_work
from fluxscope.run.ledger import Ledger
from fluxscope.run.manifest import load_manifest
from fluxscope.run.steering import Bench, load_distance, scope_of, selected, settings_of_run
from fluxscope.settings.config import Config


def run(context: Context) -> str:
    config, files, report = context.config, context.files, context.report
    features = [record["feature_id"] for record in selected(context)]
    distance = load_distance(config)
    own = {"selected_features": None, "steer_features": None, "distance": distance.name}
    ledger = Ledger(step_work(context), dict.fromkeys(features, own))
    if ledger.missing:
        chosen = candidates_of(context, ledger)
        images = [image for candidates in chosen.values() for image in candidates["image_ids"]]
        bench = Bench.of(context, list(chosen), images, distance)
        strangers = bench.strangers()
        with report.progress("     features", len(chosen), "features") as advance:
            for feature, candidates in chosen.items():
                ledger.do(feature, partial(demos_of, bench, feature, candidates, strangers))
                advance()
    for feature, reason in ledger.failed.items():
        report.say(f"     warning: feature {feature} is passed over: {reason}")
    if not ledger.records:
        raise MissingInputError("no feature has a demo", "The warnings above say why.")
    write_ids(context, ledger)
    ledger.write(files.best_demo_candidates, "features", head_of(context, distance.name))
    kept = sum(len(record["best_demos"]) for record in ledger.records)
    return f"{kept} demos of {len(ledger.records)} features in {files.best_demos}"


def head_of(context: Context, distance: str) -> dict[str, Any]:
    """What the summary begins with: everything that its demos depend on."""
    config, files = context.config, context.files
    names = ("demo_percentile_low", "demo_percentile_high", "demo_candidates", "demo_finalists", "demo_kept")
    return {
        "config": {
            **{name: getattr(config, name) for name in names},
            "strengths": list(config.demo_strengths),
            "distance": distance,
            "layer_index": files.layer,
            **settings_of_run(context),
        }
    }


def candidates_of(context: Context, ledger: Ledger) -> dict[int, dict[str, Any]]:
    """The candidates of each feature that is still to do; a feature without any is noted as failed."""
    config, files = context.config, context.files
    records, _ = load_manifest(files.manifest, files.root)
    image_ids = [row["image_id"] for row in records]
    s = load_npy(files.s_matrix, mmap=True)
    chosen = {}
    for feature in tuple(ledger.missing):
        try:
            if not 0 <= feature < s.shape[1]:
                raise MissingInputError(f"S has no feature {feature}", "Run steps 1 to 4 again.")
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
) -> dict[str, Any]:
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
    return {
        "how": how,
        "low": float(low),
        "high": float(high),
        "n_active": int(active.sum()),
        "n_pool": len(pool),
        "image_ids": [image_ids[i] for i in sample],
        "activations": [float(column[i]) for i in sample],
    }


def demos_of(
    bench: Bench, feature: int, candidates: dict[str, Any], strangers: float
) -> list[dict[str, Any]]:
    """A feature's record, as a list of one."""
    bench.check(feature)
    return [find_demos(bench, feature, candidates, strangers)]


def find_demos(bench: Bench, feature: int, candidates: dict[str, Any], strangers: float) -> dict[str, Any]:
    """Screen the candidates, try the best at every strength, keep the best of those; returns the record."""
    config = bench.context.config
    middle = config.demo_strengths[len(config.demo_strengths) // 2]
    screened = [
        try_one(bench, feature, image_id, activation, (middle,), strangers)[0]
        for image_id, activation in zip(candidates["image_ids"], candidates["activations"], strict=True)
    ]
    screened.sort(key=worth_of_record, reverse=True)
    finals = []
    for record in screened[: config.demo_finalists]:
        finals.append(
            try_one(
                bench, feature, record["image_id"], record["activation"], config.demo_strengths, strangers
            )
        )
    finals.sort(key=lambda final: worth_of_record(final[0]), reverse=True)
    best = finals[: config.demo_kept]
    for record, made, strengths in best:
        save_pictures(bench, feature, record["image_id"], made, strengths)
    tried = {final[0]["image_id"]: final[0] for final in finals}
    return {
        "distance_of_strangers": strangers,
        "strength_unit": bench.unit(feature)[0],
        "unit": bench.unit(feature)[1],
        "candidates": candidates,
        "screened_at": middle,
        "best_demos": [record for record, _, _ in best],
        "all_scored": [tried.get(record["image_id"], record) for record in screened],
    }


Tried = tuple[dict[str, Any], Steered, list[float]]
"""A record, the pictures, and their strengths."""


def try_one(
    bench: Bench,
    feature: int,
    image_id: int,
    activation: float,
    magnitudes: tuple[float, ...],
    strangers: float,
) -> Tried:
    """Steer one image both ways at some strengths and score it by its best one."""
    config, row = bench.context.config, bench.manifest[image_id]
    strengths = [sign * m for m in magnitudes for sign in (1, -1)]
    rows = [[bench.change(s, feature)] for s in strengths]
    made = bench.steerer.steer(row["prompt"], row["seed"], rows, scope_of(config, bench.context.files.site))
    distances = bench.distance(list(made.pictures.numpy()), list(made.baselines.numpy())).tolist()
    pairs = zip(magnitudes, distances[::2], distances[1::2], strict=True)
    tries = [score(magnitude, positive, negative, strangers) for magnitude, positive, negative in pairs]
    best = max(tries, key=worth)
    record = {
        "image_id": image_id,
        "prompt": row["prompt"],
        "seed": row["seed"],
        "activation": activation,
        "best_strength": best["strength"],
        **{key: best[key] for key in ("pos_lpips", "neg_lpips", "consistency", "combined_score", "broken")},
        "tries": tries,
    }
    return record, made, strengths


def worth(tried: dict[str, Any]) -> tuple[bool, float]:
    """What to prefer: whole pictures that score high; of broken ones, those of the least strength."""
    broken = tried["broken"]
    return not broken, -tried["strength"] if broken else tried["combined_score"]


def worth_of_record(record: dict[str, Any]) -> tuple[bool, float]:
    """What a demo is worth by its best strength."""
    return worth({**record, "strength": record["best_strength"]})


def score(magnitude: float, positive: float, negative: float, strangers: float) -> dict[str, Any]:
    """One strength's distances and score; broken when either picture is as far away as a stranger."""
    consistency, combined = demo_score(positive, negative)
    return {
        "strength": magnitude,
        "pos_lpips": positive,
        "neg_lpips": negative,
        "consistency": consistency,
        "combined_score": combined,
        "broken": max(positive, negative) >= strangers,
    }


def save_pictures(bench: Bench, feature: int, image_id: int, made: Steered, strengths: list[float]) -> None:
    files = bench.context.files
    save_image(files.demo(feature, image_id, 0.0), Image.fromarray(made.baseline.numpy()))
    for strength, pixels in zip(strengths, made.pictures.numpy(), strict=True):
        save_image(files.demo(feature, image_id, strength), Image.fromarray(pixels))


def write_ids(context: Context, ledger: Ledger) -> None:
    ids = {
        str(record["feature_id"]): [
            {"image_id": demo["image_id"], "strength": demo["best_strength"]} for demo in record["best_demos"]
        ]
        for record in ledger.records
    }
    write_json(context.files.best_demo_ids, ids)
