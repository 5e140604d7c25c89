"""Step 3: one CLIP vector for each picture, and one for each of its tiles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from fluxscope.files import save_npy
from fluxscope.measures.clip import embed_images, open_picture, tile_boxes
from fluxscope.run.context import Context, clip_of
from fluxscope.run.manifest import Manifest
from fluxscope.run.records import ClipMeta
from fluxscope.steps.step import Step

if TYPE_CHECKING:
    from PIL.Image import Image

STEP = Step(
    number=3,
    name="clip-embed",
    module=__name__,
    summary="Embed the pictures with CLIP.",
    reads=("manifest", "pictures"),
    makes=(
        *("clip_embeddings", "clip_tiles", "clip_meta", "clip_image_ids", "clip_prompt_idx", "clip_seeds"),
    ),
    settings=("clip_model_id", "clip_batch_size", "clip_device", "clip_tiles", "device"),
    shared=True,
)


def run(context: Context) -> str:
    config, files = context.config, context.files
    manifest = Manifest.read(files.manifest, files.root)
    rows, pictures = manifest.rows, [str(manifest.picture(row)) for row in manifest.rows]
    model, processor = clip_of(config)
    embeddings = embed_images(model, processor, pictures, config.clip_batch_size)
    save_npy(files.clip_embeddings, embeddings)
    save_npy(
        files.clip_tiles, tiles_of(model, processor, manifest, config.clip_tiles, config.clip_batch_size)
    )
    save_npy(files.clip_image_ids, np.array([row.image_id for row in rows], np.int64))
    save_npy(files.clip_prompt_idx, np.array([row.prompt_idx for row in rows], np.int64))
    save_npy(files.clip_seeds, np.array([row.seed for row in rows], np.int64))
    assert config.clip_model_id is not None
    ClipMeta(
        clip_model_id=config.clip_model_id,
        num_images=len(embeddings),
        embed_dim=embeddings.shape[1],
        device_used=str(model.device),
        normalized=True,
    ).write(files.clip_meta)
    return (
        f"{len(embeddings)} pictures embedded in {embeddings.shape[1]} dimensions by {config.clip_model_id}"
    )


def tiles_of(
    model: Any, processor: Any, manifest: Manifest, side: int, batch_size: int
) -> Float32[np.ndarray, "n tiles e"]:
    """The embeddings of every picture's tiles, row by row."""

    def crops() -> Iterator[Image]:
        for row in manifest.rows:
            picture = open_picture(manifest.picture(row))
            yield from (picture.crop(box) for box in tile_boxes(picture.size, side))

    return embed_images(model, processor, crops(), batch_size).reshape(len(manifest.rows), side * side, -1)
