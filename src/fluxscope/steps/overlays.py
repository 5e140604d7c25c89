"""Step 5: where in its pictures each selected feature is active, from the stored codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fluxscope.draw.heatmap import (
    outline_heatmap,
    overlay_heatmap,
    token_map_to_blocky_heatmap,
    token_map_to_heatmap,
)
from fluxscope.errors import MissingInputError
from fluxscope.files import read_json, save_image, save_npy, write_json
from fluxscope.measures.clip import open_picture
from fluxscope.run.codes import CodeStore
from fluxscope.run.context import Context
from fluxscope.run.manifest import load_manifest

HEATMAPS = {"smooth": token_map_to_heatmap, "blocky": token_map_to_blocky_heatmap}


def run(context: Context) -> str:
    config, files = context.config, context.files
    _, by_id = load_manifest(files.manifest, files.root)
    place = {image_id: index for index, image_id in enumerate(by_id)}
    store = CodeStore(files.codes, files.site, config.target_step_index)
    features = read_json(files.selected_features)["features"]
    items = []
    for record in features:
        for image_id in record["example_image_ids"]:
            if image_id not in place:
                raise MissingInputError(
                    f"image {image_id} is selected, but not in {files.manifest}",
                    "Run step 4 again: fluxscope select",
                )
            tokenmap = store.image(place[image_id]).column(record["feature_id"]).numpy()
            items.append(draw_one(context, record["feature_id"], by_id[image_id], tokenmap))
    write_json(
        files.overlay_summary,
        {
            "layer_index": files.layer,
            "target_step_number": config.target_step_number,
            "height": config.height,
            "width": config.width,
            "token_grid_size": list(config.image_token_grid),
            "overlay_style": config.overlay_style,
            "items": items,
        },
    )
    return f"{len(items)} overlays of {len(features)} features"


def draw_one(context: Context, feature: int, row: dict, tokenmap: np.ndarray) -> dict:
    """Draw one feature over one picture and keep its token map; returns its record in the summary."""
    config, files = context.config, context.files
    picture = np.asarray(open_picture(row["image_path"]))
    height, width = picture.shape[:2]
    heatmap = HEATMAPS[config.overlay_style](
        tokenmap, width, height, config.image_token_grid, clip_percentile=config.clip_percentile
    )
    overlay = files.overlay(feature, row["image_id"])
    tokens = files.tokenmap(feature, row["image_id"])
    drawn = outline_heatmap(overlay_heatmap(picture, heatmap, config.alpha_scale), heatmap)
    save_image(overlay, Image.fromarray(drawn))
    save_npy(tokens, tokenmap)
    return {
        "feature_id": feature,
        "image_id": row["image_id"],
        "prompt": row["prompt"],
        "seed": row["seed"],
        "base_image_path": files.relative(Path(row["image_path"])),
        "overlay_path": files.relative(overlay),
        "tokenmap_path": files.relative(tokens),
        "activation_max": float(tokenmap.max()),
        "activation_mean": float(tokenmap.mean()),
    }
