"""Step 4: the most interpretable features, each with example images of its own.

Every alive feature is scored by the coherence of its top images; the coherence of crops around the
activation's peak is measured for the selected ones, and for the most coherent ones when it ranks.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from fluxscope.errors import MissingInputError, RunDirError
from fluxscope.files import load_npy, save_npz
from fluxscope.measures.clip import embed_images, peak_box
from fluxscope.measures.selection import (
    Choice,
    FeatureScores,
    order_features,
    rank_images,
    score_features,
    select_features,
    with_crops,
)
from fluxscope.run.context import Context, clip_of
from fluxscope.run.donor_table import tell_donor_score
from fluxscope.run.manifest import Manifest
from fluxscope.run.records import SelectedFeature, Selection
from fluxscope.settings.config import Config
from fluxscope.steps.step import Step

STEP = Step(
    number=4,
    name="select",
    module=__name__,
    summary="Select the most interpretable features.",
    reads=("s_matrix", "manifest", "clip_embeddings"),
    reads_if_there=("codes", "pictures", "site_map"),
    makes=("selected_features", "feature_scores"),
    settings=(
        *("rank_by", "top_m_per_feature", "min_prompts", "top_features", "top_examples_per_feature"),
        *("enforce_global_unique_images", "eps_alive", "site_pattern", "target_step_number"),
        *("model_id", "clip_model_id", "clip_batch_size", "clip_device", "device", "height", "width"),
    ),
)

CROP_SHORTLIST = 200
"""How many of the most coherent features compete when crop_coherence ranks; cropping all would take hours."""

REMEDY = "use more prompts, or lower --min-prompts and --top-examples-per-feature"
"""What helps where a run has too few pictures to select features well."""


def run(context: Context) -> str:
    config, files = context.config, context.files
    manifest = Manifest.read(files.manifest, files.root)
    rows = manifest.rows
    embeddings = load_npy(files.clip_embeddings)
    s = load_npy(files.s_matrix, mmap=True)
    if not len(rows) == len(embeddings) == len(s):
        raise RunDirError(
            f"{len(rows)} pictures, {len(embeddings)} embeddings and {len(s)} rows of S do not fit",
            "Run steps 1 and 3 again.",
            redo="collect, clip-embed",
        )
    prompt_idx = prompts_of(manifest)
    ranked = rank_images(s, prompt_idx, config.eps_alive, config.top_m_per_feature)
    scores = score_features(ranked, embeddings, prompt_idx, config.min_prompts)
    if config.rank_by == "crop_coherence":
        scores = add_crops(
            context, scores, order_features(scores, "clip_coherence")[:CROP_SHORTLIST], manifest
        )
    chosen = choose(context, scores, manifest)
    if chosen and config.rank_by != "crop_coherence":
        features = np.array([choice.feature_id for choice in chosen])
        scores = add_crops(context, scores, features, manifest)
        chosen = choose(context, scores, manifest)
    if chosen and shows_few(config, manifest):
        few = len(set(prompt_idx.tolist()))
        context.report.say(f"     {few} prompts are too few to rank features by coherence: {REMEDY}")
    selected = [record_of(scores, choice) for choice in chosen]
    selection = write_selection(context, scores, selected, manifest)
    if not selected:
        return f"no feature is active on enough of the {len(rows)} pictures to be selected: {REMEDY}"
    best = selected[0]
    if selection.tied:
        return f"{len(chosen)} features selected; all have the same {config.rank_by}: they stand by number"
    return (
        f"{len(chosen)} features selected by {config.rank_by}, "
        f"the first: {best.feature_id} (coherence {best.clip_coherence:.3f})"
    )


def choose(context: Context, scores: FeatureScores, manifest: Manifest) -> list[Choice]:
    """The features to show; none where no feature is active on enough prompts.

    A run of fewer prompts than a feature shall have examples shows what there is, and pictures repeatedly.
    """
    config, few = context.config, shows_few(context.config, manifest)
    n_prompts = len(np.unique(prompts_of(manifest)))
    return select_features(
        scores,
        [row.image_id for row in manifest.rows],
        config.rank_by,
        config.top_features,
        n_prompts if few else config.top_examples_per_feature,
        config.enforce_global_unique_images and not few,
    )


def shows_few(config: Config, manifest: Manifest) -> bool:
    """Whether the run has fewer prompts than a feature has examples, which are of distinct prompts."""
    return len(np.unique(prompts_of(manifest))) < config.top_examples_per_feature


def prompts_of(manifest: Manifest) -> Int64[np.ndarray, " n"]:
    """The prompt of each picture, as the number of the first line that says the same."""
    first: dict[str, int] = {}
    return np.array([first.setdefault(row.prompt, row.prompt_idx) for row in manifest.rows], np.int64)


def record_of(scores: FeatureScores, choice: Choice) -> SelectedFeature:
    """What selected_features.json says of a feature; null for what was not measured."""
    values = {name: value[choice.feature_id] for name, value in scores.measures().items()}
    numbers = {name: value.item() if np.isfinite(value) else None for name, value in values.items()}
    return SelectedFeature.of(choice.feature_id, numbers, choice.example_image_ids, choice.top_m_image_ids)


def add_crops(
    context: Context, scores: FeatureScores, features: np.ndarray, manifest: Manifest
) -> FeatureScores:
    """Measure the coherence of crops around the activation's peak in these features' top images.

    Features that peak on the same token of the same image share a crop, which is embedded once. A folder
    without token-level codes, as older scripts wrote it, gets none, unless they are to rank the features.
    """
    from fluxscope.run.codes import CodeStore

    config, files = context.config, context.files
    try:
        store = CodeStore(files.codes, files.site, config.target_step_index)
    except MissingInputError as error:
        if config.rank_by == "crop_coherence":
            raise
        context.report.say(f"     crop coherence is not measured: {error.message}")
        return scores
    size = (manifest.rows[0].width, manifest.rows[0].height)
    rows: dict[tuple[int, tuple[int, int, int, int]], int] = {}
    sets = np.full((len(features), scores.ranked.image.shape[1]), -1)
    for image, wanted in by_image(scores, features).items():
        codes = store.image(image)
        for place, feature in wanted:
            box = peak_box(codes.column(int(feature)).numpy(), config.image_token_grid, size)
            sets[place] = rows.setdefault((image, box), len(rows))
    model, processor = clip_of(config)
    embedded = embed_images(
        model,
        processor,
        [manifest.picture(manifest.rows[image]) for image, _ in rows],
        config.clip_batch_size,
        crops=[box for _, box in rows],
    )
    return with_crops(scores, features, embedded, sets)


def by_image(scores: FeatureScores, features: np.ndarray) -> dict[int, list[tuple[tuple[int, int], int]]]:
    """For each image, the places (row, rank) and features that it is a top image of: codes are read once."""
    wanted: dict[int, list[tuple[tuple[int, int], int]]] = {}
    for row, feature in enumerate(features):
        for rank, image in enumerate(scores.ranked.image[feature]):
            if image >= 0:
                wanted.setdefault(int(image), []).append(((row, rank), int(feature)))
    return wanted


def write_selection(
    context: Context, scores: FeatureScores, features: list[SelectedFeature], manifest: Manifest
) -> Selection:
    """Write the selection and the scores of all features; returns the former."""
    config, files = context.config, context.files
    selection = Selection(
        num_images=len(manifest.rows),
        num_alive_features=int((scores.frequency > 0).sum()),
        top_m_per_feature=config.top_m_per_feature,
        top_features=config.top_features,
        top_examples_per_feature=config.top_examples_per_feature,
        enforce_global_unique_images=config.enforce_global_unique_images and not shows_few(config, manifest),
        rank_by=config.rank_by,
        min_prompts=config.min_prompts,
        layer_index=files.layer,
        donor_score=tell_donor_score(context, files.site),
        features=features,
    )
    selection.write(files.selected_features)
    save_npz(files.feature_scores, **scores.measures())
    return selection
