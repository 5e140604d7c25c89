"""Records: what is read is checked, what is written keeps its bytes, nothing outside a folder is touched."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from fluxscope.errors import FluxscopeError, RecordError, RunDirError
from fluxscope.files import append_jsonl, read_json, read_jsonl, write_json
from fluxscope.run.manifest import Manifest, ManifestRow, load_manifest
from fluxscope.run.records import (
    ClipMeta,
    DecoderStats,
    FeatureAnalysis,
    OverlaySummary,
    RunLog,
    Selection,
)
from fluxscope.run.rundir import RunDir
from fluxscope.run.strict_json import Place, Record, ours, part
from tests.conftest import run_steps

ROW = {
    **{"image_id": 0, "prompt_idx": 0, "rep_idx": 0, "seed": 42, "prompt": "a red circle"},
    **{"image_path": "images/img_000000_p0000_r0_seed42.png", "height": 128, "width": 128},
    **{"layer_index": 15, "target_step_number": 14, "activation_shape": [64, 128], "generation_time": 0.5},
}
"""A line of a manifest with the fields that every script of this pipeline's form writes."""

NO_IDS = [-1, 3.0, 1.5, True, None, "7", "/../../../x", [1], {}, 2**63, 10**400]
NO_NUMBERS = [True, None, "1", [1], float("nan"), float("inf"), 10**400]
NO_TEXTS = [None, 3, ["a"], {}, "half \ud800", "a\0b"]
OUTSIDE = ["../x.png", "/etc/passwd", "images/../../x.png", "C:\\x.png", "..\\x.png", "\\x", "", "out/x.png"]


@pytest.fixture
def copy(finished, tmp_path):
    """The finished run in a folder of its own, to write in."""
    shutil.copytree(finished.out_dir, tmp_path / "run")
    return dataclasses.replace(finished, out_dir=str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((RunLog, "run_log"), (FeatureAnalysis, "feature_analysis_summary"), (ClipMeta, "clip_meta")),
        *((Selection, "selected_features"), (OverlaySummary, "overlay_summary")),
        (DecoderStats, "decoder_stats"),
    ],
)
def test_a_file_that_is_read_and_written_keeps_its_bytes(finished, tmp_path, kind, name):
    files = RunDir.of(finished)
    kind.read(getattr(files, name), files.root).write(tmp_path / "again.json")
    before, after = getattr(files, name).read_text(), (tmp_path / "again.json").read_text()
    if kind is RunLog:  # its settings are written first
        assert json.loads(after) == json.loads(before)
    else:
        assert after == before


def test_a_manifest_that_is_read_and_written_keeps_its_bytes(finished, tmp_path):
    files = RunDir.of(finished)
    rows = Manifest.read(files.manifest, files.root).rows
    append_jsonl(tmp_path / "again.jsonl", [row.to_json() for row in rows])
    assert (tmp_path / "again.jsonl").read_bytes() == files.manifest.read_bytes()


def wrong_values():
    """(key, value) for everything that a line of a manifest must not hold."""
    ids = ("image_id", "prompt_idx", "rep_idx", "seed", "height", "width", "layer_index")
    yield from ((key, value) for key in (*ids, "target_step_number") for value in NO_IDS)
    yield from (("generation_time", value) for value in NO_NUMBERS)
    yield from (("prompt", value) for value in NO_TEXTS)
    yield from (("image_path", value) for value in NO_TEXTS + OUTSIDE)
    yield from (("activation_shape", value) for value in [None, 3, "64", {}, [64, "128"], [True, 1], [1.5]])


@pytest.mark.parametrize(("key", "value"), wrong_values())
def test_a_wrong_value_is_refused_with_file_line_and_key(tmp_path, key, value):
    (tmp_path.parent / "x.png").touch()
    if not (tmp_path / "out").exists():
        (tmp_path / "out").symlink_to(tmp_path.parent)
    path = tmp_path / "manifest.jsonl"
    lines = [ROW, {**ROW, "image_id": 1}, {**ROW, "image_id": 2, key: value}]
    path.write_text("".join(json.dumps(row) + "\n" for row in lines))
    with pytest.raises(RecordError) as caught:
        Manifest.read(path, tmp_path)
    assert caught.value.message.startswith(f"{path}, line 3: {key}")
    assert "\n" not in caught.value.message and caught.value.hint


@pytest.mark.parametrize("key", ROW)
def test_a_missing_key_is_refused_by_its_name(tmp_path, key):
    path = tmp_path / "manifest.jsonl"
    append_jsonl(path, {name: value for name, value in ROW.items() if name != key})
    with pytest.raises(RecordError, match=f"line 1: {key} is missing"):
        Manifest.read(path, tmp_path)


@pytest.mark.parametrize("line", ["[1]", "3", "null", '"text"', "[" * 100_000, "9" * 5000, "{"])
def test_a_line_that_is_no_object_is_refused(tmp_path, line):
    path = tmp_path / "manifest.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(FluxscopeError, match="line 1"):
        Manifest.read(path, tmp_path)


@pytest.mark.parametrize("text", ["[]", "3", "null", '{"features": 3}', "[" * 100_000, "9" * 5000, "\x80"])
def test_a_file_that_is_no_record_is_refused_by_its_name(tmp_path, text):
    path = tmp_path / "selected_features.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(FluxscopeError) as caught:
        Selection.read(path)
    assert str(path) in caught.value.message


def test_what_scripts_wrote_is_read_and_what_others_added_is_passed_over(tmp_path):
    path = tmp_path / "manifest.jsonl"
    append_jsonl(path, {**ROW, "note": {"of": "another program"}})
    (row,) = Manifest.read(path, tmp_path).rows
    assert (row.image_id, row.prompt, row.site, row.step) == (0, "a red circle", None, None)
    assert row.to_json() == ROW
    records, by_id = load_manifest(path, tmp_path)
    assert records[0]["note"] == {"of": "another program"}
    assert by_id[0]["image_path"] == str(tmp_path / ROW["image_path"])


def test_numbers_stay_as_they_were_written(tmp_path):
    path = tmp_path / "manifest.jsonl"
    append_jsonl(path, {**ROW, "generation_time": 3})
    assert '"generation_time": 3}' in json.dumps(Manifest.read(path, tmp_path).rows[0].to_json())


def test_keys_of_ours_are_none_where_they_are_missing_and_left_out_or_null_when_written(tmp_path):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Little(Record):
        a: int = part("A number.")
        b: int | None = ours("Left out.")
        c: int | None = ours("Null.", null=True)

    little = Little.from_json({"a": 1}, Place(tmp_path))
    assert little == Little(a=1, b=None, c=None)
    assert little.to_json() == {"a": 1, "c": None}
    with pytest.raises(RecordError, match="b is 'x'"):
        Little.from_json({"a": 1, "b": "x"}, Place(tmp_path))


@pytest.mark.parametrize("value", ["/../../../x", "../x", -1, 1.0, True, None])
@pytest.mark.parametrize("step", ["5", "8"])
def test_a_hostile_feature_writes_nothing_outside(copy, step, value):
    files = RunDir.of(copy)
    selection = read_json(files.selected_features)
    selection["features"][1]["feature_id"] = value
    write_json(files.selected_features, selection)
    before = tree(files.root.parent)
    with pytest.raises(RecordError, match=r"features\[1\]\.feature_id"):
        run_steps(copy, step, force=True)
    assert tree(files.root.parent) - {"run/step_log.json"} == before - {"run/step_log.json"}


def test_a_feature_that_the_codes_lack_is_refused(copy):
    files = RunDir.of(copy)
    selection = read_json(files.selected_features)
    selection["features"][0]["feature_id"] = 10**6
    write_json(files.selected_features, selection)
    with pytest.raises(RunDirError, match="selects feature 1000000"):
        run_steps(copy, "5")


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_force_deletes_the_listed_pictures_and_no_others(copy, tmp_path):
    files = RunDir.of(copy)
    strange = files.images / "img_999999_p9999_r0_seed1.png"
    outside = tmp_path / "pictures" / "img_000001_p0000_r1_seed43.png"
    data = files.root / "data.npy"
    for path in (strange, outside, data):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"someone's own")
    append_jsonl(files.manifest, {**ROW, "image_id": 90, "image_path": "data.npy"})
    append_jsonl(files.manifest, {**ROW, "image_id": 91, "image_path": f"../pictures/{outside.name}"})
    last = files.root / read_jsonl(files.manifest)[-3]["image_path"]
    assert last.is_file()
    fewer = dataclasses.replace(copy, max_prompts=2)
    run_steps(fewer, "1", force=True)
    assert [path.read_bytes() for path in (strange, outside, data)] == [b"someone's own"] * 3
    assert not last.exists()
    assert len(list(files.images.iterdir())) == 4 + 1


def test_folders_that_a_received_log_or_link_leads_outside_are_refused(copy, tmp_path):
    mine = tmp_path / "mine" / "feature_3"
    mine.mkdir(parents=True)
    (mine / "own.txt").write_text("mine")
    with pytest.raises(FluxscopeError):
        run_steps(dataclasses.replace(copy, overlays_subdir="../mine"), "5", force=True)
    shutil.rmtree(RunDir.of(copy).overlays)
    (Path(copy.out_dir) / "overlays").symlink_to(tmp_path / "mine")
    with pytest.raises(RunDirError, match="a link leads out"):
        run_steps(copy, "5", force=True)
    assert tree(tmp_path / "mine") == {"feature_3", "feature_3/own.txt"}


def test_overlays_leave_the_files_of_others_in_place(copy):
    files = RunDir.of(copy)
    own = files.overlays / "feature_3" / "notes.txt"
    own.parent.mkdir(exist_ok=True)
    own.write_text("mine")
    selection = read_json(files.selected_features)
    gone = selection["features"][0]["feature_id"]
    write_json(files.selected_features, {**selection, "features": selection["features"][1:]})
    run_steps(copy, "5")
    assert own.read_text() == "mine"
    assert not (files.overlays / f"feature_{gone}").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("layer_index", "../x"), ("site", "../../x"), ("site", "/etc"), ("identity", [1])),
        *(("total_time_seconds", "x"), ("sae_sha256", 3)),
    ],
)
def test_a_hostile_run_log_is_refused_by_every_command(copy, key, value):
    files = RunDir.of(copy)
    write_json(files.run_log, {**read_json(files.run_log), key: value})
    with pytest.raises(RunDirError):
        run_steps(copy, "2", force=True)


def test_an_image_path_that_leads_outside_is_read_by_no_step(copy, tmp_path):
    files = RunDir.of(copy)
    shutil.copy(next(files.images.iterdir()), tmp_path / "secret.png")
    rows = [row.to_json() for row in ManifestRow.read_lines(files.manifest)]
    rows[1]["image_path"] = "../secret.png"
    files.manifest.unlink()
    append_jsonl(files.manifest, rows)
    for step in ("3", "4", "5"):
        with pytest.raises(RecordError, match="line 2: image_path"):
            run_steps(copy, step, force=True)
    with pytest.raises(RecordError, match="line 2: image_path"):
        load_manifest(files.manifest, files.root)


def test_an_overlay_path_that_leads_outside_is_not_shown(copy):
    files = RunDir.of(copy)
    summary = read_json(files.overlay_summary)
    summary["items"][0]["overlay_path"] = "../secret.png"
    write_json(files.overlay_summary, summary)
    with pytest.raises(RecordError, match=r"items\[0\]\.overlay_path"):
        run_steps(copy, "6", force=True)
