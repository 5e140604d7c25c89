import pytest
import torch

from fluxscope.embedded import FLUX_SHAPES
from fluxscope.errors import CheckpointError, ConfigError, FluxscopeError
from fluxscope.models.flux import encode_prompts, load_denoiser
from fluxscope.models.sample import PictureSpec, decode, denoise

CPU = torch.device("cpu")
SPEC = PictureSpec(height=128, width=128, steps=4, guidance=3.5)
PROMPTS = ["a large red circle on a white background", "a small blue square on a black background"]


@pytest.fixture(scope="module")
def pipe():
    return load_denoiser(FLUX_SHAPES, CPU, torch.float32)


def embed(prompts):
    return encode_prompts(FLUX_SHAPES, prompts, 20, CPU, torch.float32)


def test_a_picture_depends_on_its_own_seed_alone(pipe):
    embeddings, _ = embed(PROMPTS)
    first, second = (embeddings[prompt] for prompt in PROMPTS)
    together = denoise(pipe, [first, second], [5, 6], SPEC)
    alone = denoise(pipe, [second], [6], SPEC)
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together[:1], alone, atol=0.1)


def test_our_pictures_are_those_of_the_plain_pipeline(pipe):
    from diffusers import FluxPipeline

    from fluxscope.embedded import resolve

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
    embeddings, _ = embed(PROMPTS[:1])
    ours = decode(pipe, denoise(pipe, list(embeddings.values()), [3], SPEC), SPEC)
    difference = torch.from_numpy(theirs * 255).round() - ours
    assert difference.abs().max() <= 1


def test_rectangular_pictures(pipe):
    embeddings, _ = embed(PROMPTS[:1])
    spec = PictureSpec(height=96, width=160, steps=2, guidance=3.5)
    assert decode(pipe, denoise(pipe, list(embeddings.values()), [0], spec), spec).shape == (1, 96, 160, 3)


def test_unknown_words_are_listed_once_with_the_known_ones():
    _, warnings = embed(["a large red elephant on a white background", "a small elephant, black background"])
    assert len(warnings) == 1
    assert warnings[0].startswith("words the model does not know: elephant. It knows: ")
    assert "circle" in warnings[0]


@pytest.mark.parametrize("prompt", ["", "a red circle " * 200, "🙂 ♥", "\t"])
def test_odd_prompts_are_embedded(prompt):
    embeddings, _ = embed([prompt])
    assert torch.isfinite(embeddings[prompt].tokens).all()
    assert embeddings[prompt].tokens.shape[0] == 20


def test_long_prompts_are_cut_and_said_so():
    _, warnings = embed(["a red circle " * 200])
    assert any("1 prompts were cut after 20 text tokens" in warning for warning in warnings)


def test_more_text_tokens_than_the_model_reads_is_an_error():
    with pytest.raises(ConfigError, match="max_sequence_length is 5000"):
        encode_prompts(FLUX_SHAPES, ["a"], 5000, CPU, torch.float32)


def test_a_model_that_is_not_there_is_a_clear_error(tmp_path):
    with pytest.raises(FluxscopeError, match="cannot be loaded"):
        load_denoiser(str(tmp_path), CPU, torch.float32)


def test_a_weights_file_cut_short_is_named(tmp_path):
    import shutil

    from fluxscope.embedded import resolve

    shutil.copytree(resolve(FLUX_SHAPES), tmp_path / "model")
    weights = next((tmp_path / "model" / "transformer").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=weights.name):
        load_denoiser(str(tmp_path / "model"), CPU, torch.float32)
