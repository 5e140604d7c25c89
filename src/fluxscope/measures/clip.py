"""CLIP embeddings of pictures and of crops of pictures (step 3), with torch."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Int64

from fluxscope.errors import (
    TOKEN_COUNT_REMEDY,
    CheckpointError,
    FluxscopeError,
    clear_memory_errors,
    machine_fault,
)
from fluxscope.files.quiet import quiet_libraries

if TYPE_CHECKING:
    from PIL.Image import Image

Box = tuple[int, int, int, int]
"""left, top, right, bottom in pixels, the last two exclusive."""


def load_clip(name: str | Path, device: str = "cpu") -> tuple[Any, Any]:
    """Load a CLIPModel, in single precision, and its image processor from a folder or a Hub id.

    The processor is the one on PIL and NumPy, whether torchvision is there or not, so that embeddings don't
    depend on what is installed.

    Raises:
        CheckpointError: the model is not there or its files are damaged.
    """
    import torch
    from transformers import CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    try:
        with quiet_libraries():
            model: Any = CLIPModel.from_pretrained(str(name), dtype=torch.float32)
            processor = CLIPImageProcessorPil.from_pretrained(str(name))
    except Exception as error:  # from_pretrained raises OSError, ValueError, SafetensorError, KeyError, ...
        if fault := machine_fault(error, name, "read"):
            raise fault from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"no CLIP model could be loaded from {name} ({reason})",
            "Give clip_model_id a Hub id, or a folder with config.json, model.safetensors and "
            "preprocessor_config.json.",
        ) from error
    return model.to(device).eval(), processor


@clear_memory_errors("embedding pictures with CLIP")
def embed_images(
    model: Any,
    processor: Any,
    images: Iterable[Image | Path | str],
    batch_size: int = 32,
    crops: Iterable[Box] | None = None,
) -> Float32[np.ndarray, "n e"]:
    """Embed pictures as unit vectors, in batches, on the model's own device.

    Args:
        images: pictures or their files; an iterator is read a batch at a time.
        crops: one box per picture; only what lies inside is embedded.

    Raises:
        FluxscopeError: there are no images, or a file is missing or no picture.
    """
    import torch

    rows = []
    for batch in in_batches(crops_of(images, crops), batch_size):
        pixels = processor(images=batch, return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
        with torch.inference_mode():
            rows.append(_unit_rows(model.get_image_features(pixel_values=pixels)))
    if not rows:
        raise FluxscopeError("there are no images to embed", "Run step 1 first.", redo="collect")
    return np.concatenate(rows).astype(np.float32)


@clear_memory_errors("embedding words with CLIP")
def embed_texts(
    model: Any, name: str | Path, texts: Sequence[str], batch_size: int = 256
) -> Float32[np.ndarray, "n e"]:
    """Embed texts as unit vectors, on the model's own device.

    Args:
        name: of the CLIP model, whose tokenizer lies beside it.

    Raises:
        CheckpointError: there is no tokenizer.
    """
    import torch
    from transformers import AutoTokenizer

    try:
        with quiet_libraries():
            tokenizer: Any = AutoTokenizer.from_pretrained(str(name))
    except Exception as error:  # whatever a missing or damaged file brings about
        if fault := machine_fault(error, name, "read"):
            raise fault from error
        raise CheckpointError(
            f"no tokenizer could be loaded from {name}", "Give clip_model_id a model with its tokenizer."
        ) from error
    rows = []
    for first in range(0, len(texts), batch_size):
        batch = list(texts[first : first + batch_size])
        tokens = tokenizer(batch, padding=True, truncation=True, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            rows.append(_unit_rows(model.get_text_features(**tokens)))
    return np.concatenate(rows).astype(np.float32)


def _unit_rows(output: Any) -> Float32[np.ndarray, "n e"]:
    """What CLIP gives for a batch, each row of norm 1, on the CPU."""
    import torch

    # transformers 5 gives an output object whose pooler_output is projected; earlier ones the tensor.
    features = getattr(output, "pooler_output", output).float()
    rows: np.ndarray = torch.nn.functional.normalize(features, dim=-1).cpu().numpy()
    return rows


def peak_box(
    token_map: Float32[np.ndarray, " t"], grid: tuple[int, int], size: tuple[int, int], share: float = 0.5
) -> Box:
    """Give the box around a token map's largest value, moved inside the picture where it would stick out.

    Args:
        token_map: one feature's code at every image token, row-major.
        grid: rows and columns of tokens.
        size: width and height of the picture, pixels.
        share: side of the box as a share of the picture's sides.

    Raises:
        FluxscopeError: the map has another number of tokens than the grid.
    """
    rows, columns = grid
    if token_map.size != rows * columns:
        raise FluxscopeError(
            f"Token count doesn't match grid: the token map has {token_map.size} tokens, "
            f"the grid {rows} x {columns}",
            TOKEN_COUNT_REMEDY,
        )
    row, column = divmod(int(np.argmax(token_map)), columns)
    left, right = _span((column + 0.5) / columns, size[0], share)
    top, bottom = _span((row + 0.5) / rows, size[1], share)
    return left, top, right, bottom


def tile_boxes(size: tuple[int, int], side: int) -> list[Box]:
    """Cut a picture in side x side tiles, row by row. Each has a pixel at least.

    Args:
        size: width and height of the picture, pixels.
    """
    (xs, ys) = (
        [(round(length * i / side), round(length * (i + 1) / side)) for i in range(side)] for length in size
    )
    return [
        (left, top, max(right, left + 1), max(bottom, top + 1)) for top, bottom in ys for left, right in xs
    ]


def tile_of_tokens(grid: tuple[int, int], side: int) -> Int64[np.ndarray, " t"]:
    """The tile in which each token's centre lies, of side x side tiles.

    Args:
        grid: rows and columns of tokens.
    """
    rows, columns = ((2 * np.arange(count) + 1) * side // (2 * count) for count in grid)
    tiles: np.ndarray = (rows[:, None] * side + columns).reshape(-1)
    return tiles


def _span(centre: float, length: int, share: float) -> tuple[int, int]:
    """A stretch of `share` of the length around the centre (0 to 1), inside 0 to length."""
    extent = max(1, round(length * share))
    start = min(max(round(centre * length - extent / 2), 0), length - extent)
    return start, start + extent


def crops_of(images: Iterable[Image | Path | str], crops: Iterable[Box] | None) -> Iterator[Image]:
    pairs = ((image, None) for image in images) if crops is None else zip(images, crops, strict=True)
    for image, box in pairs:
        picture = open_picture(image) if isinstance(image, str | Path) else image.convert("RGB")
        yield picture if box is None else picture.crop(box)


def open_picture(path: Path | str) -> Image:
    """Read a picture, PNG or JPEG, as RGB.

    Raises:
        FluxscopeError: the file is missing, no picture, or says that it is larger than any of ours.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG", "JPEG")) as file:
                return file.convert("RGB")
    except FileNotFoundError:
        raise FluxscopeError(
            f"{path} is not there", "Run step 1 again: it makes it anew.", redo="collect"
        ) from None
    except Exception as error:  # whatever a damaged or hostile file brings about inside Pillow
        told = FluxscopeError(f"{path} is no readable picture ({error})", "Run step 1 again.", redo="collect")
        raise machine_fault(error, path, "read") or told from None


def in_batches(items: Iterator[Image], size: int) -> Iterator[Sequence[Image]]:
    while batch := list(islice(items, size)):
        yield batch
