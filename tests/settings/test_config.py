import pytest

from fluxscope.errors import ConfigError
from fluxscope.settings.config import Config, make_config, settings_table


def test_flux_dev_gets_its_own_sizes():
    config = make_config(model_id="black-forest-labs/FLUX.1-dev")
    assert (config.height, config.width, config.max_sequence_length) == (256, 256, 512)
    assert config.clip_model_id == "openai/clip-vit-base-patch32"
    assert config.sae_paths == {}


def test_flux_shapes_gets_its_own_sizes_and_a_set_value_wins():
    assert make_config().image_token_grid == (8, 8)
    wide = make_config(width=256)
    assert (wide.image_token_grid, wide.n_image_tokens, wide.patch_grid) == ((8, 16), 128, (8, 16))


def test_steered_steps_follow_from_the_model_and_a_set_value_wins():
    assert make_config().steer_steps == "all"
    assert make_config(model_id="black-forest-labs/FLUX.1-dev").steer_steps == "0-5"
    assert make_config(steer_steps="6-12").steer_steps == "6-12"


def test_step_number_counts_from_one_and_index_from_zero():
    assert make_config(target_step_number=14).target_step_index == 13


def test_captured_steps_begin_with_the_target_and_are_given_once():
    assert make_config(capture_steps="3,14,20").captured_step_indices == (13, 2, 19)


def test_layers_are_the_active_one_first():
    assert make_config(active_layer=5).collected_sites == ("double.5.ff", "double.15.ff")
    assert make_config(active_layer=5, compare_layers=False).collected_sites == ("double.5.ff",)


@pytest.mark.parametrize(
    ("settings", "part_of_message", "part_of_hint"),
    [
        ({"heigth": 128}, "unknown setting: heigth", "height"),
        ({"height": 100}, "multiple of 16", "96 or 112"),
        ({"height": 8}, "at least 16", ""),
        ({"target_step_number": 21}, "not among the 20 steps", "count from 1"),
        ({"target_step_number": 0}, "at least 1", ""),
        ({"capture_steps": (3, 21)}, "capture_steps 21 is not among", "count from 1"),
        ({"capture_steps": "3,x"}, "cannot be '3,x'", "3,13,19"),
        ({"guidance_scale": float("nan")}, "finite", ""),
        ({"guidance_scale": "high"}, "must be float", ""),
        ({"reps_per_prompt": True}, "must be int", ""),
        ({"active_layer": 4}, "cannot be 4", "5, 15"),
        ({"rank_by": "beauty"}, "cannot be 'beauty'", "clip_coherence"),
        ({"patch_grid": (16, 16)}, "does not fit", "(8, 8)"),
        ({"alpha_scale": 1.5}, "at most 1", ""),
    ],
)
def test_wrong_settings_are_refused(settings, part_of_message, part_of_hint):
    with pytest.raises(ConfigError) as caught:
        make_config(**settings)
    assert part_of_message in caught.value.message
    assert part_of_hint in caught.value.hint


def test_layer_without_sae_is_an_error_when_asked_for():
    with pytest.raises(ConfigError, match="no SAE checkpoint is set for layer 15"):
        _ = make_config(model_id="black-forest-labs/FLUX.1-dev").sae_ckpt_path


def test_every_setting_says_what_it_means():
    for name, field in settings_table().items():
        assert field.metadata["help"].endswith("."), name
    assert issubclass(type(make_config()), Config)
