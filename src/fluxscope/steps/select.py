"""Step 4: the most interpretable features, each with example images of its own.

Half of the prompts score a feature, and the best by that score are selected; the other half shows it, scores
it again, and says whether it beats chance. Features that fire alike are selected once. The coherence of crops
around the activation's peak is measured for the selected ones, and for the most coherent ones when it ranks.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from fluxscope.errors import MissingInputError
from fluxscope.files import save_npz
from fluxscope.measures.clip import embed_images, peak_box, tile_of_tokens
from fluxscope.measures.halves import LEAST, part_prompts
from fluxscope.measures.held_out import Views, pictures_to_see, views_of
from fluxscope.measures.selection import (
    FALSE_DISCOVERIES,
    Choice,
    FeatureScores,
    Sides,
    apart,
    order_features,
    score_features,
    select_features,
    together,
    with_crops,
)
from fluxscope.measures.top_images import RankedImages, both_ranked, rank_images
from fluxscope.run.context import Context, clip_of
from fluxscope.run.donor_table import tell_donor_score
from fluxscope.run.manifest import Manifest
from fluxscope.run.matrices import load_embeddings, load_s, load_tiles
from fluxscope.run.records import SelectedFeature, Selection
from fluxscope.settings.config import Config
from fluxscope.steps.step import Step

STEP = Step(
    number=4,
    name="select",
    module=__name__,
    summary="Select the most interpretable features.",
    reads=("s_matrix", "manifest", "clip_embeddings"),
    reads_if_there=("clip_tiles", "codes", "pictures", "site_map"),
    makes=("selected_features", "feature_scores"),
    settings=(
        *("rank_by", "most_alike", "top_m_per_feature", "min_prompts", "top_features"),
        "top_examples_per_feature",
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
    s, embeddings = load_s(files, len(rows)), load_embeddings(files, len(rows))
    views = views_of_run(context, s, embeddings, manifest)
    sides = score_sides(config, s, embeddings, manifest.prompt_of, views)
    rank_by = config.rank_by
    if rank_by == "clip_held_out" and not np.isfinite(sides.choosing.clip_held_out).any():
        rank_by = "clip_coherence"  # so few prompts teach nothing about each other
    if rank_by == "crop_coherence":
        shortlist = order_features(sides.overall, sides.choosing.clip_coherence)[:CROP_SHORTLIST]
        sides = sides.each(lambda scores: add_crops(context, scores, shortlist, manifest))
    scores = sides.by(rank_by)
    chosen = choose(context, scores, sides.showing.ranked, manifest, views)
    if chosen and rank_by != "crop_coherence":
        scores = add_crops(context, scores, np.array([each.feature_id for each in chosen]), manifest)
    selection = write_selection(context, scores, chosen, rank_by, manifest)
    tell_chance(context, selection, manifest)
    return outcome_of(selection, len(rows))


def views_of_run(context: Context, s: np.ndarray, embeddings: np.ndarray, manifest: Manifest) -> Views:
    """Every feature's strength in every tile of the pictures, and what CLIP sees there.

    Of whole pictures where a folder has no embeddings of tiles, or no token-level codes, as older scripts
    wrote it.
    """
    import torch
    from scipy.sparse import csr_array, vstack

    from fluxscope.run.codes import CodeStore

    config, files = context.config, context.files
    prompt_idx = manifest.prompt_of
    pictures = pictures_to_see(prompt_idx)
    if not (files.clip_tiles.is_file() and files.codes.is_dir()):
        return views_of(pictures, prompt_idx, csr_array(s[pictures.reshape(-1)]), embeddings[:, None])
    tiles = load_tiles(files, len(s))
    store = CodeStore(files.codes, files.site, config.target_step_index)
    place = torch.from_numpy(tile_of_tokens(config.image_token_grid, round(tiles.shape[1] ** 0.5)))
    strength = csr_array(
        vstack(
            [
                csr_array(_all_tiles(store.image(image).max_over_tokens(place).numpy(), tiles.shape[1]))
                for image in pictures.reshape(-1).tolist()
            ]
        )
    )
    return views_of(pictures, prompt_idx, strength, tiles)


def _all_tiles(largest: np.ndarray, count: int) -> np.ndarray:
    """The tiles' rows, and empty ones for the last tiles, in which no token of a coarse grid lies."""
    return np.pad(largest, ((0, count - len(largest)), (0, 0)))


def score_sides(
    config: Config, s: np.ndarray, embeddings: np.ndarray, prompt_idx: Int64[np.ndarray, " n"], views: Views
) -> Sides:
    """The scores of all features, on all pictures and on either half of the prompts."""
    eps, top_m, least = config.eps_alive, config.top_m_per_feature, config.min_prompts
    halves = part_prompts(prompt_idx, s.shape[1])
    if halves is None:
        ranked = rank_images(s, prompt_idx, eps, top_m)
        return together(score_features(ranked, embeddings, prompt_idx, least), views)
    one = np.isin(prompt_idx, halves.prompts)
    first, second = (rank_images(s, prompt_idx, eps, top_m, some=half) for half in (one, ~one))
    ranked = both_ranked(first, second, (int(one.sum()), int((~one).sum())))
    overall = score_features(ranked, embeddings, prompt_idx, least)
    parts = [
        score_features(each, embeddings, prompt_idx, -(-least // 2), half)
        for each, half in ((first, one), (second, ~one))
    ]
    return apart(overall, parts[0], parts[1], views, halves)


def choose(
    context: Context, scores: FeatureScores, showing: RankedImages, manifest: Manifest, views: Views
) -> list[Choice]:
    """The features to show; none where no feature is active on enough prompts.

    A run of fewer prompts than a feature shall have examples shows what there is, and pictures repeatedly;
    in one of too few prompts for halves all features are alike by chance.
    """
    config, few = context.config, shows_few(context.config, manifest)
    n_prompts = len(manifest.prompts)
    return select_features(
        scores,
        showing,
        [row.image_id for row in manifest.rows],
        config.top_features,
        n_prompts if few else config.top_examples_per_feature,
        config.enforce_global_unique_images and not few,
        views.strength if n_prompts >= LEAST else None,
        config.most_alike,
    )


def tell_chance(context: Context, selection: Selection, manifest: Manifest) -> None:
    """Say how many features beat chance, how many of these are false, and whether one can tell at all."""
    config, prompts = context.config, len(manifest.prompts)
    beating = selection.num_beating_chance
    if beating is None:
        are = f"{prompts} prompt is" if prompts == 1 else f"{prompts} prompts are"
        few = f"{are} too few to rank features by coherence, and"
        start = few if shows_few(config, manifest) and selection.features else are
        context.report.say(f"     {start} not enough pictures to tell features from chance: {REMEDY}")
        return
    alive = selection.num_alive_features
    false = round(FALSE_DISCOVERIES * beating)
    context.report.say(
        f"     {beating} of {alive} alive features beat chance on pictures that did not choose them; "
        f"about {false} of these are false discoveries"
    )
    if len(selection.features) < config.top_features and selection.features:
        context.report.say(
            f"     no more than {len(selection.features)} have examples of their own and differ enough: "
            f"allow more likeness with --most-alike, or use more prompts"
        )


def outcome_of(selection: Selection, pictures: int) -> str:
    if not selection.features:
        return f"no feature is active on enough of the {pictures} pictures to be selected: {REMEDY}"
    count, best = len(selection.features), selection.features[0]
    if selection.tied:
        return f"{count} features selected; all have the same {selection.rank_by}: they stand by number"
    again = "" if best.shown_score is None else f", {best.shown_score:.3f} on others"
    return (
        f"{count} features selected by {selection.rank_by}, the first: {best.feature_id} "
        f"({best.chosen_score:.3f} on the pictures that chose it{again})"
    )


def shows_few(config: Config, manifest: Manifest) -> bool:
    """Whether the run has fewer prompts than a feature has examples, which are of distinct prompts."""
    return len(manifest.prompts) < config.top_examples_per_feature


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
    context: Context, scores: FeatureScores, chosen: list[Choice], rank_by: str, manifest: Manifest
) -> Selection:
    """Write the selection and the scores of all features; returns the former."""
    config, files = context.config, context.files
    known = np.isfinite(scores.q_value).any()
    selection = Selection(
        num_images=len(manifest.rows),
        num_alive_features=int((scores.frequency > 0).sum()),
        num_beating_chance=int((scores.q_value <= FALSE_DISCOVERIES).sum()) if known else None,
        top_m_per_feature=config.top_m_per_feature,
        top_features=config.top_features,
        top_examples_per_feature=config.top_examples_per_feature,
        enforce_global_unique_images=config.enforce_global_unique_images and not shows_few(config, manifest),
        rank_by=rank_by,
        min_prompts=config.min_prompts,
        most_alike=config.most_alike,
        false_discovery_rate=FALSE_DISCOVERIES,
        layer_index=files.layer,
        donor_score=tell_donor_score(context, files.site),
        features=[record_of(scores, choice) for choice in chosen],
    )
    selection.write(files.selected_features)
    save_npz(files.feature_scores, **scores.measures())
    return selection
