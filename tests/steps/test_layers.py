"""Many sites and steps in one pass: what is generated, and what is only looked up."""

import math
import shutil

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel

from fluxscope.commands.steps_profile import profile_steps
from fluxscope.errors import ConfigError, MissingInputError
from fluxscope.files import load_npy, read_json
from fluxscope.progress import Reporter
from fluxscope.run.activations import ActivationStore
from fluxscope.run.codes import CodeStore
from fluxscope.run.context import Context
from fluxscope.run.manifest import load_manifest
from fluxscope.run.rundir import RunDir
from fluxscope.settings.config import make_config
from fluxscope.steps import pipeline
from fluxscope.steps.step import run_step
from tests.conftest import SMALL, run_steps


@pytest.fixture
def calls(monkeypatch):
    """How often the transformer was called."""
    counted = []
    forward = FluxTransformer2DModel.forward
    monkeypatch.setattr(
        FluxTransformer2DModel, "forward", lambda self, *a, **k: counted.append(1) or forward(self, *a, **k)
    )
    return counted


STEERED = {
    **{"max_prompts": 6, "batch_size": 6, "num_inference_steps": 3, "target_step_number": 2},
    **{"min_prompts": 2, "top_features": 2, "top_examples_per_feature": 1},
    **{"steer_features": 1, "steer_images": 1, "steer_steps": "1-2", "steer_scales": (0, 1, 2)},
    **{
        "steer_strengths": (-4, 0, 4, 8),
        "demo_candidates": 2,
        "demo_finalists": 1,
        "demo_strengths": (2, 4, 8),
    },
}


def planned(config, files):
    """The transformer calls of each step, from what its results say that it made."""

    def steered(rows):  # from the first steered step on, in batches that hold a baseline each
        return math.ceil(rows / (config.batch_size - 1)) * (config.num_inference_steps - 1)

    manifest, _ = load_manifest(files.manifest, files.root)
    experiments = read_json(files.steering_summary)["experiments"]
    demos = read_json(files.best_demo_candidates)["features"]
    candidates = [image for record in demos for image in record["candidates"]["image_ids"]]
    finals = sum(min(config.demo_finalists, len(record["all_scored"])) for record in demos)
    # The step before the first steered one is taken once for each picture.
    return {
        1: math.ceil(len(manifest) / config.batch_size) * config.num_inference_steps,
        7: len({e["image_id"] for e in experiments}) + len(experiments) * (steered(3) + steered(2 * 3)),
        10: len(set(candidates)) + len(candidates) * steered(2) + finals * steered(2 * 3),
    }


def test_all_steps_call_the_model_as_often_as_collecting_and_steering_need(tmp_path, calls, monkeypatch):
    """Steps 5 and 9, and all others but 1, 7 and 10, only look things up; a second layer needs no step 1."""
    by_step = {}

    def counting(step, *rest):
        before = len(calls)
        run_step(step, *rest)
        by_step[step.number] = len(calls) - before

    monkeypatch.setattr(pipeline, "run_step", counting)
    for layer in (15, 5):
        config = make_config(out_dir=str(tmp_path / "run"), active_layer=layer, **STEERED)
        run_steps(config, "1-11")
        files = RunDir.of(config)
        expected = dict.fromkeys(range(1, 12), 0) | planned(config, files)
        if layer == 5:
            expected[1] = 0
        assert by_step == expected
        assert files.steering_grids_summary.is_file() and files.comparison.is_file()


def test_the_profile_at_the_target_step_is_what_the_run_found(finished, tmp_path, calls):
    folder = tmp_path / "run"
    shutil.copytree(finished.out_dir, folder)
    config = make_config(out_dir=str(folder), capture_steps=(3, 14), **SMALL)
    context = Context(config, RunDir.of(config), Reporter(quiet=True))
    profile_steps(context, pictures=8)
    assert len(calls) == 14  # one batch of eight, no farther than the last wanted step
    found = read_json(context.files.steps_profile)
    assert found["steps"] == [2, 13]
    s = load_npy(context.files.s_matrix)[:8]
    for record in found["features"]:
        activity = record["mean_max_activation"][1]
        assert activity == pytest.approx(s[:, record["feature_id"]].mean(), rel=1e-3, abs=1e-4)
        assert record["frequency"][1] == pytest.approx(np.mean(s[:, record["feature_id"]] > 0))
    assert context.files.steps_profile.with_suffix(".png").is_file()


def test_a_profile_without_a_selection_is_a_clear_error(tmp_path):
    config = make_config(
        out_dir=str(tmp_path / "run"), max_prompts=1, num_inference_steps=2, target_step_number=1
    )
    run_steps(config, "1")
    with pytest.raises(MissingInputError, match="selected_features"):
        profile_steps(Context(config, RunDir.of(config), Reporter(quiet=True)), pictures=2)


def test_further_sites_are_heard_in_the_same_pass_with_and_without_an_sae(tmp_path, calls):
    base = {
        **SMALL,
        "max_prompts": 3,
        "num_inference_steps": 4,
        "target_step_number": 3,
        "capture_steps": (1,),
    }
    plain = make_config(out_dir=str(tmp_path / "plain"), **base)
    run_steps(plain, "1")
    calls.clear()
    sites = (
        "double.15.ff_context",
        f"double.5.ff={plain.layer5_sae_path}",
        "single.1",
        f"double.7={plain.layer15_sae_path}",
    )
    config = make_config(out_dir=str(tmp_path / "run"), sites=sites, **base)
    run_steps(config, "1")
    assert len(calls) == 4  # one batch
    files = RunDir.of(config)
    np.testing.assert_array_equal(load_npy(files.s_matrix), load_npy(RunDir.of(plain).s_matrix))
    for step in (0, 2):
        text = ActivationStore(files.activations / "double.15.ff_context" / f"step_{step}")
        single = ActivationStore(files.activations / "single.1" / f"step_{step}")
        assert text.read(range(6)).shape == (6, 20, 128)
        assert single.read(range(6)).shape == (6, 64, 128)
        assert torch.isfinite(single.read(range(6))).all()
        assert CodeStore(files.codes, "double.7", step).n_images == 6


def test_a_site_added_later_is_collected_for_the_same_pictures(tmp_path):
    base = {**SMALL, "max_prompts": 3, "num_inference_steps": 3, "target_step_number": 2, "batch_size": 4}
    run_steps(make_config(out_dir=str(tmp_path / "later"), **base), "1")
    stores = []
    for name in ("later", "at_once"):
        config = make_config(out_dir=str(tmp_path / name), sites="double.3", **base)
        run_steps(config, "1")
        stores.append(ActivationStore(RunDir.of(config).activations / "double.3" / "step_1").read(range(6)))
    assert torch.equal(*stores)


def test_a_site_that_the_model_lacks_is_an_error_before_anything_is_generated(tmp_path):
    config = make_config(out_dir=str(tmp_path / "run"), sites=("double.3", "single.2"), max_prompts=1)
    with pytest.raises(ConfigError, match=r"no site single\.2") as caught:
        run_steps(config, "1")
    assert "single.L and single.L.context for L from 0 to 1" in caught.value.hint
    assert not (tmp_path / "run").exists()


def test_a_site_named_twice_is_an_error(tmp_path):
    config = make_config(out_dir=str(tmp_path / "run"), sites=("double.3", "double.3"), max_prompts=1)
    with pytest.raises(ConfigError, match=r"double\.3 is named twice"):
        run_steps(config, "1")
