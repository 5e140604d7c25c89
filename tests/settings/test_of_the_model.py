"""What a setting is that nobody gave: the model's own."""

import json

import pytest

from fluxscope.models.families import FAMILIES, default_settings
from fluxscope.settings.config import Config, make_config
from fluxscope.settings.pictures import same_range, same_share

DEV, SCHNELL = "black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-schnell"
KLEIN, KLEIN_BASE = "black-forest-labs/FLUX.2-klein-4B", "black-forest-labs/FLUX.2-klein-base-4B"


def of_sampling(config):
    return (
        config.num_inference_steps,
        config.guidance_scale,
        config.target_step_number,
        config.steer_steps,
        config.max_sequence_length,
    )


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("flux-shapes", (20, 3.5, 14, "all", 20)),
        (DEV, (20, 3.5, 14, "0-5", 512)),
        (SCHNELL, (4, 0.0, 3, "0-0", 256)),
        ("black-forest-labs/FLUX.2-dev", (20, 4.0, 14, "0-5", 512)),
        (KLEIN, (4, 1.0, 3, "0-0", 512)),
        (KLEIN_BASE, (20, 4.0, 14, "0-5", 512)),
    ],
)
def test_what_is_not_set_is_the_models_own(model, expected):
    assert of_sampling(make_config(model_id=model)) == expected


def test_the_contracts_defaults_stand_as_scripts_read_them():
    config = Config()
    assert (config.num_inference_steps, config.guidance_scale, config.target_step_number) == (20, 3.5, 14)
    assert config.target_step_index == 13


@pytest.mark.parametrize(
    ("index", "transformer", "expected"),
    [
        ("FluxPipeline", {"guidance_embeds": False}, (4, 0.0, 3)),
        ("FluxPipeline", {"guidance_embeds": True}, (20, 3.5, 14)),
        ("FluxPipeline", {}, (20, 3.5, 14)),
        ("Flux2KleinPipeline", {"is_distilled": True}, (4, 1.0, 3)),
        ("Flux2KleinPipeline", {"is_distilled": False}, (20, 4.0, 14)),
        ("Flux2KleinPipeline", {}, (20, 4.0, 14)),
        ("Flux2Pipeline", {}, (20, 4.0, 14)),
    ],
)
def test_a_folder_tells_what_it_holds_whatever_its_name_is(tmp_path, index, transformer, expected):
    """No weights are there to be loaded."""
    folder = tmp_path / "model"
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": index, **transformer}))
    (folder / "transformer" / "config.json").write_text(json.dumps(transformer))
    assert of_sampling(make_config(model_id=str(folder)))[:3] == expected


def test_what_is_set_stays():
    given = {"num_inference_steps": 10, "guidance_scale": 2.0, "target_step_number": 2, "steer_steps": "0-8"}
    assert of_sampling(make_config(model_id=SCHNELL, **given, max_sequence_length=64)) == (
        10, 2.0, 2, "0-8", 64,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "target", "steered"),
    [
        *((1, 1, "0-0"), (2, 1, "0-0"), (4, 3, "0-0"), (8, 6, "0-1"), (20, 14, "0-5")),
        *((28, 20, "0-7"), (50, 35, "0-14")),
    ],
)
def test_steps_follow_their_number_by_the_same_share(steps, target, steered):
    config = make_config(model_id=DEV, num_inference_steps=steps)
    assert (config.target_step_number, config.steer_steps) == (target, steered)
    assert make_config(num_inference_steps=steps).steer_steps == "all"


def test_a_step_that_is_carried_over_is_the_nearest_one():
    for of in (1, 4, 20):
        for n_steps in range(1, 60):
            for step in range(1, of + 1):
                found = same_share(step, of, n_steps)
                assert 1 <= found <= n_steps
                assert min(abs(k / n_steps - step / of) for k in range(1, n_steps + 1)) == pytest.approx(
                    abs(found / n_steps - step / of)
                )
    assert same_range("6-12", 20, 10) == "3-6"
    assert same_range("0-19", 20, 7) == "0-6"


def test_every_family_says_what_a_picture_needs():
    needed = {
        *("height", "width", "num_inference_steps", "guidance_scale", "max_sequence_length"),
        *("target_step_number", "steer_steps", "batch_size"),
    }
    for family in FAMILIES:
        for name in (
            f"somebody/{family.name}-dev",
            f"somebody/{family.name}-schnell",
            f"{family.name}-klein",
        ):
            assert needed <= set(default_settings(name))
