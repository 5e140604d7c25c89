"""Embeddings of prompts: made once, found again by content, never trusted when damaged."""

import pytest
import torch

from fluxscope.models.families import Flux1
from fluxscope.models.model import open_model
from fluxscope.models.prompts import PromptStore
from fluxscope.shapes.shipped import FLUX_SHAPES

PROMPTS = [f"a {size} {colour} circle" for size in ("large", "small") for colour in ("red", "blue", "green")]


@pytest.fixture
def encoded(monkeypatch):
    """The batches that text encoders were given."""
    batches = []
    encode = Flux1.encode

    def counting(self, pipe, prompts, length, device):
        batches.append(list(prompts))
        return encode(self, pipe, prompts, length, device)

    monkeypatch.setattr(Flux1, "encode", counting)
    return batches


def opened(folder, dtype="float32"):
    return open_model(FLUX_SHAPES, "cpu", dtype, prompt_folder=folder)


def test_another_process_finds_them_and_loads_no_text_encoder(tmp_path, encoded, monkeypatch):
    first = opened(tmp_path).encode(PROMPTS)
    assert encoded == [PROMPTS]
    monkeypatch.setattr(Flux1, "load_text", lambda *a: pytest.fail("text encoders were loaded again"))
    again = opened(tmp_path).encode([*PROMPTS[::-1], PROMPTS[0]])
    assert encoded == [PROMPTS]
    assert list(again) == PROMPTS[::-1]
    for prompt in PROMPTS:
        assert torch.equal(again[prompt].tokens, first[prompt].tokens)
        assert torch.equal(again[prompt].pooled, first[prompt].pooled)
    assert not torch.equal(again[PROMPTS[0]].tokens, again[PROMPTS[1]].tokens)


@pytest.mark.parametrize("change", ["length", "dtype", "prompt"])
def test_what_decides_an_embedding_is_in_its_name(tmp_path, encoded, change):
    opened(tmp_path).encode(PROMPTS[:1], 20)
    match change:
        case "length":
            found = opened(tmp_path).encode(PROMPTS[:1], 16)[PROMPTS[0]]
            assert len(found.tokens) == 16
        case "dtype":
            found = opened(tmp_path, "bfloat16").encode(PROMPTS[:1], 20)[PROMPTS[0]]
            assert found.tokens.dtype == torch.bfloat16
        case "prompt":
            opened(tmp_path).encode([PROMPTS[0] + " "], 20)
    assert len(encoded) == 2


@pytest.mark.parametrize("damage", [b"", b"\x00" * 100, "half", "a byte less"])
def test_a_damaged_file_is_made_anew(tmp_path, encoded, damage):
    whole = opened(tmp_path).encode(PROMPTS[:2])
    tokens = whole[PROMPTS[0]].tokens
    for path in tmp_path.glob("*.safetensors"):
        kept = {"half": 200, "a byte less": -1}.get(damage)
        path.write_bytes(path.read_bytes()[:kept] if kept else damage)
    again = opened(tmp_path).encode(PROMPTS[:2])
    assert len(encoded) == 2
    assert torch.equal(again[PROMPTS[0]].tokens, tokens)


def test_a_batch_of_which_one_is_missing_is_embedded_whole(tmp_path, encoded):
    """Embeddings don't depend on where a killed process stopped."""
    opened(tmp_path).encode(PROMPTS)
    sorted(tmp_path.glob("*.safetensors"))[0].unlink()
    opened(tmp_path).encode(PROMPTS)
    assert encoded == [PROMPTS, PROMPTS]


def test_without_a_folder_they_live_as_long_as_the_model(encoded):
    model = open_model(FLUX_SHAPES, "cpu", "float32")
    assert model.encode(PROMPTS[:1])[PROMPTS[0]].tokens.shape == (20, 96)
    model.encode(PROMPTS[:1])
    assert len(encoded) == 1
    with pytest.raises(KeyError):
        model.encode(PROMPTS[:1])[PROMPTS[1]]


def test_what_is_there_is_told_without_reading_it(tmp_path, encoded, monkeypatch):
    opened(tmp_path).encode(PROMPTS)
    read, asked = PromptStore.read, []
    monkeypatch.setattr(PromptStore, "read", lambda self, prompt: asked.append(prompt) or read(self, prompt))
    opened(tmp_path).encode(PROMPTS)
    assert encoded == [PROMPTS]
    assert len(set(asked)) <= 1  # one that the check of types in tests picks
