"""Step 6: the selected features and their pictures on one sheet, and beside the bare pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fluxscope.draw.heatmap import HEATMAPS, Picture, outline_heatmap, spotlight
from fluxscope.draw.sheet import Example, FeatureCard, comparison_sheet, contact_sheet
from fluxscope.errors import MissingInputError, RecordError
from fluxscope.files import load_npy, save_image
from fluxscope.measures.clip import open_picture
from fluxscope.run.context import Context
from fluxscope.run.name_records import in_words, names_of
from fluxscope.run.records import Overlay, OverlaySummary, SelectedFeature, Selection
from fluxscope.run.step_log import StepLog
from fluxscope.steps.step import Step

STEP = Step(
    number=6,
    name="contact-sheet",
    module=__name__,
    summary="Lay the features and pictures out on one sheet.",
    reads=("overlay_summary", "selected_features", "overlays", "pictures"),
    reads_if_there=("names", "s_matrix"),
    makes=("contact_sheet", "contact_sheet_comparison"),
    settings=(),
)

PERCENTILE = 99.0
"""Where a program's overlays do not say from which percentile of a token map on they are at full colour."""

PARTED = (
    "Chosen on: the score on the pictures that chose the feature; shown on: on the others, of which some "
    "stand here; false discovery: share of false ones among features as far from chance. "
)


def run(context: Context) -> str:
    files = context.files
    selection = Selection.read(files.selected_features)
    if not selection.features:
        return nothing_to_show(context)
    overlays = OverlaySummary.read(files.overlay_summary, files.root)
    # The log of the running step knows the hash of S already.
    log = context.work.log if context.work else StepLog.open(files.step_log)
    names = {feature: in_words(each) for feature, each in names_of(files, log).items()}
    cards = [
        replace(card_of(context, record, overlays, selection), name=names.get(record.feature_id, ""))
        for record in selection.features
    ]
    title, subtitle = title_of(selection), subtitle_of(overlays, selection)
    measures = measures_in_words(selection)
    across, footer = 2 if len(cards) > 6 else 1, f"{light_in_words(overlays)} {measures}"
    save_image(files.contact_sheet, contact_sheet(cards, title, subtitle, footer, across=across))
    footer = f"{blue_in_words(overlays)} {measures}"
    save_image(files.contact_sheet_comparison, comparison_sheet(cards, title, subtitle, footer))
    return f"{files.contact_sheet}"


def nothing_to_show(context: Context) -> str:
    """Clear an earlier selection's sheets away."""
    for sheet in (context.files.contact_sheet, context.files.contact_sheet_comparison):
        sheet.unlink(missing_ok=True)
    return "nothing is selected, so there is no contact sheet"


def card_of(
    context: Context, record: SelectedFeature, overlays: OverlaySummary, selection: Selection
) -> FeatureCard:
    """A selected feature with its example pictures, opened.

    Raises:
        MissingInputError: the overlays are of another selection.
    """
    root = context.files.root
    own = [item for item in overlays.items if item.feature_id == record.feature_id]
    if not own:
        raise MissingInputError(
            f"there are no overlays of feature {record.feature_id}", "Run step 5 again.", redo="overlays"
        )
    examples = [
        Example(
            overlay=open_picture(root / item.overlay_path),
            original=open_picture(root / item.base_image_path),
            caption=item.prompt,
            note=f"image {item.image_id} · max {item.activation_max:.2f}",
            lit=lit(context, item, overlays),
        )
        for item in own
    ]
    return FeatureCard(record.feature_id, examples, record.measures, warning=warning_of(record, selection))


def lit(context: Context, item: Overlay, overlays: OverlaySummary) -> Picture:
    """The picture in its own colours where the feature is active, faded elsewhere.

    Raises:
        RecordError: the token map is none of the grid that the summary states.
    """
    root, style = context.files.root, overlays.overlay_style or "smooth"
    picture, tokens = (
        np.asarray(open_picture(root / item.base_image_path)),
        load_npy(root / item.tokenmap_path),
    )
    height, width = picture.shape[:2]
    try:
        rows, columns = overlays.token_grid_size
        heat = HEATMAPS[style](
            tokens.astype(np.float32), width, height, (rows, columns), overlays.clip_percentile or PERCENTILE
        )
    except (ValueError, TypeError, KeyError) as error:
        raise RecordError(
            f"{item.tokenmap_path} is no token map as {context.files.overlay_summary.name} has it ({error})",
            "Run step 5 again.",
            redo="overlays",
        ) from None
    return outline_heatmap(spotlight(picture, heat), heat)


def warning_of(record: SelectedFeature, selection: Selection) -> str:
    """That a feature doesn't beat chance, or that nobody can tell; nothing in files that do not say."""
    if selection.false_discovery_rate is None:
        return ""
    if record.q_value is None:
        return "not enough pictures to tell from chance"
    return "" if record.q_value <= selection.false_discovery_rate else "does not beat chance"


def title_of(selection: Selection) -> str:
    """What the features have in common that are shown."""
    score = selection.ranking.replace("clip_held_out", "held-out correlation with CLIP")
    score = score.replace("clip_", "CLIP ").replace("_", " ")
    count = len(selection.features)
    if selection.tied:
        return f"{count} features of the same {score}: shown by number, nothing ranks them"
    features = f"{count} features" if count > 1 else "feature"
    return f"The {features} with the highest {score}"


def subtitle_of(overlays: OverlaySummary, selection: Selection) -> str:
    """What the overlays were made of; files of other programs leave some of it out."""
    step = f"step {overlays.target_step_number}"
    if overlays.num_inference_steps is not None:
        step += f" of {overlays.num_inference_steps}"
    alive = f"{selection.num_alive_features} features alive on {selection.num_images} pictures"
    parts = [overlays.model_id, overlays.site or f"layer {overlays.layer_index}", step, alive]
    return " · ".join(part for part in parts if part)


def light_in_words(overlays: OverlaySummary) -> str:
    """How to read a picture of the contact sheet."""
    full = f"fully from percentile {overlays.clip_percentile or PERCENTILE:g} of its token map"
    return f"In its own colours: where the feature is active, {full}; faded: where it is not; line: half way."


def blue_in_words(overlays: OverlaySummary) -> str:
    """How to read an overlay, with the values that it was drawn with."""
    blue = "Blue: where the feature is active"
    if overlays.clip_percentile is not None:
        blue += f"; full colour at percentile {overlays.clip_percentile:g} of its token map"
    if overlays.alpha_scale is not None:
        blue += f", {overlays.alpha_scale:.0%} opaque"
    return f"{blue}."


def measures_in_words(selection: Selection) -> str:
    """How to read the numbers of a card."""
    parted = any(each.shown_score is not None for each in selection.features)
    return (
        f"{PARTED if parted else ''}Coherence: mean pairwise CLIP cosine over the top "
        f"{selection.top_m_per_feature} pictures of distinct prompts; z: against random sets of that size."
    )
