import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from fluxscope.errors import CheckpointError, FluxscopeError
from fluxscope.measures.clip import (
    embed_images,
    load_clip,
    open_picture,
    peak_box,
    tile_boxes,
    tile_of_tokens,
)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A random CLIPModel, tiny, saved as any other."""
    import torch
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**small, "vocab_size": 20, "max_position_embeddings": 8},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=12,
    )
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return folder


def pictures(n=5, size=(48, 32)):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), np.uint8)) for _ in range(n)]


def test_rows_are_unit_and_batches_change_nothing(clip_folder):
    model, processor = load_clip(clip_folder)
    rows = embed_images(model, processor, pictures(), batch_size=2)
    assert rows.shape == (5, 12)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(rows, embed_images(model, processor, iter(pictures()), 32), atol=1e-6)


def test_embeddings_are_the_projected_ones(clip_folder):
    import torch

    model, processor = load_clip(clip_folder)
    pixels = processor(images=pictures(1), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        projected = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)[0].numpy()
    np.testing.assert_allclose(
        embed_images(model, processor, pictures(1))[0], projected / np.linalg.norm(projected), atol=1e-6
    )


def test_files_and_crops(clip_folder, tmp_path):
    model, processor = load_clip(clip_folder)
    images = pictures(2)
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    box = (0, 0, 16, 16)
    by_hand = embed_images(model, processor, [image.crop(box) for image in images])
    np.testing.assert_array_equal(embed_images(model, processor, paths, crops=[box] * 2), by_hand)


def test_clear_errors(clip_folder, tmp_path):
    model, processor = load_clip(clip_folder)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(FluxscopeError, match=r"gone\.png is not there"):
        embed_images(model, processor, [tmp_path / "gone.png"])
    with pytest.raises(FluxscopeError, match=r"broken\.png is no readable picture"):
        embed_images(model, processor, [tmp_path / "broken.png"])
    with pytest.raises(FluxscopeError, match="no images"):
        embed_images(model, processor, [])
    with pytest.raises(CheckpointError, match="no CLIP model could be loaded"):
        load_clip(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((clip_folder / "model.safetensors").read_bytes()[:500])
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((clip_folder / name).read_bytes())
    with pytest.raises(CheckpointError, match="no CLIP model could be loaded"):
        load_clip(tmp_path)


def test_peak_box_stays_inside_and_holds_the_peak():
    for peak in range(24):
        token_map = np.zeros(24, np.float32)
        token_map[peak] = 1
        left, top, right, bottom = peak_box(token_map, (4, 6), (96, 64))
        assert (right - left, bottom - top) == (48, 32)
        assert 0 <= left <= peak % 6 * 16 < right <= 96
        assert 0 <= top <= peak // 6 * 16 < bottom <= 64
    with pytest.raises(FluxscopeError, match="24 tokens, the grid 5 x 5"):
        peak_box(np.zeros(24, np.float32), (5, 5), (80, 80))


def png_that_says(width, height):
    """A PNG whose header promises a size and whose data is that of one row."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = chunk(b"IDAT", zlib.compress(b"\0" * (1 + 3 * 64)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + rows + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("larger.png", png_that_says(12_000, 12_000)),  # Pillow only warns
        ("bomb.png", png_that_says(100_000, 100_000)),
        ("short.png", png_that_says(64, 64)[:-30]),
        ("empty.png", b""),
        ("postscript.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_or_hostile_picture_is_one_clear_error(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(FluxscopeError, match=f"{name} is no readable picture"):
        open_picture(tmp_path / name)


def test_pictures_of_other_formats_are_not_read(tmp_path):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    for name, format in (("a.gif", "GIF"), ("a.png", "BMP"), ("b.png", "TIFF")):
        Image.fromarray(pixels).save(tmp_path / name, format=format)
        with pytest.raises(FluxscopeError, match="is no readable picture"):
            open_picture(tmp_path / name)
    Image.fromarray(pixels).save(tmp_path / "good.png", format="PNG")
    assert (np.asarray(open_picture(tmp_path / "good.png")) == pixels).all()


@pytest.mark.parametrize("size", [(128, 128), (144, 96), (50, 1024)])
@pytest.mark.parametrize("side", [1, 3, 4])
def test_tiles_cover_a_picture_once_and_tokens_lie_where_their_centres_do(size, side):
    width, height = size
    covered = np.zeros((height, width), int)
    boxes = tile_boxes(size, side)
    for left, top, right, bottom in boxes:
        covered[top:bottom, left:right] += 1
    assert (covered == 1).all() and len(boxes) == side * side
    grid = (height // 16 or 1, width // 16 or 1)
    for token, tile in enumerate(tile_of_tokens(grid, side)):
        row, column = divmod(token, grid[1])
        x, y = (column + 0.5) * width / grid[1], (row + 0.5) * height / grid[0]
        left, top, right, bottom = boxes[tile]
        assert left - 0.5 <= x <= right + 0.5 and top - 0.5 <= y <= bottom + 0.5


def test_tiles_of_very_small_pictures_hold_a_pixel():
    assert all(right > left and bottom > top for left, top, right, bottom in tile_boxes((2, 3), 4))
    assert tile_of_tokens((2, 1), 4).tolist() == [6, 14]
