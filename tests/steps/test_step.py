"""When a step is run and when it is passed over."""

import os

import numpy as np
import pytest

from fluxscope.errors import MissingInputError
from fluxscope.files import read_json, save_npy
from fluxscope.progress import Reporter
from fluxscope.run.context import Context
from fluxscope.run.rundir import RunDir
from fluxscope.settings.config import make_config
from fluxscope.steps import analyze
from fluxscope.steps.step import is_fresh, run_step, settings_of
from fluxscope.steps.table import STEPS

COLLECT, ANALYZE = STEPS[:2]


@pytest.fixture
def context(tmp_path):
    """A folder that holds S and nothing else."""
    config = make_config(out_dir=str(tmp_path / "run"))
    files = RunDir.of(config)
    save_npy(files.s_matrix, np.eye(3, 5, dtype=np.float32))
    return Context(config, files, Reporter(quiet=True))


def test_a_step_is_run_once_and_again_when_its_input_is_newer(context):
    assert not is_fresh(ANALYZE, context.config, context.files)
    run_step(ANALYZE, context, STEPS)
    assert is_fresh(ANALYZE, context.config, context.files)
    later = context.files.feature_analysis_summary.stat().st_mtime_ns + 1_000_000
    os.utime(context.files.s_matrix, ns=(later, later))
    assert not is_fresh(ANALYZE, context.config, context.files)


def test_other_settings_make_it_stale(context):
    run_step(ANALYZE, context, STEPS)
    other = make_config(out_dir=context.config.out_dir, top_k_per_image=2)
    assert not is_fresh(ANALYZE, other, context.files)


def test_a_step_stopped_while_it_is_made_anew_is_not_taken_for_finished(context, monkeypatch):
    run_step(ANALYZE, context, STEPS)

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(analyze, "save_npz", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_step(ANALYZE, Context(context.config, context.files, context.report, force=True), STEPS)
    assert all(getattr(context.files, name).exists() for name in ANALYZE.makes)
    assert not is_fresh(ANALYZE, context.config, context.files)
    assert "analyze" not in read_json(context.files.step_log)


def test_a_file_edited_under_the_same_name_counts_as_another(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a large red circle\n")
    config = make_config(prompts_path=str(prompts))
    before = settings_of(COLLECT, config)
    assert settings_of(COLLECT, config) == before
    prompts.write_text("a large blue circle\n")
    assert settings_of(COLLECT, config) != before


def test_a_missing_input_names_the_step_that_makes_it(tmp_path):
    config = make_config(out_dir=str(tmp_path / "run"))
    with pytest.raises(MissingInputError) as caught:
        run_step(ANALYZE, Context(config, RunDir.of(config), Reporter(quiet=True)), STEPS)
    assert caught.value.hint == "Run step 1 first: fluxscope collect"
