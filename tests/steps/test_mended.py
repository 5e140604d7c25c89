"""What is missing, cut short or edited is made again with the same bytes, and a hint's command helps."""

import ast
import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import fluxscope
from fluxscope import errors
from fluxscope.commands.main import build_app
from fluxscope.errors import FluxscopeError, RunDirError
from fluxscope.files import read_json, save_npy, write_json
from fluxscope.progress import Reporter
from fluxscope.run.context import Context
from fluxscope.run.rundir import RunDir
from fluxscope.run.step_log import StepLog
from fluxscope.settings.config import make_config
from fluxscope.steps import collect
from fluxscope.steps.step import work_of
from fluxscope.steps.table import STEPS
from tests.conftest import run_steps

SMALL = {
    **{"max_prompts": 6, "num_inference_steps": 3, "target_step_number": 2, "batch_size": 4},
    **{"top_examples_per_feature": 1, "top_features": 3, "min_prompts": 2, "steer_steps": "0-1"},
    **{"steer_features": 1, "steer_images": 1, "steer_scales": (1, 3), "steer_strengths": (-9, 9)},
    **{"demo_candidates": 1, "demo_finalists": 1, "demo_kept": 1, "demo_strengths": (9,)},
}
TIMED = ("manifest.jsonl", "run_log.json")
"""Files of step 1 that say how long it took."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The settings of a run of all eleven steps. Read its folder, don't write."""
    config = make_config(out_dir=str(tmp_path_factory.mktemp("whole") / "run"), active_layer=15, **SMALL)
    run_steps(config, "1-11")
    return config


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole.out_dir, tmp_path / "run")
    return dataclasses.replace(whole, out_dir=str(tmp_path / "run"))


def contents(config) -> dict[str, bytes]:
    """Every file of a run but for its log, and for those that say how long step 1 took."""
    root = Path(config.out_dir)
    found = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    return {
        name: path.read_bytes()
        for name, path in found.items()
        if Path(name).name not in (*TIMED, "step_log.json")
    }


def harm(path: Path, how: str) -> None:
    data = path.read_bytes()
    path.unlink()
    if how == "halved":
        path.write_bytes(data[: len(data) // 2])
    elif how == "edited":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def made_by(step, config) -> list[Path]:
    """The files that the log lists of a step and its parts, but for those that a step cannot make again."""
    log = StepLog.open(RunDir.of(config).step_log)
    records = [log.get(step.name), *log.parts_of(step.name).values()]
    paths = [log.root / path for record in records for path in record.made]
    return sorted({path for path in paths if path.is_file() and path.name not in TIMED})


def is_fresh(step, config) -> bool:
    context = Context(config, RunDir.of(config), Reporter(quiet=True))
    return work_of(step, context, StepLog.open(context.files.step_log)).is_fresh


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
@pytest.mark.parametrize("shift", [0, 1, 2])
def test_whatever_happens_to_a_file_it_is_made_again(copy, step, shift):
    """Every third file of the step is deleted, every third cut in half, every third edited."""
    before, files = contents(copy), made_by(step, copy)
    assert len(files) >= len(step.makes) - (3 if step.number == 1 else 0)  # without TIMED and the codes
    for path in files:
        data = path.read_bytes()
        for how in ("deleted", "halved", "edited"):
            harm(path, how)
            assert not is_fresh(step, copy), (path, how)
            path.write_bytes(data)
    assert is_fresh(step, copy)
    for number, path in enumerate(files, start=shift):
        harm(path, ("deleted", "halved", "edited")[number % 3])
    run_steps(copy, str(step.number))
    assert contents(copy) == before
    assert is_fresh(step, copy)


def test_the_manifest_deleted_is_made_again_with_all_its_pictures(copy):
    before = contents(copy)
    rows = [json.loads(line) for line in RunDir.of(copy).manifest.read_text().splitlines()]
    RunDir.of(copy).manifest.unlink()
    run_steps(copy, "1")
    again = [json.loads(line) for line in RunDir.of(copy).manifest.read_text().splitlines()]
    assert contents(copy) == before
    for row in (*rows, *again):
        del row["generation_time"]
    assert again == rows


def test_an_edited_selection_is_drawn_and_steered_and_the_old_one_is_gone(copy):
    """Steps 4 (kept as edited), 5, 7 and 10: the pictures under a feature are those of its new example."""
    files = RunDir.of(copy)
    selection = read_json(files.selected_features)
    first = selection["features"][0]
    feature, old = first["feature_id"], first["example_image_ids"]
    new = next(i for i in range(12) if i not in old)
    first["example_image_ids"] = [new]
    write_json(files.selected_features, selection)
    run_steps(copy, "5,7,11")
    for folder in (files.overlays, files.steering):
        names = {path.name[:12] for path in (folder / f"feature_{feature}").iterdir()}
        assert names == {f"image_{new:06d}"}
    assert [e["image_id"] for e in read_json(files.steering_summary)["experiments"]] == [new]
    other = selection["features"][1]["feature_id"]
    selection["features"].reverse()
    selection["features"][0], selection["features"][1] = selection["features"][1], selection["features"][0]
    assert selection["features"][0]["feature_id"] == other
    write_json(files.selected_features, selection)
    run_steps(copy, "7,10,11")
    for folder in (files.steering, files.best_demos):
        assert [path.name for path in folder.iterdir() if path.is_dir()] == [f"feature_{other}"]
    assert {grid["feature_id"] for grid in read_json(files.steering_grids_summary)["grids"]} == {other}


# --- hints ---
def commands_in(hint: str) -> list[list[str]]:
    """The commands that a hint names, without the program's name."""
    return [shlex.split(each)[1:] for each in hint[hint.index("fluxscope ") :].split(" && ")]


def without(name):
    return lambda config: getattr(RunDir.of(config), name).unlink()


def edited(name, change):
    def edit(config):
        path = getattr(RunDir.of(config), name)
        value = read_json(path)
        change(value)
        write_json(path, value)

    return edit


def with_fewer_rows(config):
    path = RunDir.of(config).clip_embeddings
    save_npy(path, np.load(path)[:-1])


def with_a_picture_twice(config):
    path = RunDir.of(config).manifest
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], lines[1], *lines[2:]]))


def without_the_other_layer(config):
    RunDir.of(config, "double.5.ff").s_matrix.unlink()


def without_a_chunk(config):
    files = RunDir.of(config)
    (files.codes / files.site / f"step_{config.target_step_index}" / "value" / "c" / "0").unlink()


@pytest.mark.parametrize(
    ("break_it", "steps"),
    [
        (without("s_matrix"), "2"),
        (without("manifest"), "3"),
        (without("clip_embeddings"), "4"),
        (without("selected_features"), "5"),
        (without("overlay_summary"), "6"),
        (without("selected_features"), "8"),
        (without("best_demo_candidates"), "11"),
        (without_a_chunk, "9"),
        (without_a_chunk, "1"),
        (edited("selected_features", lambda value: value["features"][0].update(feature_id=10**6)), "5"),
        (edited("overlay_summary", lambda value: value["items"].clear()), "6"),
        (with_fewer_rows, "4"),
        (with_a_picture_twice, "4"),
        (without_the_other_layer, "9"),
    ],
)
def test_the_command_of_a_hint_helps(copy, break_it, steps):
    number = int(steps)
    before = contents(copy)
    break_it(copy)
    with pytest.raises(FluxscopeError) as caught:
        run_steps(copy, steps, force=number != 1)
    for command in commands_in(caught.value.hint):
        done = CliRunner().invoke(build_app(), command)
        assert done.exit_code == 0, done.output
    run_steps(copy, steps)
    assert contents(copy) == before


# --- step 1 keeps its pictures ---
SHORT = {"num_inference_steps": 2, "target_step_number": 1, "batch_size": 4, "compare_layers": False}


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "images").iterdir()}


@pytest.fixture(scope="module")
def six(tmp_path_factory):
    folder = tmp_path_factory.mktemp("six") / "run"
    run_steps(make_config(out_dir=str(folder), max_prompts=6, **SHORT), "1")
    assert len(pictures(folder)) == 12
    return folder


def stopped_in_the_second_batch(monkeypatch, config) -> None:
    """Killed after the pictures of the second batch were written, and before the manifest lists them."""
    original, calls = collect.append_rows, []

    def stopping(path, rows):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        original(path, rows)

    with monkeypatch.context() as patch:
        patch.setattr(collect, "append_rows", stopping)
        with pytest.raises(KeyboardInterrupt):
            run_steps(config, "1")


@pytest.mark.parametrize("way", ["rerun", "forced", "resumed", "more prompts", "fewer prompts"])
def test_step_1_loses_no_picture(tmp_path, monkeypatch, six, way):
    folder = tmp_path / "run"
    config = make_config(out_dir=str(folder), max_prompts=6, **SHORT)
    if way == "resumed":
        stopped_in_the_second_batch(monkeypatch, config)
        assert len(pictures(folder)) == 8
    else:
        shutil.copytree(six, folder)
    if way in ("more prompts", "fewer prompts"):
        other = dataclasses.replace(config, max_prompts=7 if way == "more prompts" else 3)
        with pytest.raises(RunDirError, match=f"num_images = 12, not {2 * other.max_prompts}"):
            run_steps(other, "1")
    else:
        run_steps(config, "1", force=way == "forced")
    assert pictures(folder) == pictures(six)
    assert np.array_equal(np.load(folder / "S_matrix.npy"), np.load(six / "S_matrix.npy"))
    run_steps(config, "1")
    assert pictures(folder) == pictures(six)


def test_forced_with_fewer_prompts_only_the_new_pictures_and_those_of_others_stay(tmp_path, monkeypatch, six):
    folder = tmp_path / "run"
    config = make_config(out_dir=str(folder), max_prompts=6, **SHORT)
    stopped_in_the_second_batch(monkeypatch, config)
    mine = folder / "images" / "img_000005_p0002_r1_seed7.png"  # no picture of this run: its seed is another
    mine.write_bytes(b"mine")
    run_steps(dataclasses.replace(config, max_prompts=2), "1", force=True)
    kept = {name: data for name, data in pictures(six).items() if int(name[4:10]) < 4}
    assert pictures(folder) == {**kept, mine.name: b"mine"}


# --- every hint in the source ---
SOURCES = Path(fluxscope.__file__).parent
NAMES = "|".join(["run", *(step.name for step in STEPS)])
STEP_WORDS = re.compile(rf"\b([Rr]un steps? [0-9]|[Cc]ollect (anew|again)\b)|fluxscope ({NAMES})\b")


def errors_raised() -> list[tuple[str, ast.Call]]:
    """Every call in the source that makes an error of ours, with its place."""
    found = []
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
            if name.endswith("Error") and hasattr(errors, name):
                found.append((f"{path.relative_to(SOURCES)}:{node.lineno}", node))
    return found


def words_of(node: ast.expr) -> str:
    """A text as the source has it, what is put in left out."""
    texts = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)]
    return "".join(text for text in texts if isinstance(text, str))


@pytest.mark.parametrize(
    ("place", "call"), errors_raised(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_hint_to_run_a_step_says_which_so_that_its_command_can_be_named(place, call):
    """Literal commands would not be of the run at hand; only those that need no folder may stand."""
    redo = next((words_of(each.value) for each in call.keywords if each.arg == "redo"), "")
    hint = words_of(call.args[1]) if len(call.args) > 1 else ""
    whole = any(
        isinstance(each, ast.Call) and getattr(each.func, "id", "").startswith("command_")
        for each in ast.walk(call)
    )
    if STEP_WORDS.search(hint) and not whole:
        assert redo, f"{place}: {hint}"
    for part in filter(None, redo.split(", ")):
        name, *flags = part.split()
        step = next(step for step in STEPS if step.name == name)
        assert all(flag == "--force" or flag[2:].replace("-", "_") in step.settings for flag in flags), place
