"""What steps 7, 10 and 11 show, made a second time by a plain pipeline with plain hooks.

A control that pushes along the feature, a picture under another's strength, inside and outside swapped or the
worst demos kept would fail here.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fluxscope.steps.steer as steer_step
from fluxscope.files import read_jsonl
from fluxscope.measures.clip import load_clip
from fluxscope.measures.distance import clip_distance
from fluxscope.run.codes import CodeStore
from fluxscope.run.rundir import RunDir
from fluxscope.run.site_map_records import DonorTable
from fluxscope.sae.formats import load
from fluxscope.settings.config import make_config
from fluxscope.shapes.shipped import DONOR_SCORES, resolve
from tests.conftest import run_steps

STEPS, FIRST, LAST = 6, 2, 4  # of denoising, and the first and last that are steered
SCALES, STRENGTHS, DEMO_STRENGTHS = (0, 1, 3), (-20, 20, 60), (5, 20)


@pytest.fixture(scope="module")
def steered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steered") / "run"
    config = make_config(
        out_dir=str(folder),
        max_prompts=8,
        num_inference_steps=STEPS,
        target_step_number=4,
        compare_layers=False,
        top_examples_per_feature=1,
        min_prompts=2,
        steer_features=2,
        steer_images=1,
        steer_scales=SCALES,
        steer_strengths=STRENGTHS,
        steer_steps=f"{FIRST}-{LAST}",
        demo_candidates=4,
        demo_finalists=2,
        demo_kept=1,
        demo_strengths=DEMO_STRENGTHS,
    )
    run_steps(config, "1-4,7,10,11")
    return config


@pytest.fixture
def copy(steered, tmp_path):
    """The same in a folder of its own, to write in."""
    shutil.copytree(steered.out_dir, tmp_path / "run")
    return dataclasses.replace(steered, out_dir=str(tmp_path / "run"))


@pytest.fixture(scope="module")
def distance(steered):
    return clip_distance(*load_clip(resolve(steered.clip_model_id)))


@pytest.fixture(scope="module")
def again(steered, model):
    """Make a run's picture anew: plain calls of the pipeline, with a change of the SAE site's output."""
    sae, _ = load(steered.sae_path(RunDir.of(steered).site))
    module = module_of(model.transformer, RunDir.of(steered).site)

    def make(prompt, seed, change):
        calls = []

        def hook(_, __, output):
            calls.append(None)
            image = output[0] if isinstance(output, tuple) else output
            new = change(sae, image) if FIRST <= len(calls) - 1 <= LAST else image
            return (new, *output[1:]) if isinstance(output, tuple) else new

        handle = module.register_forward_hook(hook)
        try:
            return model.pictures([prompt], [seed], spec=spec_of(model))[0].numpy()
        finally:
            handle.remove()

    return make


def module_of(transformer, site):
    """The module whose output the site is: double.15.ff or double.5.attn."""
    _, block, part = site.split(".")
    return getattr(transformer.transformer_blocks[int(block)], part)


def spec_of(model):
    return dataclasses.replace(model.defaults, steps=STEPS)


def adding(amount, direction):
    unit = direction / direction.norm()
    return lambda sae, x: x + amount * unit.to(x)


def scaling(scale, feature):
    def change(sae, x):
        code = sae.encode(x)[..., feature : feature + 1]
        return x + (scale - 1) * code * sae.decoder.weight[:, feature]

    return change


def picture(path):
    return np.asarray(Image.open(path).convert("RGB"))


def same(a, b):
    """Equal but for the float noise of batches: a level or two at few pixels."""
    difference = np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int))
    return difference.max() <= 3 and (difference > 1).mean() < 0.01


def experiments(steered):
    summary = json.loads((Path(steered.out_dir) / "steering/steering_summary.json").read_text())
    assert len(summary["experiments"]) == 2
    return summary["experiments"]


def codes_of(steered, image_id):
    files = RunDir.of(steered)
    place = [row["image_id"] for row in read_jsonl(files.manifest)].index(image_id)
    store = CodeStore(files.codes, files.site, steered.target_step_index)
    return store.image(place).to_dense().numpy()


def all_values(steered, feature):
    n = len(read_jsonl(RunDir.of(steered).manifest))
    store = CodeStore(RunDir.of(steered).codes, RunDir.of(steered).site, steered.target_step_index)
    return np.concatenate([store.image(i).to_dense().numpy()[:, feature] for i in range(n)])


# Step 7


def test_pictures_of_scales_and_strengths_are_those_of_plain_hooks(steered, again):
    folder = Path(steered.out_dir) / "steering"
    sae, _ = load(steered.sae_path(RunDir.of(steered).site))
    for record in experiments(steered):
        feature, image, who = record["feature_id"], record["image_id"], (record["prompt"], record["seed"])
        values = all_values(steered, feature)
        assert record["unit"] == pytest.approx(np.percentile(values[values > 0], 99), rel=1e-4)
        own = folder / f"feature_{feature}"
        for scale in SCALES:
            kept = picture(own / f"image_{image:06d}_scale_{scale:.1f}.png")
            assert same(kept, again(*who, scaling(scale, feature))), scale
        for strength in STRENGTHS:
            kept = picture(own / f"image_{image:06d}_strength_{strength:.1f}.png")
            push = adding(strength * record["unit"], sae.decoder.weight[:, feature])
            assert same(kept, again(*who, push)), strength
        assert same(picture(own / f"image_{image:06d}_baseline.png"), again(*who, lambda _, x: x))


def test_what_step_7_records_of_a_picture_is_measured_on_that_picture(steered, again, distance):
    folder = Path(steered.out_dir) / "steering"
    for record in experiments(steered):
        feature, image = record["feature_id"], record["image_id"]
        own = folder / f"feature_{feature}"
        baseline = picture(own / f"image_{image:06d}_baseline.png")
        heat = heat_of(steered, codes_of(steered, image)[:, feature])
        for kind, key, values in (("scale", "scaled", SCALES), ("strength", "added", STRENGTHS)):
            assert [effect["value"] for effect in record[key]] == list(values)
            for effect in record[key]:
                changed = picture(own / f"image_{image:06d}_{kind}_{effect['value']:.1f}.png")
                check_effect(effect, changed, baseline, heat, distance)


def check_effect(effect, changed, baseline, heat, distance, slack=1e-4):
    assert effect["distance"] == pytest.approx(float(distance([changed], [baseline])[0]), abs=slack)
    change = np.abs(changed.astype(float) - baseline.astype(float)).mean(2) / 255
    inside, outside = (change * heat).sum() / heat.sum(), (change * (1 - heat)).sum() / (1 - heat).sum()
    assert effect["inside"] == pytest.approx(inside, rel=0.02, abs=slack)
    assert effect["outside"] == pytest.approx(outside, rel=0.02, abs=slack)


def heat_of(steered, tokens):
    """The token map spread over the picture, 0 to 1."""
    full = np.percentile(tokens, steered.clip_percentile)
    share = np.clip(tokens / (full if full > 1e-6 else tokens.max()), 0, 1).astype(np.float32)
    grid = Image.fromarray(share.reshape(steered.image_token_grid))
    return np.asarray(grid.resize((steered.width, steered.height), Image.Resampling.BILINEAR))


def test_the_control_has_the_norm_of_the_feature_and_another_direction(
    steered, copy, again, distance, monkeypatch
):
    """Every push of step 7, as it reaches the model: the feature's, and one that is nearly orthogonal."""
    pushes = []
    make = steer_step.by_strength
    monkeypatch.setattr(
        steer_step, "by_strength", lambda *args: pushes.append(recorded(args, make)) or pushes[-1][0]
    )
    run_steps(copy, "7", force=True)
    sae, _ = load(steered.sae_path(RunDir.of(steered).site))
    for record, (_, rows) in zip(experiments(steered), pushes, strict=True):
        direction = sae.decoder.weight[:, record["feature_id"]]
        amounts = [row[0].amount for row in rows]
        assert amounts == pytest.approx([s * record["unit"] for s in STRENGTHS] * 2)
        own, controls = rows[: len(STRENGTHS)], rows[len(STRENGTHS) :]
        assert all(row[0].feature == record["feature_id"] and row[0].direction is None for row in own)
        for row, effect in zip(controls, record["random_direction"], strict=True):
            other = row[0].direction
            cosine = torch.nn.functional.cosine_similarity(other, direction, dim=0)
            assert row[0].feature is None and abs(float(cosine)) < 0.4
            pushed = again(record["prompt"], record["seed"], adding(row[0].amount, other))
            baseline = again(record["prompt"], record["seed"], lambda _, x: x)
            heat = heat_of(steered, codes_of(steered, record["image_id"])[:, record["feature_id"]])
            check_effect(effect, pushed, baseline, heat, distance, slack=2e-3)


def recorded(args, make):
    """A call of by_strength: what it made, and the rows of changes that reached the steerer."""
    steerer, rows = args[0].steerer, []
    steer = type(steerer).steer

    def listening(self, prompt, seed, changes, *scopes, **options):
        rows.extend(changes)
        return steer(self, prompt, seed, changes, *scopes, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(steerer), "steer", listening)
        return make(*args), rows


def test_a_grid_shows_each_picture_under_its_own_strength(copy, monkeypatch):
    drawn, told = [], []
    draw = steer_step.labelled_grid

    def note(rows, labels, *args, **options):
        drawn.append((rows, labels, options.get("baseline")))
        told.append(options["title"] + options["subtitle"])
        return draw(rows, labels, *args, **options)

    monkeypatch.setattr(steer_step, "labelled_grid", note)
    run_steps(copy, "7", force=True)
    score = DonorTable.read(DONOR_SCORES).sites[RunDir.of(copy).site]
    assert all(f"donor score {score.share:.0%}" in words for words in told)
    assert all(("cannot act here" in words) == (score.share < 0.1) for words in told)
    for number, record in enumerate(experiments(copy)):
        own = Path(copy.out_dir) / "steering" / f"feature_{record['feature_id']}"
        name = f"image_{record['image_id']:06d}"
        (scales, labels, unchanged), (strengths, names, middle) = drawn[2 * number : 2 * number + 2]
        assert labels == ["0x", "1x", "3x"] and unchanged == 1
        for column, (scale, effect) in enumerate(zip(SCALES, record["scaled"], strict=True)):
            np.testing.assert_array_equal(
                scales[0].pictures[column], picture(own / f"{name}_scale_{scale:.1f}.png")
            )
            assert f"{effect['distance']:.3f}" in scales[0].notes[column]
        assert names == ["-20", "0", "+20", "+60"] and middle == 1
        for row, key in zip(strengths, ("added", "random_direction"), strict=True):
            notes = [note for place, note in enumerate(row.notes) if place != middle]
            assert [note.split()[-1] for note in notes] == [f"{e['distance']:.3f}" for e in record[key]]
            np.testing.assert_array_equal(row.pictures[middle], picture(own / f"{name}_baseline.png"))
        for column, strength in ((0, -20), (2, 20), (3, 60)):
            kept = picture(own / f"{name}_strength_{strength:.1f}.png")
            np.testing.assert_array_equal(strengths[0].pictures[column], kept)
            assert not np.array_equal(strengths[1].pictures[column], kept)


# Step 10


def demos(steered):
    return json.loads((Path(steered.out_dir) / "best_demos/best_demo_candidates.json").read_text())[
        "features"
    ]


def test_candidates_lie_between_the_percentiles_and_carry_their_own_activation(steered):
    s = np.load(Path(steered.out_dir) / "S_matrix.npy")
    place = {row["image_id"]: i for i, row in enumerate(read_jsonl(RunDir.of(steered).manifest))}
    for record in demos(steered):
        column, found = s[:, record["feature_id"]], record["candidates"]
        assert (found["low"], found["high"]) == pytest.approx(tuple(np.percentile(column, [70, 95])))
        for image, activation in zip(found["image_ids"], found["activations"], strict=True):
            assert activation == column[place[image]] > 1e-4
            assert activation < column.max() or found["how"] == "active, at the maximum"
            assert found["low"] <= activation <= found["high"] or found["low"] <= 1e-4


def test_demos_are_the_best_of_all_and_their_distances_those_of_their_pictures(steered, again, distance):
    rows = {row["image_id"]: row for row in read_jsonl(RunDir.of(steered).manifest)}
    sae, _ = load(steered.sae_path(RunDir.of(steered).site))
    for record in demos(steered):
        feature, folder = (
            record["feature_id"],
            Path(steered.out_dir) / f"best_demos/feature_{record['feature_id']}",
        )
        direction = sae.decoder.weight[:, feature]
        (best,) = record["best_demos"]
        finals = [demo for demo in record["all_scored"] if len(demo["tries"]) == len(DEMO_STRENGTHS)]
        screened = [demo for demo in record["all_scored"] if demo not in finals]
        assert len(finals) == min(2, len(record["all_scored"])) and best in finals
        assert worth(best) == max(map(worth, finals))
        screening = {
            d["image_id"]: next(t for t in d["tries"] if t["strength"] == record["screened_at"])
            for d in record["all_scored"]
        }
        least = min(worth_of_try(screening[demo["image_id"]]) for demo in finals)
        assert all(worth_of_try(screening[demo["image_id"]]) <= least for demo in screened)
        baseline = picture(folder / f"{best['image_id']:06d}_baseline.png")
        who = (rows[best["image_id"]]["prompt"], rows[best["image_id"]]["seed"])
        assert (best["prompt"], best["seed"]) == who
        for tried in best["tries"]:
            for way, sign in (("pos", 1), ("neg", -1)):
                kept = picture(folder / f"{best['image_id']:06d}_{way}_{tried['strength']:.0f}.png")
                push = adding(sign * tried["strength"] * record["unit"], direction)
                assert same(kept, again(*who, push)), (way, tried["strength"])
                measured = float(distance([kept], [baseline])[0])
                assert tried[f"{way}_lpips"] == pytest.approx(measured, abs=1e-4)
            low, high = sorted((tried["pos_lpips"], tried["neg_lpips"]))
            assert tried["consistency"] == pytest.approx(low / high)
            assert tried["combined_score"] == pytest.approx((low + high) / 2 * (0.5 + 0.5 * low / high))
            assert tried["broken"] == (high >= record["distance_of_strangers"])
        chosen = max(best["tries"], key=worth_of_try)
        assert best["best_strength"] == chosen["strength"]
        assert best["combined_score"] == chosen["combined_score"]


def worth(demo):
    return not demo["broken"], -demo["best_strength"] if demo["broken"] else demo["combined_score"]


def worth_of_try(tried):
    return not tried["broken"], -tried["strength"] if tried["broken"] else tried["combined_score"]


def test_the_distance_of_strangers_is_that_of_pictures_of_other_prompts(steered, distance):
    """The median over all pairs, which that over drawn pairs estimates."""
    rows = read_jsonl(RunDir.of(steered).manifest)
    pictures = [picture(Path(steered.out_dir) / row["image_path"]) for row in rows]
    pairs = [(a, b) for a in range(len(rows)) for b in range(a) if rows[a]["prompt"] != rows[b]["prompt"]]
    median = np.median(distance([pictures[a] for a, _ in pairs], [pictures[b] for _, b in pairs]))
    for record in [*experiments(steered), *demos(steered)]:
        assert record["distance_of_strangers"] == pytest.approx(median, rel=0.15)


# Step 11


def test_strips_hold_the_demos_pictures_from_the_strongest_down_to_the_strongest_up(steered):
    summary = json.loads((Path(steered.out_dir) / "steering_grids/steering_grids_summary.json").read_text())
    best = {record["feature_id"]: record["best_demos"] for record in demos(steered)}
    for grid in summary["grids"]:
        demo = best[grid["feature_id"]][grid["demo_idx"]]
        assert (grid["image_id"], grid["score"]) == (demo["image_id"], demo["combined_score"])
        strip = picture(Path(steered.out_dir) / grid["strip_path"])
        folder = Path(steered.out_dir) / f"best_demos/feature_{grid['feature_id']}"
        order = ("neg_20", "neg_5", "baseline", "pos_5", "pos_20")
        for place, name in enumerate(order):
            left = place * (steered.width + 8)
            kept = picture(folder / f"{demo['image_id']:06d}_{name}.png")
            np.testing.assert_array_equal(strip[:, left : left + steered.width], kept)
