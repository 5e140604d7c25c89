"""docs/disk-format.md is the contract: its tables are read here and held against a real run and the code."""

import dataclasses
import importlib
import json
import re
import shutil
import string
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image

from fluxscope.errors import MissingInputError
from fluxscope.files import append_jsonl, read_json, read_jsonl, write_json
from fluxscope.run.rundir import RunDir
from fluxscope.settings.config import Config, make_config
from fluxscope.steps.table import STEPS
from tests.conftest import SMALL, run_steps

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = (REPOSITORY / "docs" / "disk-format.md").read_text()
TYPES = {"int": int, "number": (int, float), "string": str, "bool": bool, "object": dict, "list": list}


def table(heading: str) -> list[list[str]]:
    """The cells of the table under a heading."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in row] for row in rows[2:]]


BUILT = {step.number for step in STEPS if step.module}
LITTLE_STEERING = {
    **{"steer_features": 1, "steer_images": 1, "steer_scales": (1, 2), "steer_strengths": (-4, 4)},
    **{"demo_candidates": 2, "demo_finalists": 1, "demo_kept": 1, "demo_strengths": (4,)},
}
FILES = [row for row in table("Files") if int(row[0]) in BUILT]


class Folder:
    """One layer's files, with the sizes that its shapes' letters stand for."""

    def __init__(self, config: Config) -> None:
        self.files = RunDir.of(config)
        self.rows = read_jsonl(self.files.manifest)
        self.sizes = {
            "n_images": len(self.rows),
            "n_tokens": config.n_image_tokens,
            "height": config.height,
            "width": config.width,
        }

    def paths(self, pattern: str) -> list[Path]:
        """The files of a name with fields in braces: one for every record that has those fields."""
        fields = {name for _, name, _, _ in string.Formatter().parse(pattern) if name}
        records = [{}]
        if pattern.startswith("steering/"):
            records = read_json(self.files.steering_summary)["experiments"]
        elif pattern.startswith("best_demos/"):
            found = read_json(self.files.best_demo_candidates)["features"]
            records = [demo | {"feature_id": r["feature_id"]} for r in found for demo in r["best_demos"]]
        elif pattern.startswith("steering_grids/"):
            records = read_json(self.files.steering_grids_summary)["grids"]
        elif "feature_id" in fields:
            records = read_json(self.files.overlay_summary)["items"]
        elif fields:
            records = self.rows
        shared = ("images", "codes.zarr", "clip_", "layer_comparison")
        home = self.files.root if pattern.startswith(shared) else self.files.home
        return list(dict.fromkeys(home / pattern.format(**record) for record in records))

    def check_shape(self, array: np.ndarray, dtype: str, shape: str) -> None:
        assert array.dtype == np.dtype(dtype)
        letters = [part.strip() for part in shape.split(",") if part.strip()]
        assert array.ndim == len(letters)
        for letter, size in zip(letters, array.shape, strict=True):
            expected = letter
            for name, value in self.sizes.items():
                expected = re.sub(rf"\b{name}\b", str(value), expected)
            if re.fullmatch(r"[\d *+]+", expected):
                assert size == sum(np.prod([int(f) for f in t.split("*")]) for t in expected.split("+")), (
                    letter
                )
            else:
                self.sizes[letter] = size


def arrays_in(content: str) -> list[tuple[str, str, str]]:
    """(name, dtype, shape) of every array that a cell lists."""
    return re.findall(r"(?:^|, |)(\w*) ?(float32|float64|int32|int64) \(([^)]*)\)", content)


def values_at(value: object, path: str) -> list:
    """What lies at a path such as `features[].feature_id`: one value for every element of the list."""
    first, each, rest = path.partition("[].")
    return [element[rest] for element in value[first]] if each else [value[path]]


def check_json(value: object, content: str) -> None:
    for path, kind in re.findall(r"([\w\[\].]+) (int|number|string|bool|object|list)\b", content):
        nullable = f"{path} {kind}?" in content
        for found in values_at(value, path):
            right = isinstance(found, TYPES[kind]) and (kind == "bool" or not isinstance(found, bool))
            assert right or (nullable and found is None), f"{path} is {found!r}, not {kind}"


@pytest.fixture(scope="module", params=[15, 5], ids=["root", "layer_05"])
def folder(finished, request):
    config = make_config(out_dir=finished.out_dir, active_layer=request.param, **SMALL, **LITTLE_STEERING)
    run_steps(config, ",".join(map(str, sorted(BUILT))))
    return Folder(config)


def test_every_file_of_a_run_is_as_the_page_says(folder):
    for step, pattern, content in FILES:
        paths = folder.paths(pattern)
        assert paths, pattern
        for path in paths:
            assert path.exists(), f"step {step} did not make {path}"
            check_file(folder, path, content)


def check_file(folder: Folder, path: Path, content: str) -> None:
    if path.suffix == ".png":
        with Image.open(path) as picture:
            picture.load()
            if "(height, width)" in content:
                assert (picture.height, picture.width) == (folder.sizes["height"], folder.sizes["width"])
    elif path.suffix == ".npy":
        ((_, dtype, shape),) = arrays_in(content)
        folder.check_shape(np.load(path), dtype, shape)
    elif path.suffix == ".npz":
        held = np.load(path)
        for name, dtype, shape in arrays_in(content):
            folder.check_shape(held[name], dtype, shape)
    elif path.suffix == ".json":
        check_json(json.loads(path.read_text(), parse_constant=pytest.fail), content)
    elif path.suffix == ".jsonl":
        for row in read_jsonl(path):
            check_json(row, content)
    else:
        group = zarr.open_group(path, mode="r")
        for name, dtype, shape in arrays_in(content):
            folder.check_shape(group[name], dtype, shape)


def test_the_checker_finds_what_is_wrong(folder):
    with pytest.raises(AssertionError):
        folder.check_shape(np.zeros((3, 4), np.float32), "float32", "n_images, n_features")
    with pytest.raises(AssertionError):
        check_json({"a": 1.5}, "a int")
    with pytest.raises(AssertionError):
        check_json({"features": [{"x": 1}, {"x": None}]}, "features[].x number")
    with pytest.raises(KeyError):
        check_json({}, "a int")


def test_run_log_holds_every_setting(folder):
    log = read_json(folder.files.run_log)
    assert {field.name for field in dataclasses.fields(Config)} <= set(log)


def test_paths_inside_files_are_relative_and_lead_to_files(folder):
    root = folder.files.root
    paths = [row["image_path"] for row in folder.rows]
    for item in read_json(folder.files.overlay_summary)["items"]:
        paths += [item[key] for key in ("base_image_path", "overlay_path", "tokenmap_path")]
    paths += read_json(folder.files.feature_analysis_summary)["files"].values()
    for path in paths:
        assert not Path(path).is_absolute()
        assert (root / path).is_file(), path


def test_a_result_folder_of_the_older_scripts_is_read(finished, tmp_path):
    """Only what they wrote: no codes, no site and step in the manifest, no identity in the log."""
    theirs, files = tmp_path / "run", RunDir.of(finished)
    shutil.copytree(files.images, theirs / "images")
    shutil.copy(files.s_matrix, theirs)
    write_json(theirs / "run_log.json", {"layer_index": 15, "target_step_number": 14})
    for row in read_jsonl(files.manifest):
        append_jsonl(theirs / "manifest.jsonl", {k: v for k, v in row.items() if k not in ("site", "step")})
    config = make_config(out_dir=str(theirs), **SMALL)
    run_steps(config, "2-4")
    features = read_json(RunDir.of(config).selected_features)["features"]
    ours = read_json(files.selected_features)["features"]
    assert [f["feature_id"] for f in features] == [f["feature_id"] for f in ours]
    assert all(f["crop_coherence"] is None for f in features)
    with pytest.raises(MissingInputError, match="codes"):
        run_steps(config, "5")


def test_seeds_follow_from_prompt_and_repetition(folder):
    for row in folder.rows:
        assert row["seed"] == 42 + 2 * row["prompt_idx"] + row["rep_idx"]


def test_settings_have_the_names_and_defaults_of_the_page():
    shapes, dev = make_config(), make_config(model_id="black-forest-labs/FLUX.1-dev")
    for name, default in table("Settings"):
        if default.startswith("model"):
            bracket = re.search(r"\((.*)\)", default)
            if bracket:
                assert getattr(dev, name) == json.loads(bracket[1])
        else:
            assert getattr(shapes, name) == json.loads(default), name


@pytest.mark.parametrize(("module", "names"), table("Modules in `interp_scripts/`"))
def test_the_scripts_modules_have_the_names_of_the_page(module, names, monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "interp_scripts"))
    loaded = importlib.import_module(module)
    for name in names.split(", "):
        assert hasattr(loaded, name)


def test_the_scripts_config_lists_every_setting_with_the_packages_default():
    code = (
        "import dataclasses, config, fluxscope.settings.config as base\n"
        "mine = config.Config.__annotations__\n"
        "assert list(mine) and set(mine) == {f.name for f in dataclasses.fields(base.Config)}, 'names'\n"
        "for f in dataclasses.fields(base.Config):\n"
        "    if f.name != 'prompts_path':\n"
        "        assert getattr(config.Config, f.name) == f.default, f.name\n"
        "assert config.get_config(height=256).height == 256\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY / "interp_scripts", capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
