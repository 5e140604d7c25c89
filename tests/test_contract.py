"""docs/disk-format.md is the contract: its tables are read here and held against a real run and the code."""

import dataclasses
import importlib
import importlib.util
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

from fluxscope.errors import MissingInputError, RecordError
from fluxscope.files import append_jsonl, read_json, read_jsonl, write_json
from fluxscope.run.rundir import RunDir
from fluxscope.run.strict_json import Place
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
CONTRACT = {
    "manifest.jsonl": "image_id int, prompt_idx int, rep_idx int, seed int, prompt string, "
    "image_path string, height int, width int, layer_index int, target_step_number int, "
    "activation_shape list, "
    "generation_time number",
    "run_log.json": "layer_index int, target_step_number int, target_step_index int, sae_ckpt_path string, "
    "sae_hidden_dim int, sae_config object, n_image_tokens int, num_prompts int, num_images int, "
    "images_completed int, total_time_seconds number, python string, torch string",
    "feature_analysis_summary.json": "num_images int, hidden_dim int, eps_alive number, "
    "num_alive_features int, num_dead_features int, num_rare_features int, num_common_features int, "
    "num_very_common_features int, top_k int, files object",
    "clip_meta.json": "clip_model_id string, num_images int, embed_dim int, device_used string, "
    "normalized bool",
    "selected_features.json": "num_images int, num_alive_features int, top_m_per_feature int, "
    "top_features int, top_examples_per_feature int, enforce_global_unique_images bool, "
    "features[].feature_id int, features[].clip_coherence number, features[].example_image_ids list, "
    "features[].top_m_image_ids list",
    "overlays/overlay_summary.json": "layer_index int, target_step_number int, height int, width int, "
    "token_grid_size list, items[].feature_id int, items[].image_id int, items[].prompt string, "
    "items[].seed int, items[].base_image_path string, items[].overlay_path string, "
    "items[].tokenmap_path string, items[].activation_max number, items[].activation_mean number",
    "steering/steering_summary.json": "layer_index int, target_step_number int, scales list, "
    "experiments[].feature_id int, experiments[].image_id int, experiments[].prompt string, "
    "experiments[].seed int, experiments[].grid_path string",
    "decoder_stats.json": "features[].feature_id int, features[].decoder_norm number, "
    "features[].encoder_norm number, features[].encoder_decoder_cosine number, "
    "features[].decoder_mean number, features[].decoder_std number, features[].decoder_max number, "
    "features[].decoder_min number, pairwise_similarities[].feature_1 int, "
    "pairwise_similarities[].feature_2 int, pairwise_similarities[].cosine_similarity number",
    "layer_comparison/comparison_summary.json": "num_images int, hidden_dim int, layer5.mean_l0 number, "
    "layer5.std_l0 number, layer5.num_alive_features int, layer15.mean_l0 number, layer15.std_l0 number, "
    "layer15.num_alive_features int, comparison.alive_in_both int, comparison.alive_only_in_5 int, "
    "comparison.alive_only_in_15 int",
    "best_demos/best_demo_candidates.json": "config.n_candidates_to_sample int, "
    "config.n_candidates_to_test int, config.n_final int, config.test_strengths list, "
    "config.step_range list, config.min_percentile number, config.max_percentile number, config.seed int, "
    "config.save_images bool, features[].feature_id int, features[].all_scored list, "
    "features[].best_demos[].image_id int, features[].best_demos[].prompt string, "
    "features[].best_demos[].seed int, features[].best_demos[].activation number, "
    "features[].best_demos[].best_strength number, features[].best_demos[].pos_lpips number, "
    "features[].best_demos[].neg_lpips number, features[].best_demos[].consistency number, "
    "features[].best_demos[].combined_score number",
    "best_demos/best_demo_ids.json": "*[].image_id int, *[].strength number",
    "steering_grids/steering_grids_summary.json": "strengths list, grids[].feature_id int, "
    "grids[].demo_idx int, grids[].image_id int, grids[].prompt string, grids[].seed int, "
    "grids[].score number, grids[].grid_path string",
}
"""The keys that existing scripts rely on, and that result folders of theirs have: fixed for ever."""

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
    """What lies at a path such as `features[].demos[].image_id`: one value for every element of each list.

    A star stands for every value of an object. Nothing lies in null.
    """
    if not path:
        return [value]
    if value is None:
        return []
    if path.startswith("[]"):
        return [found for element in value for found in values_at(element, path[2:])]
    name, rest = re.fullmatch(r"\.?(\*|[^.\[]+)(.*)", path).groups()
    return [
        found
        for each in (value.values() if name == "*" else [value[name]])
        for found in values_at(each, rest)
    ]


def check_json(value: object, content: str) -> None:
    for path, kind in re.findall(r"([\w\[\].*]+) (int|number|string|bool|object|list)\b", content):
        nullable = f"{path} {kind}?" in content
        for found in values_at(value, path):
            right = isinstance(found, TYPES[kind]) and (kind == "bool" or not isinstance(found, bool))
            assert right or (nullable and found is None), f"{path} is {found!r}, not {kind}"


def keys_of(name: str) -> str:
    """What the page says of a JSON file: "key type" of every key, those of any name (settings) left out."""
    section = PAGE.split(f"### `{name}`\n")[1].split("\n### ")[0].split("<!-- end")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines()[3:] if line
    ]
    mixed = [key.removesuffix("*") for key, kind, _ in rows if key.endswith("*") and kind != "list"]
    left_out = [key for key, _, _ in rows if any(key.startswith(f"{m}*") for m in mixed)]
    return ", ".join(f"{key} {kind}" for key, kind, _ in rows if key not in left_out)


@pytest.fixture(scope="module", params=[15, 5], ids=["root", "layer_05"])
def folder(finished, request):
    config = make_config(
        **{**SMALL, **LITTLE_STEERING, "out_dir": finished.out_dir, "active_layer": request.param}
    )
    run_steps(config, ",".join(map(str, sorted(BUILT))))
    return Folder(config)


def test_every_file_of_a_run_is_as_the_page_says(folder):
    for step, pattern, content in FILES:
        paths = folder.paths(pattern)
        assert paths, pattern
        for path in paths:
            assert path.exists(), f"step {step} did not make {path}"
            check_file(folder, path, pattern, content)


def check_file(folder: Folder, path: Path, pattern: str, content: str) -> None:
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
        value = json.loads(path.read_text(), parse_constant=pytest.fail)
        check_json(value, keys_of(pattern))
        check_json(value, CONTRACT.get(pattern, ""))
    elif path.suffix == ".jsonl":
        for row in read_jsonl(path):
            check_json(row, keys_of(pattern))
            check_json(row, CONTRACT[pattern])
    else:
        group = zarr.open_group(path, mode="r")
        for name, dtype, shape in arrays_in(content):
            folder.check_shape(group[name], dtype, shape)


def test_the_page_and_its_records_are_in_step():
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "docs" / "make_disk_format.py"), "--check"], capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()


def example_of(paths: list[list[str]]) -> dict:
    """An object with these keys and no others."""
    values = {"int": 1, "number": 0.5, "string": "x", "bool": True, "object": {}, "list": []}
    found: dict = {}
    for path, kind in paths:
        here = found
        *folders, last = path.split(".")
        for name in folders:
            here = here.setdefault(name[:-2], [{}])[0] if name.endswith("[]") else here.setdefault(name, {})
        here[last] = values[kind]
    return found


@pytest.mark.parametrize("name", [name for name in CONTRACT if "*" not in CONTRACT[name]])
def test_a_file_with_the_contracts_keys_alone_is_read(name):
    paths = [pair.split() for pair in CONTRACT[name].split(", ")]
    value = example_of(paths)
    written = make_disk_format().FILES[name].from_json(value, Place(Path(name))).to_json()
    for path, _ in paths:
        assert values_at(written, path) == values_at(value, path)


@pytest.mark.parametrize(
    ("name", "key"),
    [(n, pair.split()[0]) for n in CONTRACT if "*" not in CONTRACT[n] for pair in CONTRACT[n].split(", ")],
)
def test_a_key_of_the_contract_that_is_of_another_type_is_refused(name, key):
    paths = [pair.split() for pair in CONTRACT[name].split(", ")]
    value = example_of([[path, kind] for path, kind in paths])
    here: dict = value
    *folders, last = key.split(".")
    for folder in folders:
        here = here[folder[:-2]][0] if folder.endswith("[]") else here[folder]
    here[last] = ("a", "wrong") if last != "files" else 3
    with pytest.raises(RecordError, match=last):
        make_disk_format().FILES[name].from_json(value, Place(Path(name)))


def make_disk_format():
    spec = importlib.util.spec_from_file_location(
        "make_disk_format", REPOSITORY / "docs" / "make_disk_format.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_checker_finds_what_is_wrong(folder):
    with pytest.raises(AssertionError):
        folder.check_shape(np.zeros((3, 4), np.float32), "float32", "n_images, n_features")
    with pytest.raises(AssertionError):
        check_json({"a": 1.5}, "a int")
    with pytest.raises(AssertionError):
        check_json({"features": [{"x": 1}, {"x": None}]}, "features[].x number")
    with pytest.raises(KeyError):
        check_json({}, "a int")
    with pytest.raises(AssertionError):
        check_json({"a": [{"b": [{"c": 1}, {"c": "1"}]}]}, "a[].b[].c int")
    with pytest.raises(AssertionError):
        check_json({"a": {"x": {"b": 1}, "y": {"b": True}}}, "a.*.b int")


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
    ours = np.load(files.feature_scores)["clip_coherence"]
    assert features and all(f["clip_coherence"] == ours[f["feature_id"]] for f in features)
    whole = np.load(theirs / "feature_scores.npz")["clip_held_out"]  # whole pictures taught, not their tiles
    assert features[0]["clip_held_out"] == np.nanmax(np.where(np.isnan(ours), np.nan, whole))
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
