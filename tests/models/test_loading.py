"""Loading the model's two parts, and what is said of prompts and folders that are not as they should be."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from fluxscope.errors import CheckpointError, ConfigError, FluxscopeError
from fluxscope.models.model import Model, open_model
from fluxscope.shapes import FLUX_SHAPES


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FLUX_SHAPES, tmp_path / "model"))


def test_equal_prompts_are_encoded_once_and_known_words_raise_no_warning(model: Model) -> None:
    embeddings = model.encode(["a red circle", "a blue star", "a red circle"])
    assert list(embeddings) == ["a red circle", "a blue star"]
    assert embeddings["a red circle"].tokens.shape == (20, 96)
    assert embeddings.warnings == ()


@pytest.mark.parametrize("prompt", ["", "word " * 500, "🙂", "a zebra, in a forest!"])
def test_strange_prompts_are_encoded_to_finite_numbers(model: Model, prompt: str) -> None:
    embedding = model.encode([prompt])[prompt]
    assert torch.isfinite(embedding.tokens).all()
    assert embedding.pooled is not None and torch.isfinite(embedding.pooled).all()


def test_one_warning_lists_unknown_words_and_the_words_that_are_known(model: Model) -> None:
    warnings = model.encode(["a zebra left of a red circle", "a Zebra, or a unicorn"]).warnings
    assert len(warnings) == 1
    assert "zebra, or, unicorn" in warnings[0]
    assert "triangle" in warnings[0].split("It knows:")[1]


def test_long_prompts_are_counted_and_named_in_a_warning(model: Model) -> None:
    warnings = model.encode(["red " * 500, "a red circle"]).warnings
    assert warnings == (f"1 prompts were cut after 20 text tokens: '{('red ' * 10)[:37]}...'",)


def test_a_prompt_that_only_clip_cuts_is_told_by_its_words(model: Model) -> None:
    """CLIP needs a token more than T5: it marks a prompt's beginning and its end."""
    longest, beyond = "a small blue star " + "red " * 14, "a small blue star " + "red " * 15
    assert model.encode([longest]).warnings == ()
    (warning,) = model.encode([beyond, longest]).warnings
    assert warning.startswith("1 prompts were cut after 20 tokens by the encoder of their gist (CLIP)")
    assert "'a small blue star red" in warning


def test_of_many_cut_prompts_three_are_named(model: Model) -> None:
    (warning,) = model.encode([f"{word} " * 30 for word in ("red", "blue", "green", "black")]).warnings
    assert warning.startswith("4 prompts were cut after 20 text tokens: 'red red")
    assert "'blue blue" in warning and "'green green" in warning and "'black" not in warning
    assert warning.endswith(" and 1 more")


def test_more_tokens_than_the_model_reads_are_refused(model: Model) -> None:
    with pytest.raises(ConfigError, match="at most 20 text tokens"):
        model.encode(["a red circle"], length=21)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "text_encoder_2"])
def test_a_truncated_weights_file_is_named(copy: Path, part: str) -> None:
    (file,) = (copy / part).glob("*.safetensors")
    with file.open("r+b") as handle:
        handle.truncate(file.stat().st_size // 2)
    with pytest.raises(CheckpointError, match=file.name) as caught:
        _ = open_model(str(copy), "cpu", "float32").pipe
    assert part in str(caught.value)


@pytest.mark.parametrize("damage", ["missing weights", "missing index", "cut config"])
def test_a_damaged_folder_gives_one_line_and_no_traceback_of_others(copy: Path, damage: str) -> None:
    match damage:
        case "missing weights":
            next((copy / "transformer").glob("*.safetensors")).unlink()
        case "missing index":
            (copy / "model_index.json").unlink()
        case "cut config":
            config = copy / "transformer" / "config.json"
            config.write_text(config.read_text()[:40])
    with pytest.raises(FluxscopeError) as caught:
        _ = open_model(str(copy), "cpu", "float32").pipe
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.hint


def test_a_transformer_of_another_width_is_refused(copy: Path) -> None:
    config = copy / "transformer" / "config.json"
    fields = json.loads(config.read_text())
    config.write_text(json.dumps({**fields, "attention_head_dim": 32, "axes_dims_rope": [4, 14, 14]}))
    with pytest.raises(FluxscopeError, match="cannot be loaded"):
        _ = open_model(str(copy), "cpu", "float32").pipe
