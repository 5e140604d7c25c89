"""Runs that select nothing, one feature, or features that nothing ranks: each step says so and succeeds."""

import shutil
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from fluxscope.commands.main import build_app
from fluxscope.files import read_json, write_json
from fluxscope.progress import Reporter
from fluxscope.run.records import Selection
from fluxscope.run.rundir import RunDir
from fluxscope.settings.config import make_config
from fluxscope.steps.contact_sheet import title_of, warning_of
from fluxscope.steps.pipeline import parse_pipeline_steps, run_pipeline

LATER = "5,6,7,8,9,10,11"
QUICK = {
    **{"num_inference_steps": 3, "target_step_number": 2, "batch_size": 8, "steer_images": 1},
    **{"steer_scales": (0, 1), "steer_strengths": (-4, 4), "demo_strengths": (4,), "demo_candidates": 1},
    **{"demo_finalists": 1, "demo_kept": 1, "max_prompts": 4, "reps_per_prompt": 1},
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Steps 1 to 4 on four prompts."""
    config = make_config(out_dir=str(tmp_path_factory.mktemp("few") / "run"), **QUICK)
    run_pipeline(config, Reporter(quiet=True), parse_pipeline_steps("1-4"))
    return config


@pytest.fixture
def config(begun, tmp_path):
    shutil.copytree(begun.out_dir, tmp_path / "run")
    return replace(begun, out_dir=str(tmp_path / "run"))


def select(config, features):
    path = RunDir.of(config).selected_features
    write_json(path, {**read_json(path), "features": features})


def summaries(files):
    """How many entries each step's summary holds."""
    lists = {
        files.overlay_summary: "items",
        files.steering_summary: "experiments",
        files.decoder_stats: "features",
        files.best_demo_candidates: "features",
        files.best_demo_ids: None,
        files.steering_grids_summary: "grids",
    }
    return [len(read_json(path)[key] if key else read_json(path)) for path, key in lists.items()]


def pictures(files):
    made = {*files.root.rglob("*.png")} - {*files.images.rglob("*.png")}
    return {path for path in made if files.layer_comparison not in path.parents}


def test_one_feature_is_shown_by_every_step_and_an_empty_selection_clears_it_away(config, capsys):
    files, features = RunDir.of(config), read_json(RunDir.of(config).selected_features)["features"]
    select(config, features[:1])
    run_pipeline(config, Reporter(), parse_pipeline_steps(LATER))
    assert summaries(files) == [len(features[0]["example_image_ids"]), 1, 1, 1, 1, 1]
    assert read_json(files.decoder_stats)["pairwise_similarities"] == []
    drawn = (files.contact_sheet, files.decoder_directions, files.decoder_similarity_matrix)
    assert all(path.is_file() for path in drawn)
    assert len(pictures(files)) > 8
    capsys.readouterr()

    select(config, [])
    run_pipeline(config, Reporter(), parse_pipeline_steps(LATER))
    said = capsys.readouterr().out
    assert said.count("nothing is selected") == 5  # steps 5, 6, 7, 8 and 10
    assert said.count("there are no demos to lay out") == 1
    assert summaries(files) == [0] * 6
    assert pictures(files) == set()
    assert files.comparison_summary.is_file()  # step 9 compares all features, selected or not

    run_pipeline(config, Reporter(), parse_pipeline_steps(LATER))
    assert capsys.readouterr().out.count("up to date") == 7

    for command, told in (
        ("steps-profile", "no feature is selected"),
        ("steering-sheet", "no feature has a demo"),
    ):
        done = CliRunner().invoke(build_app(), [command, "--out-dir", config.out_dir])
        assert done.exit_code == 0 and told in done.output, done.output


def test_features_that_nothing_ranks_are_not_called_the_best(tmp_path, capsys):
    """Two prompts: every feature's top pictures are the same two, and so is every coherence."""
    (tmp_path / "prompts.txt").write_text(
        "a large red circle on a white background\na small blue star on a gray background\n"
    )
    paths = {"out_dir": str(tmp_path / "run"), "prompts_path": str(tmp_path / "prompts.txt")}
    config = make_config(**{**QUICK, **paths})
    run_pipeline(config, Reporter(), parse_pipeline_steps("1-4"))
    said, path = capsys.readouterr().out, RunDir.of(config).selected_features
    selection = Selection.read(path)
    scores = [each.clip_coherence for each in selection.features]
    assert len(scores) == 10 and max(scores) - min(scores) < 1e-6
    assert "10 features selected; all have the same clip_coherence: they stand by number" in said
    assert "the first:" not in said
    assert [each.feature_id for each in selection.features] == sorted(
        each.feature_id for each in selection.features
    )
    assert (
        title_of(selection) == "10 features of the same CLIP coherence: shown by number, nothing ranks them"
    )
    alone = replace(selection, features=selection.features[:1])
    assert title_of(alone) == "The feature with the highest CLIP coherence"


def test_features_of_different_scores_are_ranked(begun):
    selection = Selection.read(RunDir.of(begun).selected_features)
    first = replace(selection.features[0], chosen_score=None)  # as older files, by the score's own name
    second = replace(first, feature_id=first.feature_id + 1)
    by_z = replace(selection, rank_by="frequency")
    apart = [replace(first, frequency=0.5), replace(second, frequency=0.25)]
    assert title_of(replace(by_z, features=apart)) == "The 2 features with the highest frequency"
    same = [replace(first, frequency=0.5), replace(second, frequency=0.5)]
    assert title_of(replace(by_z, features=same)).startswith("2 features of the same frequency")
    assert title_of(replace(selection, rank_by="of another program")).startswith("The ")
    apart = [replace(first, chosen_score=0.5), replace(second, chosen_score=0.25)]
    assert title_of(replace(by_z, features=apart)) == "The 2 features with the highest frequency"
    same = [replace(first, chosen_score=0.5), replace(second, chosen_score=0.5)]
    assert title_of(replace(by_z, features=same)).startswith("2 features of the same frequency")


def test_a_few_prompts_cannot_tell_and_one_can_rank_nothing(tmp_path, capsys):
    """Eight prompts rank but tell nothing of chance; one prompt selects nothing and the run goes on."""
    eight = make_config(**{**QUICK, "out_dir": str(tmp_path / "eight"), "max_prompts": 8})
    run_pipeline(eight, Reporter(), parse_pipeline_steps("1-4"))
    assert "8 prompts are not enough pictures to tell features from chance" in capsys.readouterr().out
    selection = Selection.read(RunDir.of(eight).selected_features)
    assert selection.rank_by == "clip_held_out" and selection.num_beating_chance is None
    for each in selection.features:
        assert (each.shown_score, each.p_value, each.q_value) == (None, None, None)
        assert each.chosen_score == each.clip_held_out
        assert warning_of(each, selection) == "not enough pictures to tell from chance"
    one = make_config(**{**QUICK, "out_dir": str(tmp_path / "one"), "max_prompts": 1})
    run_pipeline(one, Reporter(), parse_pipeline_steps("1-6"))
    said = capsys.readouterr().out
    assert "no feature is active on enough of the 1 pictures" in said
    assert "1 prompt is not enough pictures to tell" in said
    assert Selection.read(RunDir.of(one).selected_features).features == []
