"""The scripts of interp_scripts/: their names, the quick test to the letter, the errors people look up."""

import importlib
import inspect
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch

from fluxscope.draw.heatmap import token_map_to_heatmap
from fluxscope.errors import FluxscopeError, OutOfMemory, clear_memory_errors
from fluxscope.files import read_json, read_jsonl
from fluxscope.sae.features import extract_image_tokens, load_sae
from fluxscope.shapes.shipped import TEST_PROMPTS

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = REPOSITORY / "interp_scripts"
PROMPTS = ["A red apple on a white table", "A blue car on a city street"]

NUMBERED = (
    *("01_collect_activations.py", "02_analyze_features.py", "03_clip_embed.py", "04_select_features.py"),
    *("05_generate_overlays.py", "06_make_contact_sheet.py", "07_feature_steering.py"),
    *("08_visualize_decoder.py", "09_compare_layers.py", "10_find_steering_demos.py"),
    "11_assemble_steering_grids.py",
)
COMMANDS = ("run_pipeline.py", *NUMBERED, "steering_contact_sheet.py", "test_stronger_steering.py")
MODULES = ("config.py", "sae_model.py", "sae_utils.py", "flux_hooks.py", "heatmap_utils.py", "io_utils.py")

SIGNATURES = {
    "sae_model": {
        "SparseAutoencoder": "input_dim hidden_dim l1_coeff",
        "TopKSparseAutoencoder": "input_dim hidden_dim k",
    },
    "sae_utils": {
        "load_sae": "ckpt_path device",
        "extract_image_tokens": "activation n_image_tokens image_tokens_first",
        "compute_feature_activations": "activation sae n_image_tokens token_chunk_size",
        "compute_feature_stats": "activation sae",
        "encode_to_feature_map": "activation sae feature_id",
        "get_decoder_direction": "sae feature_id",
        "get_encoder_direction": "sae feature_id",
    },
    "flux_hooks": {
        "StepActivationCatcher": "target_step_index",
        "FeatureSteeringHook": "sae feature_id strength step_range n_image_tokens normalize_direction",
        "EncodeDecodeSteeringHook": "sae feature_id scale step_range n_image_tokens",
        "MultiFeatureSteeringHook": "sae feature_strengths step_range",
    },
    "heatmap_utils": {
        "token_map_to_heatmap": (
            "token_values image_width image_height token_grid_size clip_percentile min_clip"
        ),
        "token_map_to_blocky_heatmap": "token_values image_width image_height token_grid_size",
        "overlay_heatmap": "base_rgb heatmap alpha_scale color",
        "create_side_by_side": "",
        "create_feature_grid": "images ncols padding background",
    },
    "io_utils": {
        "ensure_dir": "",
        "read_prompts": "",
        "write_json": "",
        "read_json": "",
        "append_jsonl": "",
        "read_jsonl": "",
        "load_manifest": "manifest_path out_dir",
        "count_manifest_rows": "",
    },
}
"""The parameters that scripts pass by name or by place."""


def test_the_folder_holds_the_contracts_files_and_no_other_script():
    assert {p.name for p in SCRIPTS.glob("*.py")} == {*COMMANDS, *MODULES, "front_door.py"}
    prompts = SCRIPTS / "test_prompts.txt"
    assert prompts.is_file() and not prompts.is_symlink()
    assert prompts.read_bytes() == TEST_PROMPTS.read_bytes()  # the package's sample is the same


@pytest.mark.parametrize("name", [*COMMANDS, *MODULES])
def test_every_script_starts_from_any_folder(name, tmp_path):
    command = [sys.executable, str(SCRIPTS / name), "--help"]
    started = [
        subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for folder in (tmp_path, REPOSITORY, SCRIPTS)
    ]
    for process in started:
        out, complaints = process.communicate()
        assert (process.returncode, complaints) == (0, "")
        assert (f"Usage: {name}" in out) == (name in COMMANDS)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the tree in which the quick test was done: the folder, and what the run printed."""
    folder = tmp_path_factory.mktemp("quick") / "clone"
    shutil.copytree(SCRIPTS, folder / "interp_scripts", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "src").symlink_to(REPOSITORY / "src")
    config = folder / "interp_scripts" / "config.py"
    text = config.read_text()
    assert text.count("reps_per_prompt: int = 2") == 1
    config.write_text(text.replace("reps_per_prompt: int = 2", "reps_per_prompt: int = 1"))
    for prompt, sign in zip(PROMPTS, (">", ">>"), strict=True):
        subprocess.run(
            f'echo "{prompt}" {sign} interp_scripts/test_prompts.txt', shell=True, cwd=folder, check=True
        )
    return folder, run_pipeline(folder, "1,2,3,4")


def run_pipeline(folder: Path, steps: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "interp_scripts/run_pipeline.py", "--steps", steps]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_the_quick_test_succeeds_on_the_two_prompts_that_it_wrote(clone):
    folder, done = clone
    assert done.returncode == 0, done.stderr
    assert "2 prompts are too few to rank features by coherence" in done.stdout
    assert "words the model does not know: apple, table, car, city, street" in done.stdout + done.stderr
    rows = read_jsonl(folder / "interp_output" / "manifest.jsonl")
    assert [(row["prompt"], row["seed"]) for row in rows] == [(PROMPTS[0], 42), (PROMPTS[1], 43)]


def test_the_quick_tests_selection_is_of_its_two_pictures(clone):
    out = clone[0] / "interp_output"
    selection = read_json(out / "selected_features.json")
    assert selection["num_images"] == 2
    assert selection["enforce_global_unique_images"] is False  # two pictures cannot serve ten features
    s = np.load(out / "S_matrix.npy")
    assert selection["num_alive_features"] == int((s > 1e-4).any(0).sum())
    assert len(selection["features"]) == 10
    first, second = np.load(out / "clip_embeddings.npy")
    for feature in selection["features"]:
        column = s[:, feature["feature_id"]]
        assert column.min() > 1e-4  # active on both prompts
        strongest_first = np.argsort(-column, kind="stable").tolist()
        assert feature["top_m_image_ids"] == feature["example_image_ids"] == strongest_first
        assert feature["clip_coherence"] == pytest.approx(float(first @ second), abs=1e-5)


def test_overlays_and_the_contact_sheet_follow_the_quick_test(clone):
    done = run_pipeline(clone[0], "5,6")
    assert done.returncode == 0, done.stderr
    out = clone[0] / "interp_output"
    assert len(read_json(out / "overlays" / "overlay_summary.json")["items"]) == 20
    assert (out / "contact_sheet.png").is_file()


def python_that_knows(packages: str, script: Path, folder: Path) -> subprocess.CompletedProcess:
    """Run a script where only the packages of one folder are installed, and so fluxscope isn't."""
    environment = os.environ | {"PYTHONPATH": packages}
    command = [sys.executable, "-S", str(script)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_a_users_script_finds_every_module_and_the_clones_fluxscope_uninstalled(clone, tmp_path):
    folder = clone[0]
    script = folder / "interp_scripts" / "mine.py"
    imports = "".join(f"import {module}\n" for module in SIGNATURES)
    last = "import fluxscope, config\nprint(fluxscope.__file__, config.get_config().height)\n"
    script.write_text(imports + last)
    done = python_that_knows(sysconfig.get_paths()["purelib"], script, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{folder / 'src' / 'fluxscope' / '__init__.py'} 128\n"


def test_missing_dependencies_are_two_clear_lines(clone, tmp_path):
    done = python_that_knows("", clone[0] / "interp_scripts" / "run_pipeline.py", tmp_path)
    assert done.returncode == 1
    first, second = done.stderr.splitlines()
    assert first.startswith(f"error: not installed for {sys.executable}: torch, diffusers, ")
    assert second.startswith(f"  Run `make setup` in {clone[0]}, then the script with ")


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("reps_per_prompt: int = two", "error: line {line} of {folder}/config.py fails: NameError: "),
        ("reps_per_prompt: int = 0", "error: reps_per_prompt is 0, but must be at least 1"),
    ],
)
def test_a_mistake_in_config_py_is_two_clear_lines(written, said, tmp_path):
    scripts = tmp_path / "interp_scripts"
    shutil.copytree(SCRIPTS, scripts, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "src").symlink_to(REPOSITORY / "src")
    config = scripts / "config.py"
    before, _, after = config.read_text().partition("reps_per_prompt: int = 2")
    config.write_text(before + written + after)
    line = before.count("\n") + 1
    done = subprocess.run(
        [sys.executable, str(scripts / "run_pipeline.py"), "--steps", "2"], capture_output=True, text=True
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 2)
    assert done.stderr.startswith(said.format(line=line, folder=scripts))


def test_a_missing_sae_is_said_in_the_words_people_look_up(tmp_path):
    with pytest.raises(FluxscopeError, match="SAE checkpoint not found: .*nowhere.pt") as raised:
        load_sae(tmp_path / "nowhere.pt")
    assert "layer5_sae_path / layer15_sae_path" in raised.value.hint


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("x"), RuntimeError("CUDA error: out of memory")])
def test_running_out_of_memory_says_cause_and_remedy(error, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with (
        pytest.raises(OutOfMemory, match="^CUDA out of memory while loading the model$") as raised,
        clear_memory_errors("loading the model"),
    ):
        raise error
    for remedy in ("height", "width", "batch_size", "reps_per_prompt", "prompts", "lighter placement"):
        assert remedy in raised.value.hint


def test_other_errors_are_not_taken_for_lack_of_memory():
    with pytest.raises(RuntimeError, match="another"), clear_memory_errors("loading the model"):
        raise RuntimeError("another")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: token_map_to_heatmap(np.zeros(64, np.float32), 128, 192, (12, 8)),
        lambda: extract_image_tokens(torch.zeros(1, 64, 4), 96),
    ],
)
def test_tokens_that_do_not_fill_the_grid_are_said_with_the_rule(wrong):
    with pytest.raises(FluxscopeError, match="^Token count doesn't match grid: .*64 tokens.* 96$") as raised:
        wrong()
    assert "divisible by 16" in raised.value.hint
    assert "n_image_tokens = height/16 x width/16" in raised.value.hint


@pytest.mark.parametrize(("module", "name"), [(m, n) for m, names in SIGNATURES.items() for n in names])
def test_modules_keep_the_parameters_of_the_contract(module, name, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    thing = getattr(importlib.import_module(module), name)
    wanted = SIGNATURES[module][name].split()
    found = list(inspect.signature(thing).parameters.values())
    assert [p.name for p in found[: len(wanted)]] == wanted
    if wanted and name not in ("MultiFeatureSteeringHook",):
        required = inspect.Parameter.empty
        assert all(p.default is not required or p.kind is p.VAR_KEYWORD for p in found[len(wanted) :])
