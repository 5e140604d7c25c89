"""Step 3: one CLIP vector for each picture."""

from __future__ import annotations

import numpy as np

from fluxscope.files import save_npy
from fluxscope.measures.clip import embed_images
from fluxscope.run.context import Context, clip_of
from fluxscope.run.manifest import Manifest
from fluxscope.run.records import ClipMeta
from fluxscope.steps.step import Step

STEP = Step(
    number=3,
    name="clip-embed",
    module=__name__,
    summary="Embed the pictures with CLIP.",
    reads=("manifest", "pictures"),
    makes=("clip_embeddings", "clip_meta", "clip_image_ids", "clip_prompt_idx", "clip_seeds"),
    settings=("clip_model_id", "clip_batch_size", "clip_device", "device"),
    shared=True,
)


def run(context: Context) -> str:
    config, files = context.config, context.files
    manifest = Manifest.read(files.manifest, files.root)
    rows, pictures = manifest.rows, [str(manifest.picture(row)) for row in manifest.rows]
    model, processor = clip_of(config)
    embeddings = embed_images(model, processor, pictures, config.clip_batch_size)
    save_npy(files.clip_embeddings, embeddings)
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
