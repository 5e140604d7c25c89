from string import ascii_lowercase

import pytest
import torch

from fluxscope.errors import CheckpointError, ConfigError, FluxscopeError
from fluxscope.models.model import open_model
from fluxscope.models.spec import PictureSpec
from fluxscope.shapes.shipped import FLUX_SHAPES

SPEC = PictureSpec(height=128, width=128, steps=4, guidance=3.5)
PROMPTS = ["a large red circle on a white background", "a small blue square on a black background"]


def test_a_picture_depends_on_its_own_seed_alone(model):
    together = model.sample(PROMPTS, [5, 6], spec=SPEC)
    alone = model.sample(PROMPTS[1:], [6], spec=SPEC)
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together[:1], alone, atol=0.1)


def test_our_pictures_are_those_of_the_plain_pipeline(model):
    from diffusers import FluxPipeline

    from fluxscope.shapes.shipped import resolve

    whole = FluxPipeline.from_pretrained(resolve(FLUX_SHAPES), dtype=torch.float32)
    whole.set_progress_bar_config(disable=True)
    theirs = whole(
        PROMPTS[0],
        height=128,
        width=128,
        num_inference_steps=4,
        guidance_scale=3.5,
        max_sequence_length=20,
        generator=[torch.Generator("cpu").manual_seed(3)],
        output_type="np",
    ).images
    ours = model.pictures(PROMPTS[:1], [3], spec=SPEC)
    difference = torch.from_numpy(theirs * 255).round() - ours
    assert difference.abs().max() <= 1


def test_rectangular_pictures(model):
    spec = PictureSpec(height=96, width=160, steps=2, guidance=3.5)
    assert model.pictures(PROMPTS[:1], [0], spec=spec).shape == (1, 96, 160, 3)


def test_unknown_words_are_listed_once_with_the_known_ones(model):
    prompts = ["a large red elephant on a white background", "a small elephant, black background"]
    warnings = model.encode(prompts).warnings
    assert len(warnings) == 1
    assert warnings[0].startswith("words the model does not know: elephant. It knows: ")
    assert "circle" in warnings[0]
    many = model.encode([f"a {'zq' * 500} and " + " ".join(f"zq{letter}" for letter in ascii_lowercase)])
    listed = [warning for warning in many.warnings if warning.startswith("words the model does not know: ")]
    assert f"know: {'zq' * 18}z..., zqa, zqb" in listed[0] and "zqs and 7 more. It knows: " in listed[0]


@pytest.mark.parametrize("prompt", ["", "a red circle " * 200, "🙂 ♥", "\t"])
def test_odd_prompts_are_embedded(model, prompt):
    embeddings = model.encode([prompt])
    assert torch.isfinite(embeddings[prompt].tokens).all()
    assert embeddings[prompt].tokens.shape[0] == 20


def test_long_prompts_are_cut_and_said_so(model):
    warnings = model.encode(["a red circle " * 200]).warnings
    assert any("1 prompts were cut after 20 text tokens" in warning for warning in warnings)


def test_more_text_tokens_than_the_model_reads_is_an_error(model):
    with pytest.raises(ConfigError, match="max_sequence_length is 5000"):
        model.encode(["a"], 5000)


def test_a_model_that_is_not_there_is_a_clear_error(tmp_path):
    with pytest.raises(FluxscopeError, match="cannot be loaded"):
        open_model(str(tmp_path), "cpu", "float32")


def test_a_weights_file_cut_short_is_named(tmp_path):
    import shutil

    from fluxscope.shapes.shipped import resolve

    shutil.copytree(resolve(FLUX_SHAPES), tmp_path / "model")
    weights = next((tmp_path / "model" / "transformer").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=weights.name):
        _ = open_model(str(tmp_path / "model"), "cpu", "float32").pipe


def test_the_examples_of_the_module_run():
    """What its docstring shows, as it stands there."""
    import textwrap

    import fluxscope
    import fluxscope.models.model as module

    lines = module.__doc__.splitlines()
    code = textwrap.dedent("\n".join(line for line in lines if line.startswith("    ")))
    names = {name: getattr(fluxscope, name) for name in fluxscope.__all__}
    exec(code, names)
    assert names["pictures"].shape == (1, 128, 128, 3)
    assert names["latents"].shape == (1, 64, 32)
    assert names["heard"][13].shape == (1, 64, 128)
    assert names["steered"].shape == (2, 128, 128, 3)
    assert (names["steered"][0] != names["steered"][1]).any()


def test_the_readme_s_notebook_runs():
    import re
    from pathlib import Path

    page = (Path(__file__).parents[2] / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {}
    exec(code, names)
    assert names["pictures"].shape == (1, 128, 128, 3)
    moved = (names["plain"].int() - names["steered"].int()).abs().float()
    assert moved.mean() > 1
