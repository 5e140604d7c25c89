"""Settings from a run's folder, a file and flags: which of them win."""

import pytest

from fluxscope.errors import ConfigError
from fluxscope.files import write_json
from fluxscope.run.made_with import load_config_of_run
from fluxscope.settings.config import make_config
from fluxscope.settings.load import load_config


@pytest.fixture
def folder(tmp_path):
    """An output folder whose run was made at other sizes and steps than the defaults."""
    identity = {
        **{"model_id": "flux-shapes", "height": 64, "width": 96, "num_inference_steps": 8},
        **{"target_step_number": 6, "capture_steps": [2], "base_seed": 7, "prompts_sha256": "ab"},
    }
    log = {
        **{"identity": identity, "layer_index": 5, "layer5_sae_path": "five.pt", "layer15_sae_path": ""},
        **{"images_subdir": "pictures", "overlays_subdir": "overlays", "num_images": 2},
    }
    write_json(tmp_path / "run" / "run_log.json", log)
    return str(tmp_path / "run")


def test_what_is_not_given_is_as_the_run_was_made(folder):
    config = load_config_of_run(None, out_dir=folder)
    assert config.image_token_grid == (4, 6)
    assert (config.num_inference_steps, config.target_step_number, config.base_seed) == (8, 6, 7)
    assert (config.active_layer, config.sae_paths) == (5, {"double.5.ff": "five.pt"})
    assert config.images_subdir == "pictures"
    assert config.capture_steps == ()


def test_flags_win_over_the_file_and_the_file_over_the_run(folder, tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text(f'out_dir = "{folder}"\nheight = 128\nwidth = 128\n')
    config = load_config_of_run(file, width=160)
    assert (config.height, config.width, config.num_inference_steps) == (128, 160, 8)


def test_a_run_of_another_model_or_program_says_nothing(folder, tmp_path):
    other = load_config_of_run(None, out_dir=folder, model_id="black-forest-labs/FLUX.1-dev")
    assert (other.height, other.num_inference_steps) == (256, 20)
    write_json(tmp_path / "theirs" / "run_log.json", {"height": 64, "target_step_number": "14"})
    theirs = load_config_of_run(None, out_dir=str(tmp_path / "theirs"))
    assert theirs == make_config(out_dir=str(tmp_path / "theirs"))
    write_json(tmp_path / "fifteen" / "run_log.json", {"layer_index": 15, "height": 64})
    assert load_config_of_run(None, out_dir=str(tmp_path / "fifteen")).site == "double.15.ff"
    own = load_config_of_run(None, out_dir=str(tmp_path / "fifteen"), active_site="double.5.attn")
    assert own.site == "double.5.attn"
    nowhere = load_config_of_run(None, out_dir=str(tmp_path / "nowhere"))
    assert nowhere.height == 128


def test_what_is_to_be_made_does_not_depend_on_what_is_there(folder):
    assert load_config(None, out_dir=folder).height == 128


def test_toml_file_and_flags_that_win_over_it(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text("height = 256\nbase_seed = 7\n")
    config = load_config(file, base_seed=8)
    assert (config.height, config.base_seed) == (256, 8)


def test_python_file_with_a_config_class(tmp_path):
    file = tmp_path / "settings.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "from fluxscope.settings.config import Config as Base\n"
        "@dataclass(frozen=True)\n"
        "class Config(Base):\n"
        "    base_seed: int = 9\n"
    )
    assert load_config(file).base_seed == 9


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("absent.toml", None, "not found"),
        ("bad.toml", "height = ", "not valid TOML"),
        ("bad.toml", "hight = 128", "unknown setting: hight"),
        ("empty.py", "", "defines no Config"),
        ("notes.txt", "height = 128", "neither"),
    ],
)
def test_wrong_settings_files_are_refused(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / name)
