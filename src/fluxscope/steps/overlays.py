"""Step 5: where in its pictures each selected feature is active, from the stored codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from fluxscope.draw.heatmap import HEATMAPS, outline_heatmap, overlay_heatmap
from fluxscope.errors import RunDirError
from fluxscope.files import save_image, save_npy
from fluxscope.measures.clip import open_picture
from fluxscope.run.context import Context
from fluxscope.run.manifest import Manifest, ManifestRow
from fluxscope.run.records import Overlay, OverlaySummary, RunLog, Selection
from fluxscope.steps.step import Step

if TYPE_CHECKING:
    from fluxscope.run.codes import CodeStore

STEP = Step(
    number=5,
    name="overlays",
    module=__name__,
    summary="Draw where each selected feature is active.",
    reads=("manifest", "codes", "pictures", "selected_features"),
    makes=("overlay_summary",),
    settings=(
        *("alpha_scale", "clip_percentile", "overlay_style", "height", "width"),
        *("site_pattern", "target_step_number"),
    ),
)


def run(context: Context) -> str:
    from fluxscope.run.codes import CodeStore

    config, files = context.config, context.files
    manifest = Manifest.read(files.manifest, files.root)
    store = CodeStore(files.codes, files.site, config.target_step_index)
    features = Selection.read(files.selected_features).features
    wanted = [(each.feature_id, manifest.row(image)) for each in features for image in each.example_image_ids]
    check_features(context, store, [each.feature_id for each in features])
    items = []
    for feature, row in wanted:
        tokenmap = store.image(manifest.place[row.image_id]).column(feature).numpy()
        items.append(draw_one(context, feature, row, tokenmap))
    # Not among what the step reads: it is asked for labels alone, and holds times that come to nothing here.
    log = RunLog.read(files.run_log) if files.run_log.is_file() else RunLog()
    assert config.height is not None and config.width is not None
    OverlaySummary(
        layer_index=files.layer,
        target_step_number=config.target_step_index + 1,
        height=config.height,
        width=config.width,
        token_grid_size=list(config.image_token_grid),
        overlay_style=config.overlay_style,
        clip_percentile=config.clip_percentile,
        alpha_scale=config.alpha_scale,
        site=files.site,
        model_id=log.model_id,
        num_inference_steps=log.num_inference_steps,
        items=items,
    ).write(files.overlay_summary)
    if not features:
        return "nothing is selected, so there is nothing to draw"
    return f"{len(items)} overlays of {len(features)} features"


def draw_one(context: Context, feature: int, row: ManifestRow, tokenmap: np.ndarray) -> Overlay:
    """Draw one feature over one picture and keep its token map; returns its record in the summary."""
    config, files = context.config, context.files
    picture = np.asarray(open_picture(files.root / row.image_path))
    height, width = picture.shape[:2]
    heatmap = HEATMAPS[config.overlay_style](
        tokenmap, width, height, config.image_token_grid, clip_percentile=config.clip_percentile
    )
    overlay = files.overlay(feature, row.image_id)
    tokens = files.tokenmap(feature, row.image_id)
    drawn = outline_heatmap(overlay_heatmap(picture, heatmap, config.alpha_scale), heatmap)
    save_image(overlay, Image.fromarray(drawn))
    save_npy(tokens, tokenmap)
    return Overlay(
        feature_id=feature,
        image_id=row.image_id,
        prompt=row.prompt,
        seed=row.seed,
        base_image_path=row.image_path,
        overlay_path=files.relative(overlay),
        tokenmap_path=files.relative(tokens),
        activation_max=float(tokenmap.max()),
        activation_mean=float(tokenmap.mean()),
    )


def check_features(context: Context, store: CodeStore, features: list[int]) -> None:
    """Raise for a selected feature that the stored codes lack."""
    for feature in features:
        if feature >= store.n_features:
            raise RunDirError(
                f"{context.files.selected_features} selects feature {feature}, but the codes are of "
                f"{store.n_features} features",
                "Run step 4 again.",
                redo="select",
            )
