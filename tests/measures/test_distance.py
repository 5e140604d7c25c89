import numpy as np
import pytest
import torch
from PIL import Image

from fluxscope.errors import CheckpointError, FluxscopeError
from fluxscope.measures.distance import (
    ALEXNET,
    ALEXNET_KEYS,
    alex_distance,
    clip_distance,
    find_alex_distance,
    locality,
    lpips_form,
    pixel_change,
    read_alex_distance,
)


def random_alexnet(seed=0):
    """A network of AlexNet's shapes, and heads, with random weights."""
    generator = torch.Generator().manual_seed(seed)
    network, heads = {}, {}
    for number, (channels, out, kernel, _, _) in enumerate(ALEXNET):
        key = f"features.{ALEXNET_KEYS[number]}"
        network[f"{key}.weight"] = torch.randn(out, channels, kernel, kernel, generator=generator) * 0.05
        network[f"{key}.bias"] = torch.randn(out, generator=generator) * 0.05
        heads[f"lin{number}.model.1.weight"] = torch.rand(1, out, 1, 1, generator=generator)
    return network, heads


@pytest.fixture(scope="module", params=["alex", "clip"])
def distance(request):
    if request.param == "alex":
        return alex_distance(*random_alexnet())
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**small, "image_size": 64, "patch_size": 16}
    model = CLIPModel(CLIPConfig(text_config={**small, "vocab_size": 20}, vision_config=vision)).eval()
    return clip_distance(model, CLIPImageProcessorPil(size={"shortest_edge": 64}), "tiny")


def picture(seed=0, size=(64, 96)):
    small = np.random.default_rng(seed).integers(0, 255, (4, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def test_a_picture_is_at_distance_zero_from_itself(distance):
    assert distance([picture()], [picture()])[0] == pytest.approx(0, abs=1e-6)


def test_symmetric_and_growing_with_noise(distance):
    base = picture().astype(float)
    noise = np.random.default_rng(1).standard_normal(base.shape)
    noisy = [np.clip(base + s * noise, 0, 255).astype(np.uint8) for s in (4, 16, 64)]
    near = distance(noisy, [picture()])
    assert near.shape == (3,)
    assert (np.diff(near) > 0).all()
    np.testing.assert_allclose(near, [distance([picture()], [x])[0] for x in noisy], rtol=1e-4)


def test_all_of_a_wide_picture_counts(distance):
    other = picture().copy()
    other[:, :12] = 255 - other[:, :12]
    assert distance([other], [picture()])[0] > 1e-3


def test_other_sizes_are_refused(distance):
    with pytest.raises(FluxscopeError, match="other number or size"):
        distance([picture()], [picture(size=(64, 64))])
    with pytest.raises(FluxscopeError, match="other number or size"):
        distance([picture()] * 3, [picture()] * 2)


def test_the_form_by_hand():
    a = [torch.tensor([[[3.0, 0.0], [4.0, 1.0]]])]  # one layer, two channels, two places
    b = [torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])]
    # place 0: (0.6, 0.8) and (1, 0); place 1: (0, 1) twice
    assert lpips_form(a, b, None).item() == pytest.approx((0.16 + 0.64) / 2)
    assert lpips_form(a, b, [torch.tensor([1.0, 0.5])]).item() == pytest.approx((0.16 + 0.32) / 2)


def test_checkpoints_are_checked(tmp_path):
    network, heads = random_alexnet()
    torch.save(network, tmp_path / "alexnet.pth")
    torch.save(heads, tmp_path / "heads.pth")
    read = read_alex_distance(tmp_path / "alexnet.pth", tmp_path / "heads.pth")
    assert read([picture()], [picture(1)])[0] == alex_distance(network, heads)([picture()], [picture(1)])[0]
    with pytest.raises(CheckpointError, match=r"no features\.0\.weight of shape \(64, 3, 11, 11\)"):
        read_alex_distance(tmp_path / "heads.pth", tmp_path / "heads.pth")
    with pytest.raises(CheckpointError, match="no weights for layer 0"):
        read_alex_distance(tmp_path / "alexnet.pth", tmp_path / "alexnet.pth")


def test_without_weights_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert find_alex_distance() is None


def test_locality():
    a, b = np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6, 3), np.uint8)
    b[:, :3] = 51
    change = pixel_change(a, b)
    heat = np.zeros((4, 6), np.float32)
    heat[:, :3] = 1
    assert locality(change, heat) == (pytest.approx(0.2), 0.0)
    assert locality(change, np.zeros((4, 6), np.float32)) == (0.0, pytest.approx(0.1))
