"""Many sites and steps in one pass: what is generated, and what is only looked up."""

import math
import shutil

import numpy as np
import pytest
from diffusers import FluxTransformer2DModel

from fluxscope.config import make_config
from fluxscope.errors import MissingInputError
from fluxscope.files import load_npy, read_json
from fluxscope.progress import Reporter
from fluxscope.rundir import RunDir
from fluxscope.steps import profile
from fluxscope.steps.step import Context
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


def test_both_layers_cost_the_calls_of_one_pass_and_the_later_steps_none(tmp_path, calls):
    settings = {**SMALL, "out_dir": str(tmp_path / "run"), "max_prompts": 9}
    run_steps(make_config(**settings), "1")
    assert len(calls) == math.ceil(9 * 2 / SMALL["batch_size"]) * 20
    calls.clear()
    for layer in (15, 5):
        run_steps(make_config(**settings, active_layer=layer), "1-6,8,9")
    assert not calls


def test_the_profile_at_the_target_step_is_what_the_run_found(finished, tmp_path, calls):
    folder = tmp_path / "run"
    shutil.copytree(finished.out_dir, folder)
    config = make_config(out_dir=str(folder), capture_steps=(3, 14), **SMALL)
    context = Context(config, RunDir.of(config), Reporter(quiet=True))
    profile.run(context, pictures=8)
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
        profile.run(Context(config, RunDir.of(config), Reporter(quiet=True)), pictures=2)
