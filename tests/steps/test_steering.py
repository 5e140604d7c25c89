"""Steps 7, 10 and 11 on a real small run, one picture, the self-check, and everything that can be wrong."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from fluxscope.commands.main import build_app
from fluxscope.errors import ConfigError, MissingInputError, RecordError
from fluxscope.files import load_npy, read_json, write_json
from fluxscope.measures.clip import open_picture
from fluxscope.models.model import Model
from fluxscope.progress import Reporter
from fluxscope.run.freshness import Work
from fluxscope.run.ledger import Ledger
from fluxscope.run.manifest import load_manifest
from fluxscope.run.rundir import RunDir, shown
from fluxscope.run.site_map_records import Share
from fluxscope.run.steering_records import DemoCandidates, DemoIds, GridsSummary, OfFeature, SteeringSummary
from fluxscope.run.step_log import StepLog
from fluxscope.run.strict_json import part
from fluxscope.sae.formats import load, save
from fluxscope.settings.config import make_config
from fluxscope.shapes.shipped import DONOR_SCORES, shipped_sae
from fluxscope.steps import find_demos, steer
from fluxscope.steps.find_demos import pick_candidates, score, worth
from fluxscope.steps.pipeline import parse_pipeline_steps, run_pipeline
from tests.conftest import run_steps

SMALL = {
    "max_prompts": 8,
    "num_inference_steps": 6,
    "target_step_number": 4,
    "compare_layers": False,
    "top_examples_per_feature": 1,
    "min_prompts": 2,
    "steer_features": 2,
    "steer_images": 1,
    "steer_scales": (0, 1, 3),
    "steer_strengths": (-20, 20, 60),
    "steer_steps": "2-4",
    "demo_candidates": 3,
    "demo_finalists": 2,
    "demo_kept": 1,
    "demo_strengths": (5, 20),
}
DEAD = 11
STEER_FLAGS = [
    *("--layer", "15"),
    *("--num-inference-steps", "6", "--target-step-number", "4", "--seed", "3"),
    *("--prompt", "a large red circle on a white background"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with steps 1-4, 7, 10 and 11, by an SAE whose feature DEAD is never active."""
    folder = tmp_path_factory.mktemp("steering")
    sae, info = load(make_config().sae_ckpt_path)
    sae.encoder.bias[DEAD] = -1e9
    path = save(folder / "sae_best.pt", sae, info.config)
    config = make_config(out_dir=str(folder / "run"), layer15_sae_path=str(path), **SMALL)
    run_steps(config, "1-4,7,10,11")
    return config


@pytest.fixture
def copy(made, tmp_path):
    """The same in a folder of its own, to write in."""
    shutil.copytree(made.out_dir, tmp_path / "run")
    return dataclasses.replace(made, out_dir=str(tmp_path / "run"))


def test_the_site_s_donor_score_stands_in_every_record_and_a_new_one_in_the_titles_of_step_7(
    copy, monkeypatch
):
    """Step 10 makes no picture again for it: step 11 writes the titles of its demos. Step 7 draws its own."""
    files = RunDir.of(copy)

    def told():
        found = map(read_json, (files.selected_features, files.steering_summary, files.best_demo_candidates))
        return [each.get("config", each)["donor_score"] for each in found]

    assert told() == [read_json(DONOR_SCORES)["sites"]["double.15.ff"]] * 3
    own = Share(hits=3, n=4, share=0.75, low=0.3, high=0.95)
    cell = {"name": "ff:15", "kind": "ff", "blocks": [15, 15], "window": [1.0, 0.0], "steps": [0, 5]}
    cell |= {"sites": ["double.15.ff"], "control": "donor", "score": own.to_json()}
    of_model = {"model_id": copy.model_id, "measure": "oracle", "words": "", "distance": "clip", "sigmas": []}
    rest = {"made_with": {}, "pairs": [], "donors": cell, "ranked": ["ff:15"], "cells": [cell]}
    write_json(files.site_map, of_model | rest)
    grid = files.root / read_json(files.steering_summary)["experiments"][0]["grid_path"]
    before = grid.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Model, "sample", lambda *_, **__: pytest.fail("pictures were made again"))
        run_steps(copy, "4,10")
    run_steps(copy, "7")
    assert grid.read_bytes() != before
    monkeypatch.setattr(Model, "sample", lambda *_, **__: pytest.fail("pictures were made again"))
    run_steps(copy, "4,7,10")
    assert told() == [own.to_json()] * 3


def chosen(config):
    return [record["feature_id"] for record in read_json(RunDir.of(config).selected_features)["features"]][:2]


def test_step_7_steers_every_selected_feature_and_records_what_it_did(made):
    files = RunDir.of(made)
    summary = read_json(files.steering_summary)
    assert summary["scales"] == [0, 1, 3] and summary["strengths"] == [-20, 20, 60]
    assert summary["distance"] == "lpips-form on clip-shapes"
    assert [e["feature_id"] for e in summary["experiments"]] == chosen(made)
    for experiment in summary["experiments"]:
        unchanged = next(row for row in experiment["scaled"] if row["value"] == 1)
        assert unchanged == {"value": 1, "distance": 0, "inside": 0, "outside": 0}
        assert len(experiment["added"]) == len(experiment["random_direction"]) == 3
        assert experiment["unit"] > 0 and experiment["strength_unit"] == "activation"
        assert set(experiment["dose_response"]) == {"positive", "negative"}
        for key in ("grid_path", "strength_grid_path"):
            assert open_picture(files.root / experiment[key]).width > 500


def test_the_baseline_is_the_picture_that_step_1_made(made):
    files = RunDir.of(made)
    _, manifest = load_manifest(files.manifest, files.root)
    for experiment in read_json(files.steering_summary)["experiments"]:
        feature, image = experiment["feature_id"], experiment["image_id"]
        steered = np.asarray(open_picture(files.steered(feature, image, "baseline")), int)
        collected = np.asarray(open_picture(manifest[image]["image_path"]), int)
        assert np.abs(steered - collected).max() <= 2
        same = np.asarray(open_picture(files.steered(feature, image, "scale_1.0")), int)
        assert (
            same == np.asarray(open_picture(files.steered(feature, image, "baseline")), int)
        ).mean() > 0.99


def test_step_10_keeps_the_best_demos_with_all_their_pictures(made):
    files = RunDir.of(made)
    found = read_json(files.best_demo_candidates)
    assert found["config"]["strengths"] == [5, 20]
    for record in found["features"]:
        assert len(record["best_demos"]) == 1
        assert len(record["all_scored"]) == len(record["candidates"]["image_ids"]) <= 3
        best = record["best_demos"][0]
        assert best["best_strength"] in (5, 20)
        assert best["combined_score"] == pytest.approx(
            (best["pos_lpips"] + best["neg_lpips"]) / 2 * (0.5 + 0.5 * best["consistency"])
        )
        for strength in (0, 5, -5, 20, -20):
            assert files.demo(record["feature_id"], best["image_id"], float(strength)).is_file()
    ids = read_json(files.best_demo_ids)
    assert set(ids) == {str(record["feature_id"]) for record in found["features"]}


def test_scripts_that_know_only_the_contracts_keys_find_every_demo(made):
    files = RunDir.of(made)
    found = read_json(files.best_demo_candidates)
    config = found["config"]
    expected = {
        **{"n_candidates_to_sample": 3, "n_candidates_to_test": 2, "n_final": 1, "test_strengths": [5, 20]},
        **{"step_range": [2, 4], "min_percentile": 70, "max_percentile": 95, "seed": 42, "save_images": True},
    }
    assert {key: config[key] for key in expected} == expected
    for record in found["features"]:
        folder = files.best_demos / f"feature_{record['feature_id']}"
        for demo in record["best_demos"]:
            size = open_picture(folder / f"{demo['image_id']:06d}_baseline.png").size
            for strength in config["test_strengths"]:
                for way in ("pos", "neg"):
                    path = folder / f"{demo['image_id']:06d}_{way}_{strength:.0f}.png"
                    assert open_picture(path).size == size


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((SteeringSummary, "steering_summary"), (DemoCandidates, "best_demo_candidates")),
        *((DemoIds, "best_demo_ids"), (GridsSummary, "steering_grids_summary")),
    ],
)
def test_a_file_that_is_read_and_written_keeps_its_bytes(made, tmp_path, kind, name):
    files = RunDir.of(made)
    kind.read(getattr(files, name), files.root).write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == getattr(files, name).read_bytes()


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"feature_id": "/../../../x"}, r"features\[0\]\.feature_id"),
        ({"best_demos": [{"image_id": "../x"}]}, r"features\[0\]\.best_demos\[0\]\.image_id"),
        ({"strength_unit": "\x1b[31m"}, r"features\[0\]\.strength_unit"),
        ({"best_demos": {}}, r"features\[0\]\.best_demos"),
    ],
)
def test_hostile_demos_are_refused_by_step_11(copy, change, key):
    files = RunDir.of(copy)
    found = read_json(files.best_demo_candidates)
    found["features"][0] |= change
    write_json(files.best_demo_candidates, found)
    with pytest.raises(RecordError, match=key) as caught:
        run_steps(copy, "11", force=True)
    assert caught.value.message.isprintable()


def test_demos_with_the_contracts_fields_alone_are_assembled(copy):
    files = RunDir.of(copy)
    found = read_json(files.best_demo_candidates)
    keys = ("image_id", "prompt", "seed", "activation", "best_strength", "pos_lpips", "neg_lpips")
    theirs = {
        "config": {"test_strengths": found["config"]["test_strengths"]},
        "features": [
            {
                "feature_id": record["feature_id"],
                "best_demos": [
                    {key: demo[key] for key in (*keys, "consistency", "combined_score")}
                    for demo in record["best_demos"]
                ],
                "all_scored": [],
            }
            for record in found["features"]
        ],
    }
    before = read_json(files.steering_grids_summary)
    write_json(files.best_demo_candidates, theirs)
    run_steps(copy, "11", force=True)
    assert read_json(files.steering_grids_summary) == before


def test_step_11_assembles_the_kept_pictures_with_the_baseline_in_the_middle(made):
    files = RunDir.of(made)
    summary = read_json(files.steering_grids_summary)
    assert summary["strengths"] == [-20, -5, 0, 5, 20]
    assert len(summary["grids"]) == 2
    for grid in summary["grids"]:
        assert grid["grid_path"] == f"steering_grids/grid_f{grid['feature_id']}_d0.png"
        assert open_picture(files.root / grid["grid_path"]).width > 800
        strip = np.asarray(open_picture(files.root / grid["strip_path"]))
        middle = np.asarray(open_picture(files.demo(grid["feature_id"], grid["image_id"], 0.0)))
        assert (strip[:, 2 * 136 : 2 * 136 + 128] == middle).all()


def test_all_grids_go_on_one_sheet(made):
    result = CliRunner().invoke(build_app(), ["steering-sheet", "--out-dir", made.out_dir, *target_flags()])
    assert result.exit_code == 0, result.output
    assert RunDir.of(made).steering_contact_sheet.is_file()


def target_flags():
    return ["--num-inference-steps", "6", "--target-step-number", "4"]


def test_finished_steps_are_skipped(made, capsys):
    before = RunDir.of(made).steering_summary.stat().st_mtime_ns
    run_steps(made, "7,10,11")
    assert RunDir.of(made).steering_summary.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("step", "module", "work"), [("10", find_demos, "find_demos"), ("7", steer, "experiment")]
)
def test_a_stopped_step_goes_on_after_the_features_it_finished(copy, monkeypatch, step, module, work):
    files = RunDir.of(copy)
    summary = files.best_demo_candidates if step == "10" else files.steering_summary
    whole = read_json(summary)
    first, second = chosen(copy)
    begun = []
    original = getattr(module, work)

    def stopping(setup, feature, *rest):
        begun.append(feature)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return original(setup, feature, *rest)

    monkeypatch.setattr(module, work, stopping)
    summary.unlink()
    with pytest.raises(KeyboardInterrupt):
        run_steps(copy, step, force=True)
    assert not summary.exists()
    run_steps(copy, step)
    assert begun == [first, second, second]
    assert json.dumps(read_json(summary)) == json.dumps(whole)


def test_other_settings_are_not_mixed_with_finished_features(copy):
    other = dataclasses.replace(copy, steer_steps="1-2")
    run_steps(other, "7")
    summary = read_json(RunDir.of(other).steering_summary)
    assert summary["made_with"]["steer_steps"] == "1-2"
    assert len(summary["experiments"]) == 2


def test_one_bad_feature_does_not_stop_the_others(copy):
    files = RunDir.of(copy)
    selection = read_json(files.selected_features)
    good = selection["features"][0]
    bad = {**good, "feature_id": 99_999}
    write_json(files.selected_features, {**selection, "features": [bad, good]})
    run_steps(copy, "7,10")
    summary = read_json(files.steering_summary)
    assert [e["feature_id"] for e in summary["experiments"]] == [good["feature_id"]]
    assert summary["failed"] == [{"feature_id": 99_999, "error": "there is no feature 99999"}]
    assert read_json(files.best_demo_candidates)["failed"][0]["feature_id"] == 99_999


def test_a_feature_that_was_never_active_is_passed_over_or_warned_of(copy, capsys):
    files = RunDir.of(copy)
    assert load_npy(files.s_matrix)[:, DEAD].max() == 0
    selection = read_json(files.selected_features)
    record = {**selection["features"][0], "feature_id": DEAD}
    write_json(files.selected_features, {**selection, "features": [record]})
    by_activation = dataclasses.replace(copy, strength_unit="activation")
    with pytest.raises(MissingInputError, match="no feature could be steered"):
        run_steps(by_activation, "7")
    with pytest.raises(MissingInputError, match="no feature has a candidate"):
        run_steps(copy, "10")
    run_pipeline(copy, Reporter(), parse_pipeline_steps("7"))
    assert f"feature {DEAD} was never active in this run" in capsys.readouterr().out
    (experiment,) = read_json(files.steering_summary)["experiments"]
    assert (experiment["strength_unit"], experiment["unit"]) == ("absolute", 1.0)


@pytest.mark.parametrize("step", ["7", "10"])
def test_an_empty_selection_is_no_error_and_its_summary_is_empty(copy, step):
    selection = read_json(RunDir.of(copy).selected_features)
    write_json(RunDir.of(copy).selected_features, {**selection, "features": []})
    run_steps(copy, step)
    files = RunDir.of(copy)
    path, key = (
        (files.steering_summary, "experiments") if step == "7" else (files.best_demo_candidates, "features")
    )
    assert read_json(path)[key] == [] and read_json(path)["failed"] == []


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"steer_steps": "3-9"}, "steps 3-9 are not among the run's 6 steps"),
        ({"steer_strengths": (1.0, float("nan"))}, "steer_strengths cannot be"),
        ({"steer_site": "double.{layer}.fff"}, "unknown site"),
        ({"distance": "lpips"}, "LPIPS is not installed"),
    ],
)
def test_bad_settings_are_clear_errors(made, setting, message):
    with pytest.raises(ConfigError, match=message):
        run_steps(dataclasses.replace(made, **setting), "7")


def test_candidates_lie_between_the_percentiles_and_are_sampled_with_a_seed():
    config = make_config(demo_candidates=5)
    column = np.linspace(0, 1, 101, dtype=np.float32)
    found = pick_candidates(column, list(range(1000, 1101)), config, feature=3)
    assert found.how == "percentiles 70 to 95"
    assert len(found.image_ids) == 5 and found.n_pool == 26
    assert all(1070 <= image <= 1095 for image in found.image_ids)
    assert found == pick_candidates(column, list(range(1000, 1101)), config, feature=3)


def test_a_sparse_column_gives_the_active_images_below_the_maximum():
    column = np.zeros(100, np.float32)
    column[[3, 8, 20]] = 1.0, 5.0, 2.0
    found = pick_candidates(column, list(range(100)), make_config(), feature=0)
    assert found.how == "active, below the maximum"
    assert found.image_ids == [3, 20]
    column[[3, 20]] = 0
    alone = pick_candidates(column, list(range(100)), make_config(), feature=0)
    assert (alone.how, alone.image_ids) == ("active, at the maximum", [8])
    column[:] = 0
    with pytest.raises(MissingInputError, match="there are no candidates"):
        pick_candidates(column, list(range(100)), make_config(), feature=0)


def test_broken_pictures_are_no_demos_while_there_are_whole_ones():
    whole, broken = score(2.0, 0.1, 0.1, unrelated=0.5), score(8.0, 0.6, 0.6, unrelated=0.5)
    assert broken.combined_score > whole.combined_score
    assert max([whole, broken], key=worth) is whole
    assert max([score(8.0, 0.6, 0.6, 0.5), score(4.0, 0.6, 0.5, 0.5)], key=worth).strength == 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row(OfFeature):
    x: int = part("A number.")


def test_a_ledger_goes_on_only_with_features_of_the_same_key(tmp_path):
    def ledger(features, steps=(1, 2), anew=False):
        work = Work(StepLog.open(tmp_path / "step_log.json"), "steer", {"steps": steps, "features": 2}, anew)
        return Ledger(work, {feature: {"features": None} for feature in features}, Row)

    first = ledger([5, 6])
    first.do(6, lambda: [Row(feature_id=6, x=1), Row(feature_id=6, x=2)])
    assert first.missing == [5]
    again = ledger([6, 7])
    assert again.missing == [7] and [r.x for r in again.records] == [1, 2]
    assert ledger([6], steps=(1, 3)).missing == [6]
    assert ledger([6], anew=True).missing == [6]
    again.write(tmp_path / "summary.json", "features", {"steps": (1, 2)})
    assert [r["x"] for r in read_json(tmp_path / "summary.json")["features"]] == [1, 2]
    assert ledger([6]).missing == []


@pytest.mark.parametrize(
    ("number", "decimals", "text"), [(2.0, 1, "2.0"), (0.25, 1, "0.25"), (100.0, 0, "100"), (2.5, 0, "2.5")]
)
def test_no_two_strengths_share_a_file(number, decimals, text):
    assert shown(number, decimals) == text


def fluxscope(*arguments):
    return CliRunner().invoke(build_app(), arguments)


def test_one_picture_beside_its_baseline_needs_no_run(tmp_path):
    out = ["--out-dir", str(tmp_path / "run")]
    how = ["--feature", "3", "--strength", "-300", "--denoise-steps", "2-4"]
    result = fluxscope("steer", *how, *STEER_FLAGS, *out)
    assert result.exit_code == 0, result.output
    assert "active on" in result.output and "distance from the baseline" in result.output
    folder = tmp_path / "run" / "steering" / "once"
    sheet = min(folder.iterdir(), key=lambda path: len(path.name))
    assert re.fullmatch(r"feature_3_strength_-300_steps_2-4_seed_3_[0-9a-f]{8}", sheet.stem)
    baseline, steered = (
        np.asarray(open_picture(folder / f"{sheet.stem}_{what}.png"), int) for what in ("baseline", "steered")
    )
    assert np.abs(baseline - steered).mean() > 0.5
    assert open_picture(sheet).width > 800


def test_one_picture_by_a_feature_that_the_run_never_saw_active_warns(made, tmp_path):
    options = ["--out-dir", made.out_dir, "--layer15-sae-path", made.layer15_sae_path]
    result = fluxscope(
        "steer", "--feature", str(DEAD), "--strength", "5", "--denoise-steps", "5", *STEER_FLAGS, *options
    )
    assert result.exit_code == 0, result.output
    assert f"warning: feature {DEAD} was never active in {made.out_dir}" in result.output
    assert f"feature {DEAD}: active on 0 of 64 tokens" in result.output


def test_one_picture_by_several_features_in_a_region(tmp_path):
    out = ["--out-dir", str(tmp_path / "run")]
    result = fluxscope(
        *("steer", "--feature", "3,5", "--scale", "40,0", "--denoise-steps", "5"),
        *("--region", "0,0,64,64", *STEER_FLAGS, *out),
    )
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "run" / "steering" / "once").iterdir())) == 3


def test_another_request_leaves_earlier_pictures_in_place(tmp_path):
    """Every part of a request and every setting that the picture depends on is in its name."""
    folder = tmp_path / "run" / "steering" / "once"
    short = ["--num-inference-steps", "2", "--target-step-number", "1", "--denoise-steps", "0"]
    usual = {"--strength": "5", "--prompt": "a large red circle", "--seed": "3"}
    others = [{}, {"--prompt": "a small blue square"}, {"--seed": "4"}, {"--region": "0,0,64,64"}]
    others += [{"--guidance-scale": "1"}, {"--steer-schedule": "fade_out"}, {"--layer": "5"}]
    kept = {}
    for number, other in enumerate(others, start=1):
        flags = [part for pair in {**usual, **other}.items() for part in pair]
        result = fluxscope(
            "steer", "--feature", "3", *flags, *short, "--out-dir", str(tmp_path / "run"), "--quiet"
        )
        assert result.exit_code == 0, result.output
        found = {path.name: path.read_bytes() for path in folder.parents[1].rglob("once/*.png")}
        assert len(found) == 3 * number, other
        assert kept.items() <= found.items()
        kept = found


def test_an_sae_trained_anew_under_the_same_path_leaves_earlier_pictures_in_place(tmp_path):
    """What counts is what the SAE's file holds, and not where it lies."""
    path, folder = tmp_path / "sae.pt", tmp_path / "run" / "steering" / "once"
    sae, info = load(shipped_sae(15))
    save(path, sae, info.config)
    shutil.copy(path, tmp_path / "moved.pt")
    flags = ["--num-inference-steps", "2", "--target-step-number", "1", "--denoise-steps", "0", "--quiet"]
    flags += ["--feature", "3", "--strength", "-300", "--prompt", "a large red circle", "--seed", "3"]

    def steered_with(where):
        options = ["--layer15-sae-path", str(where), "--out-dir", str(tmp_path / "run")]
        result = fluxscope("steer", *flags, *options)
        assert result.exit_code == 0, result.output
        return {file.name: file.read_bytes() for file in folder.iterdir()}

    first = steered_with(path)
    assert steered_with(tmp_path / "moved.pt") == first
    sae.decoder.weight.data[:, 3] *= -1
    save(path, sae, info.config)
    both = steered_with(path)
    assert len(both) == 2 * len(first) == 6
    assert first.items() <= both.items()
    pictures = {name: data for name, data in both.items() if name.endswith("_steered.png")}
    assert len(set(pictures.values())) == 2


def test_the_self_check_finds_the_wiring_sound(tmp_path):
    result = fluxscope(
        "steer", "--self-check", "--out-dir", str(tmp_path / "run"), *target_flags(), "--denoise-steps", "0-4"
    )
    assert result.exit_code == 0, result.output
    assert result.output.count("  ok   ") == 4
    assert "(largest change 0)" in result.output


def test_the_bench_tries_strengths_over_ranges(tmp_path):
    result = fluxscope(
        *("steer-bench", "--feature", "3", "--strengths", "50,200", "--denoise-ranges", "0-1,3-5"),
        *STEER_FLAGS,
        *("--out-dir", str(tmp_path / "run")),
    )
    assert result.exit_code == 0, result.output
    (sheet,) = (tmp_path / "run" / "steering" / "once").iterdir()
    assert re.fullmatch(r"feature_3_bench_seed_3_[0-9a-f]{8}\.png", sheet.name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--feature", "3", "--strength", "nan"], "--strength cannot be 'nan'"),
        (["--feature", "9999", "--strength", "1"], "there is no feature 9999"),
        (["--feature", "x", "--strength", "1"], "--feature cannot be 'x'"),
        (["--feature", "3"], "say in one way how to steer"),
        (["--feature", "3", "--strength", "1", "--scale", "2"], "steered in two ways"),
        (["--feature", "3,4", "--strength", "1,2,3"], "2 features cannot be steered by 3 numbers"),
        (["--feature", "3", "--strength", "1", "--denoise-steps", "4-9"], "steps 4-9 are not among"),
        (["--feature", "3", "--strength", "1", "--region", "0,0,500,10"], "no box inside a picture"),
        (["--feature", "3", "--strength", "1", "--strength-unit", "activation"], "no codes of"),
        (["--strength", "1"], "no feature is named"),
    ],
)
def test_mistakes_on_the_command_line_are_clear(tmp_path, arguments, message):
    result = fluxscope("steer", *arguments, *STEER_FLAGS, "--out-dir", str(tmp_path / "run"))
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_seed_without_a_feature_is_not_ignored(tmp_path):
    result = fluxscope("steer", "--seed", "3", "--out-dir", str(tmp_path / "run"))
    assert result.exit_code == 1
    assert "no feature is named" in result.stderr
