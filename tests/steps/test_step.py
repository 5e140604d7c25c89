"""When a step is run and when it is passed over."""

import os

import numpy as np
import pytest

from fluxscope.errors import MissingInputError
from fluxscope.files import read_json, save_npy
from fluxscope.progress import Reporter
from fluxscope.run.context import Context
from fluxscope.run.rundir import RunDir
from fluxscope.run.step_log import StepLog
from fluxscope.settings.config import make_config
from fluxscope.steps import analyze
from fluxscope.steps.step import run_step, work_of
from fluxscope.steps.table import STEPS

COLLECT, ANALYZE = STEPS[:2]


@pytest.fixture
def context(tmp_path):
    """A folder that holds S and nothing else."""
    config = make_config(out_dir=str(tmp_path / "run"))
    files = RunDir.of(config)
    save_npy(files.s_matrix, np.eye(3, 5, dtype=np.float32))
    return Context(config, files, Reporter(quiet=True))


def is_fresh(step, context):
    return work_of(step, context, StepLog.open(context.files.step_log)).is_fresh


def test_a_step_is_run_once_and_again_when_its_input_holds_something_else(context):
    assert not is_fresh(ANALYZE, context)
    run_step(ANALYZE, context, STEPS)
    assert is_fresh(ANALYZE, context)
    later = context.files.feature_analysis_summary.stat().st_mtime_ns + 1_000_000
    os.utime(context.files.s_matrix, ns=(later, later))  # only touched
    assert is_fresh(ANALYZE, context)
    save_npy(context.files.s_matrix, np.eye(3, 5, 1, dtype=np.float32))
    os.utime(context.files.s_matrix, ns=(0, 0))  # other contents of the same size, with an older time
    assert not is_fresh(ANALYZE, context)


def test_an_input_that_changed_is_seen_in_a_folder_with_a_relative_name(context, monkeypatch):
    run_step(ANALYZE, context, STEPS)
    monkeypatch.chdir(context.files.root.parent)
    config = make_config(out_dir="run")
    here = Context(config, RunDir.of(config), context.report)
    assert is_fresh(ANALYZE, here)
    save_npy(here.files.s_matrix, np.eye(3, 5, 1, dtype=np.float32))
    assert not is_fresh(ANALYZE, here)


def test_other_settings_make_it_stale(context):
    run_step(ANALYZE, context, STEPS)
    other = make_config(out_dir=context.config.out_dir, top_k_per_image=2)
    assert not is_fresh(ANALYZE, Context(other, context.files, context.report))


@pytest.mark.parametrize("name", ANALYZE.makes)
@pytest.mark.parametrize("harm", ["deleted", "halved", "other bytes"])
def test_a_damaged_product_is_made_anew(context, name, harm):
    run_step(ANALYZE, context, STEPS)
    path = getattr(context.files, name)
    whole = path.read_bytes()
    path.unlink()
    if harm == "halved":
        path.write_bytes(whole[: len(whole) // 2])
    elif harm == "other bytes":
        path.write_bytes(bytes(len(whole)))
    assert not is_fresh(ANALYZE, context)
    run_step(ANALYZE, context, STEPS)
    assert path.read_bytes() == whole
    assert is_fresh(ANALYZE, context)


def test_a_step_stopped_while_it_is_made_anew_is_not_taken_for_finished(context, monkeypatch):
    run_step(ANALYZE, context, STEPS)

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(analyze, "save_npz", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_step(ANALYZE, Context(context.config, context.files, context.report, force=True), STEPS)
    assert all(getattr(context.files, name).exists() for name in ANALYZE.makes)
    assert not is_fresh(ANALYZE, context)
    assert not read_json(context.files.step_log)["work"]["analyze"]["finished"]


def test_a_step_that_fails_before_it_writes_leaves_its_results_up_to_date(context, monkeypatch):
    run_step(ANALYZE, context, STEPS)

    def failing(*_, **__):
        raise MissingInputError("no")

    monkeypatch.setattr(analyze, "feature_stats", failing)
    with pytest.raises(MissingInputError):
        run_step(ANALYZE, Context(context.config, context.files, context.report, force=True), STEPS)
    assert is_fresh(ANALYZE, context)


def test_a_file_edited_under_the_same_name_counts_as_another(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a large red circle\n")
    config = make_config(prompts_path=str(prompts), out_dir=str(tmp_path / "run"))
    context = Context(config, RunDir.of(config), Reporter(quiet=True))
    before = work_of(COLLECT, context, StepLog(context.files.step_log)).key
    assert work_of(COLLECT, context, StepLog(context.files.step_log)).key == before
    prompts.write_text("a large blue circle\n")
    assert work_of(COLLECT, context, StepLog(context.files.step_log)).key != before


def test_where_and_in_what_portions_work_is_done_makes_nothing_stale(tmp_path):
    def key(**settings):
        config = make_config(out_dir=str(tmp_path / "run"), **settings)
        context = Context(config, RunDir.of(config), Reporter(quiet=True))
        return work_of(COLLECT, context, StepLog(context.files.step_log)).key

    elsewhere = {"batch_size": 3, "device": "cpu", "sae_device": "cpu", "token_chunk_size": 7}
    assert key() == key(**elsewhere)
    assert key(active_layer=15) == key(**elsewhere, active_layer=5)
    assert key() != key(dtype="bfloat16")


def test_a_missing_input_names_the_command_that_makes_it(tmp_path):
    config = make_config(out_dir=str(tmp_path / "run"))
    with pytest.raises(MissingInputError) as caught:
        run_step(ANALYZE, Context(config, RunDir.of(config), Reporter(quiet=True)), STEPS)
    assert caught.value.hint == f"Run step 1 first: fluxscope collect --out-dir {tmp_path / 'run'}"
