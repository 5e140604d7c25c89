"""Step 3: one CLIP vector for each picture."""

from __future__ import annotations

from typing import Any

import numpy as np

from fluxscope.embedded import resolve
from fluxscope.files import save_npy, write_json
from fluxscope.measures.clip import embed_images, load_clip
from fluxscope.models.placement import pick_device
from fluxscope.run.context import Context
from fluxscope.run.manifest import load_manifest
from fluxscope.settings.config import Config


def run(context: Context) -> str:
    config, files = context.config, context.files
    records, _ = load_manifest(files.manifest, files.root)
    model, processor = clip_of(config)
    embeddings = embed_images(
        model, processor, [row["image_path"] for row in records], config.clip_batch_size
    )
    save_npy(files.clip_embeddings, embeddings)
    save_npy(files.clip_image_ids, np.array([row["image_id"] for row in records], np.int64))
    save_npy(files.clip_prompt_idx, np.array([row["prompt_idx"] for row in records], np.int64))
    save_npy(files.clip_seeds, np.array([row["seed"] for row in records], np.int64))
    write_json(
        files.clip_meta,
        {
            "clip_model_id": config.clip_model_id,
            "num_images": len(embeddings),
            "embed_dim": embeddings.shape[1],
            "device_used": str(model.device),
            "normalized": True,
        },
    )
    return (
        f"{len(embeddings)} pictures embedded in {embeddings.shape[1]} dimensions by {config.clip_model_id}"
    )


def clip_of(config: Config) -> tuple[Any, Any]:
    """The CLIP model of the settings, on its device, and its image processor."""
    assert config.clip_model_id is not None
    device = pick_device(config.clip_device, fallback=str(pick_device(config.device)))
    return load_clip(resolve(config.clip_model_id), str(device))
