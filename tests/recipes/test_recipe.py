"""The pieces of the recipe that must be exact, whatever is trained with them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fluxscope.shapes import world
from recipes.flux_shapes import data
from recipes.flux_shapes.autoencoder import build_autoencoder
from recipes.flux_shapes.export import fold_normalisation
from recipes.flux_shapes.latents import pack
from recipes.flux_shapes.optimizer import MuonAdam
from recipes.flux_shapes.preview import unpack
from recipes.flux_shapes.progress import Stage
from recipes.flux_shapes.settings import AutoencoderSettings, RecipeSettings, TransformerSettings
from recipes.flux_shapes.text import build_clip_tokenizer, build_t5_tokenizer, token_labels, tokenize
from recipes.flux_shapes.transformer import build_transformer, grow, level_guidance, velocity
from recipes.flux_shapes.words import Words


def test_folding_leaves_pictures_alone_and_normalises_latents() -> None:
    torch.manual_seed(0)
    vae = build_autoencoder(AutoencoderSettings()).eval()
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    mean, std = np.linspace(-2, 3, 8, dtype=np.float32), np.linspace(0.5, 4, 8, dtype=np.float32)
    with torch.no_grad():
        before = vae.encode(pixels).latent_dist
        picture = vae.decode(before.mean).sample
        fold_normalisation(vae, mean, std)
        after = vae.encode(pixels).latent_dist
        again = vae.decode(after.mean).sample
    m, s = (torch.from_numpy(x)[:, None, None] for x in (mean, std))
    torch.testing.assert_close(after.mean, (before.mean - m) / s, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(after.std, before.std / s, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(again, picture, atol=1e-4, rtol=1e-4)


def test_packing_is_fluxs_and_unpacking_its_inverse() -> None:
    from diffusers import FluxPipeline

    latents = torch.randn(2, 8, 16, 16)
    packed = pack(latents)
    assert torch.equal(packed, FluxPipeline._pack_latents(latents, 2, 8, 16, 16))
    assert torch.equal(unpack(packed), latents)


def test_tokens_are_words_and_unknown_words_are_one_token() -> None:
    t5, clip = build_t5_tokenizer(20), build_clip_tokenizer(20)
    text = "A small RED circle, on an apple 🙂 background"
    ids = tokenize(t5, [text, ""], 20)
    assert ids.shape == (2, 20)
    words = t5.convert_ids_to_tokens(ids[0])[:10]
    assert words == ["a", "small", "red", "circle", ",", "on", "an", "<unk>", "background", "</s>"]
    assert ids[1].tolist() == [1] + [0] * 19
    row = tokenize(clip, ["word " * 500], 20)[0].tolist()
    assert row[0] == 0
    assert row[-1] == 1, "the end token survives truncation"


def test_every_caption_fits_both_tokenizers() -> None:
    rng = np.random.default_rng(0)
    for phrasing in range(len(world.PHRASINGS)):
        text = world.caption(world.sample_scene(rng, n_objects=2), phrasing)
        for tokenizer in (build_t5_tokenizer(20), build_clip_tokenizer(20)):
            ids = tokenizer(text).input_ids
            assert len(ids) <= 20
            assert tokenizer.unk_token_id not in ids


def test_labels_say_what_the_caption_says() -> None:
    labels, background = token_labels("a small red star left of a blue ring on a navy background", 20)
    shape, color, side = world.SHAPES.index, list(world.COLORS).index, world.RELATIONS.index
    assert labels[1].tolist() == [shape("star"), color("red"), 0, 1 + side("left of")]
    assert labels[7].tolist() == [shape("ring"), color("blue"), -1, 1 + side("right of")]
    assert (labels[0] == -1).all()
    assert background == list(world.BACKGROUNDS).index("navy")


def test_growing_changes_nothing_at_first() -> None:
    torch.manual_seed(0)
    settings = RecipeSettings(transformer=TransformerSettings(grown_places=(1, 3)))
    shallow = build_transformer(settings, 2, 1)
    for weight in shallow.parameters():  # off zero, so that the blocks do something
        weight.data += 0.02 * torch.randn_like(weight)
    deep = grow(shallow.state_dict(), build_transformer(settings, 5, 2), (1, 3))
    words = Words(torch.randn(2, 20, 96), torch.randn(2, 96))
    inputs = torch.randn(2, 64, 32), torch.rand(2), words, torch.ones(2)
    with torch.no_grad():
        torch.testing.assert_close(velocity(deep, *inputs), velocity(shallow, *inputs))


def test_level_guidance_keeps_guidance_one_and_extends_it_to_all() -> None:
    torch.manual_seed(0)
    model = build_transformer(RecipeSettings(), 1, 1)
    for weight in model.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    words = Words(torch.randn(2, 20, 96), torch.randn(2, 96))
    noisy, time = torch.randn(2, 64, 32), torch.rand(2)
    with torch.no_grad():
        before = velocity(model, noisy, time, words, torch.ones(2))
        assert not torch.allclose(before, velocity(model, noisy, time, words, torch.full((2,), 3.5)))
        level_guidance(model)
        for guidance in (1.0, 3.5, 5.0):
            after = velocity(model, noisy, time, words, torch.full((2,), guidance))
            torch.testing.assert_close(after, before)


def test_data_is_a_function_of_seed_and_number_and_of_training_scenes_only() -> None:
    assert data.example(3, 17) == data.example(3, 17)
    assert data.example(3, 17) != data.example(4, 17)
    assert {world.split_of(data.example(3, i).scene) for i in range(50)} == {"train"}
    images = data.pictures([data.example(3, 17)])
    assert np.array_equal(data.to_images(data.to_tensor(images)), images)


def _train(work: Path, steps: int, stop_at: int | None = None) -> torch.Tensor:
    """A stage as the recipe's are, on a toy: fits a matrix to random ones."""
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 6)
    optimizer = MuonAdam(model.named_parameters(), lambda _, p: p.ndim == 2, 0.02, 0.01)
    stage = Stage(work, "toy", steps, seed=5)
    if stage.state:
        model.load_state_dict(stage.state["model"])
        optimizer.load_state_dict(stage.state["optimizer"])
    for rng in stage.steps():
        optimizer.set_rate(stage.rate(warmup=5, decay=0.5))
        x = torch.from_numpy(rng.normal(size=(4, 6)).astype(np.float32)) + torch.randn(4, 6)
        optimizer.descend((model(x) - x).square().mean())
        stage.save(model=model.state_dict(), optimizer=optimizer.state_dict())
        if stage.step + 1 == stop_at:
            break
    return model.weight.detach().clone()


def test_a_killed_stage_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole = _train(tmp_path / "whole", 20)
    _train(tmp_path / "parts", 20, stop_at=7)
    assert torch.equal(_train(tmp_path / "parts", 20), whole)


def test_muon_moves_every_weight(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
    before = [p.clone() for p in model.parameters()]
    optimizer = MuonAdam(model.named_parameters(), lambda _, p: p.ndim == 4, 0.02, 0.01)
    optimizer.descend(model(torch.randn(2, 4, 8, 8)).square().mean())
    assert all(not torch.equal(b, p) for b, p in zip(before, model.parameters(), strict=True))


def test_a_diverged_stage_stops_with_its_name(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "toy", 100)
    with pytest.raises(AssertionError, match="toy diverged"):
        for _ in stage.steps():
            stage.log(loss=float("nan"))
