"""The weights that ship: they load offline by their libraries' own means, and draw what they are told."""

import logging
import os

import numpy as np
import pytest
import torch

from fluxscope.shapes import CLIP_SHAPES, FLUX_SHAPES, WEIGHTS, oracle, world

os.environ["HF_HUB_OFFLINE"] = "1"

N_CAPTIONS = 24


@pytest.fixture(scope="module")
def pipeline():  # type: ignore[no-untyped-def]
    from diffusers import FluxPipeline

    loaded = FluxPipeline.from_pretrained(FLUX_SHAPES, torch_dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def _draw(pipeline, captions: list[str], guidance: float = 3.5) -> list[np.ndarray]:  # type: ignore[no-untyped-def]
    made = pipeline(
        captions,
        height=128,
        width=128,
        guidance_scale=guidance,
        num_inference_steps=20,
        max_sequence_length=20,
        generator=[torch.Generator("cpu").manual_seed(i) for i in range(len(captions))],
    )
    return [np.asarray(image) for image in made.images]


def _right(pipeline, guidance: float) -> int:  # type: ignore[no-untyped-def]
    """Of so many captions not trained on, how many come out right in everything."""
    rng = np.random.default_rng(5)
    scenes = [world.sample_scene(rng, split="test") for _ in range(N_CAPTIONS)]
    images = _draw(pipeline, [world.caption(scene) for scene in scenes], guidance)
    judged = [oracle.judge(scene, image) for scene, image in zip(scenes, images, strict=True)]
    assert all(j.background for j in judged)
    return sum(j.all_right for j in judged)


def test_captions_come_out_right_and_guidance_makes_them_so(pipeline) -> None:  # type: ignore[no-untyped-def]
    guided = _right(pipeline, 3.5)
    assert guided >= 0.8 * N_CAPTIONS
    assert guided > _right(pipeline, 1.0)


@pytest.mark.parametrize("caption", ["", "word " * 500, "🙂", "a zebra in a forest"])
def test_strange_captions_give_a_picture(pipeline, caption: str) -> None:  # type: ignore[no-untyped-def]
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    image = pipeline(caption, height=128, width=128, num_inference_steps=2, max_sequence_length=20).images[0]
    assert np.isfinite(np.asarray(image, np.float32)).all()


def test_it_is_a_flux(pipeline) -> None:  # type: ignore[no-untyped-def]
    config = pipeline.transformer.config
    assert (config.num_layers, config.guidance_embeds) == (19, True)
    assert config.joint_attention_dim == pipeline.text_encoder_2.config.d_model
    assert config.pooled_projection_dim == pipeline.text_encoder.config.hidden_size
    assert (pipeline.vae.config.scaling_factor, pipeline.vae.config.shift_factor) == (1.0, 0.0)


def test_clip_shapes_tells_scenes_apart_and_lends_its_text_half(pipeline) -> None:  # type: ignore[no-untyped-def]
    from transformers import CLIPModel, CLIPProcessor

    clip = CLIPModel.from_pretrained(CLIP_SHAPES, dtype=torch.float32).eval()
    processor = CLIPProcessor.from_pretrained(CLIP_SHAPES)
    rng = np.random.default_rng(1)
    scenes = [world.sample_scene(rng, split="test") for _ in range(24)]
    inputs = processor(
        text=[world.caption(scene) for scene in scenes],
        images=[world.render(scene).image for scene in scenes],
        return_tensors="pt",
        padding="max_length",
    )
    with torch.no_grad():
        nearest = clip(**inputs).logits_per_image.argmax(1)
    assert (nearest == torch.arange(24)).float().mean() >= 0.7
    half, whole = pipeline.text_encoder.state_dict(), clip.text_model.state_dict()
    assert all(torch.equal(half[name], whole[name]) for name in whole)


def test_the_weights_fit_in_forty_megabytes() -> None:
    files = [f for folder in (FLUX_SHAPES, CLIP_SHAPES) for f in folder.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 40e6
    assert (WEIGHTS / "README.md").is_file()
