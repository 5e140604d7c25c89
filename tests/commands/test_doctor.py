"""`fluxscope doctor`: what is missing is named, and nothing is fetched to find out."""

import json
import shutil
import socket

import pytest
from typer.testing import CliRunner

from fluxscope.commands.main import build_app
from fluxscope.files import write_json
from fluxscope.models.here import folder_here, missing_of_clip, missing_of_pipeline
from fluxscope.shapes.shipped import CLIP_SHAPES, FLUX_SHAPES, resolve

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of the Hub, and no network: whoever asks for it fails, and says so."""
    asked = []

    def refuse(*arguments, **named):
        asked.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    yield tmp_path / "hub"
    assert asked == []


@pytest.fixture
def copies(tmp_path):
    """Copies of the shipped model and CLIP, to take files from."""
    for name in (FLUX_SHAPES, CLIP_SHAPES):
        shutil.copytree(resolve(name), tmp_path / name)
    return tmp_path


def doctor(*flags):
    return CliRunner().invoke(build_app(), ("doctor", *flags))


def cached(cache, name, source):
    """Put a folder into the Hub's cache as fetching it would."""
    home = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(source, home / "snapshots" / "abc")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("abc")
    return home / "snapshots" / "abc"


@pytest.mark.parametrize(
    "taken", ["config.json", "model.safetensors", "processor_config.json"], ids=lambda name: name
)
def test_a_clip_that_lacks_a_file_is_missing_and_the_file_is_named(copies, taken):
    (copies / CLIP_SHAPES / taken).unlink()
    told = doctor("--clip-model-id", str(copies / CLIP_SHAPES))
    named = "preprocessor_config.json" if taken == "processor_config.json" else taken
    assert told.exit_code == 1 and "Nothing is missing" not in told.output
    assert f"lacks {named}\n" in told.output
    assert "  CLIP: copy or download the whole folder again" in told.output


def test_a_clip_cut_short_is_told(copies):
    weights = copies / CLIP_SHAPES / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    told = doctor("--clip-model-id", str(copies / CLIP_SHAPES))
    assert told.exit_code == 1 and "damaged or cut short" in told.output


def test_models_of_the_hub_that_are_not_here_are_missing_and_nothing_is_fetched():
    told = doctor(
        *("--model-id", "black-forest-labs/FLUX.1-dev", "--clip-model-id", "someone/clip"),
        *("--layer15-sae-path", "hf://someone/saes/topk/sae_best.pt", "--sites", "single.1=hf://a/b/c.pt"),
    )
    assert told.exit_code == 1
    for line in (
        *("black-forest-labs/FLUX.1-dev is not here", "  model: hf download black-forest-labs/FLUX.1-dev"),
        *("someone/clip is not here", "  CLIP: hf download someone/clip"),
        *("hf://someone/saes/topk/sae_best.pt is not here", "hf download someone/saes topk/sae_best.pt"),
        "hf://a/b/c.pt is not here",
    ):
        assert line in told.output


def test_a_clip_of_the_hubs_cache_is_found_and_its_weights_are_looked_for(cache):
    place = cached(cache, "someone/clip", resolve(CLIP_SHAPES))
    assert folder_here("someone/clip") == place
    told = doctor("--clip-model-id", "someone/clip")
    assert told.exit_code == 0 and told.output.endswith("Nothing is missing.\n")
    (place / "model.safetensors").unlink()
    told = doctor("--clip-model-id", "someone/clip")
    assert told.exit_code == 1 and "lacks model.safetensors" in told.output
    assert "  CLIP: hf download someone/clip" in told.output


@pytest.mark.parametrize(
    ("taken", "named"),
    [
        ("transformer/diffusion_pytorch_model.safetensors", None),
        ("vae/config.json", None),
        ("text_encoder_2/model.safetensors", None),
        ("tokenizer", None),
        ("scheduler", None),
        ("vae", "vae/config.json, vae/diffusion_pytorch_model.safetensors"),
    ],
)
def test_a_model_that_lacks_a_part_is_missing_and_the_part_is_named(copies, taken, named):
    path = copies / FLUX_SHAPES / taken
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    told = doctor("--model-id", str(copies / FLUX_SHAPES))
    assert told.exit_code == 1 and f"lacks {named or taken}\n" in told.output
    assert "transformer calls" in told.output  # what a run needs is still told


def test_a_missing_shard_is_named(copies):
    folder = copies / CLIP_SHAPES
    for name in SHARDS:
        shutil.copy(folder / "model.safetensors", folder / name)
    (folder / "model.safetensors").unlink()
    write_json(folder / "model.safetensors.index.json", {"weight_map": dict(zip("ab", SHARDS, strict=True))})
    assert missing_of_clip(folder) == []
    (folder / SHARDS[1]).unlink()
    assert missing_of_clip(folder) == [SHARDS[1]]


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "a\0b", "x" * 300, 5, None])
def test_a_list_of_weights_is_not_trusted(copies, name):
    (copies / "outside.safetensors").write_text("x")
    folder = copies / CLIP_SHAPES
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    assert missing_of_clip(folder) == [str(name)]
    told = doctor("--clip-model-id", str(folder))
    assert told.exit_code == 1 and "\0" not in told.output


@pytest.mark.parametrize("content", ["[]", "{", '{"weight_map": []}'])
def test_a_damaged_list_of_weights_is_no_traceback(copies, content):
    folder = copies / CLIP_SHAPES
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    told = doctor("--clip-model-id", str(folder))
    assert told.exit_code == 1 and isinstance(told.exception, SystemExit)


def test_what_ships_is_whole():
    assert missing_of_pipeline(folder_here(FLUX_SHAPES)) == []
    assert missing_of_clip(folder_here(CLIP_SHAPES)) == []
    assert folder_here("no/such-model") is None and folder_here("not a name, is it?") is None
