"""What steps 2-6 and 8 show, computed a second time by other, plainer ways from what step 1 collected.

Every number and picture that a user sees is held to its meaning: a step that read another picture's codes,
ranked the wrong way round or wrote one score under another's name would fail here.
"""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import fluxscope.steps.contact_sheet as sheet_step
from fluxscope.draw import sheet as sheet_drawing
from fluxscope.progress import Reporter
from fluxscope.run.codes import CodeStore
from fluxscope.run.context import Context
from fluxscope.run.rundir import RunDir
from fluxscope.sae.formats import load
from fluxscope.shapes.shipped import resolve


@pytest.fixture(scope="module")
def folder(finished):
    return Path(finished.out_dir)


def read(folder, name):
    return json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def s(folder):
    return np.load(folder / "S_matrix.npy")


@pytest.fixture(scope="module")
def manifest(folder):
    """The rows in the order of S."""
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def selection(folder):
    return read(folder, "selected_features.json")["features"]


@pytest.fixture(scope="module")
def clip(finished):
    name = str(resolve(finished.clip_model_id))
    return CLIPModel.from_pretrained(name).float().eval(), CLIPImageProcessorPil.from_pretrained(name)


def embedded(clip, picture):
    """One picture's unit vector, by transformers alone."""
    model, processor = clip
    with torch.inference_mode():
        vision = model.vision_model(**processor(images=picture, return_tensors="pt"))
        vector = model.visual_projection(vision.pooler_output)[0].numpy()
    return vector / np.linalg.norm(vector)


def token_codes(finished, row):
    """One picture's code at every token, (t, f)."""
    files = RunDir.of(finished)
    store = CodeStore(files.codes, files.site, finished.target_step_index)
    return store.image(row).to_dense().numpy()


# Step 1


def test_each_picture_is_of_its_own_prompt_and_seed(model, folder, manifest):
    """Three pictures that lie in other places of other batches, made alone."""
    for row in (manifest[0], manifest[9], manifest[-1]):
        alone = model.pictures([row["prompt"]], [row["seed"]])[0].numpy().astype(int)
        kept = np.asarray(Image.open(folder / row["image_path"])).astype(int)
        assert np.abs(alone - kept).max() <= 2, row["image_id"]


def test_every_row_of_s_is_the_maximum_of_its_own_pictures_codes(finished, s):
    for row in range(len(s)):
        np.testing.assert_array_equal(s[row], token_codes(finished, row).max(0))


# Step 2


def test_statistics_are_those_of_s(finished, folder, s):
    active = s > finished.eps_alive
    frequency = np.load(folder / "activation_freq.npy")
    np.testing.assert_array_equal(np.load(folder / "alive_features.npy"), np.flatnonzero(active.any(0)))
    np.testing.assert_allclose(frequency, active.sum(0) / len(s), rtol=1e-6)
    stats = np.load(folder / "feature_stats.npz")
    for feature in [*np.flatnonzero(active.any(0))[:50], int(np.flatnonzero(~active.any(0))[0])]:
        values = s[active[:, feature], feature].astype(np.float64)
        mean, spread = (values.mean(), values.std()) if len(values) else (0, 0)
        assert stats["mean_when_active"][feature] == pytest.approx(mean, rel=1e-5)
        assert stats["std_when_active"][feature] == pytest.approx(spread, rel=1e-3, abs=1e-4 * mean + 1e-9)
        assert stats["max"][feature] == s[:, feature].max()


def test_top_lists_hold_the_largest_values_and_where_they_are(folder, s):
    top = np.load(folder / "topk_per_feature.npz")
    k = int(top["k"])
    assert top["top_idx"].shape == top["top_scores"].shape == (k, s.shape[1]) and k == min(20, len(s))
    np.testing.assert_array_equal(top["top_scores"], -np.sort(-s, axis=0)[:k])
    np.testing.assert_array_equal(np.take_along_axis(s, top["top_idx"], axis=0), top["top_scores"])
    assert all(len(set(column)) == k for column in top["top_idx"].T)


def test_counts_add_up(finished, folder, s):
    counts, share = read(folder, "feature_analysis_summary.json"), (s > finished.eps_alive).mean(0)
    assert counts["num_images"] == len(s) and counts["hidden_dim"] == s.shape[1]
    assert counts["num_alive_features"] == (share > 0).sum()
    assert counts["num_dead_features"] == (share == 0).sum()
    assert counts["num_rare_features"] == ((share > 0) & (share < 0.01)).sum()
    assert counts["num_common_features"] == ((share >= 0.01) & (share < 0.1)).sum()
    assert counts["num_very_common_features"] == (share >= 0.1).sum()


# Step 3


def test_each_row_is_its_own_pictures_embedding(clip, folder, manifest):
    rows = np.load(folder / "clip_embeddings.npy")
    own = np.stack(
        [embedded(clip, Image.open(folder / row["image_path"]).convert("RGB")) for row in manifest]
    )
    np.testing.assert_allclose(rows, own, atol=1e-5)
    np.testing.assert_array_equal(np.load(folder / "clip_image_ids.npy"), [r["image_id"] for r in manifest])
    tiles = np.load(folder / "clip_tiles.npy")
    assert tiles.shape == (len(manifest), 16, rows.shape[1])
    for row in (0, len(manifest) - 1):
        picture = Image.open(folder / manifest[row]["image_path"]).convert("RGB")
        for tile, (top, left) in enumerate(itertools.product(range(0, 128, 32), repeat=2)):
            own = embedded(clip, picture.crop((left, top, left + 32, top + 32)))
            np.testing.assert_allclose(tiles[row, tile], own, atol=1e-5)
    np.testing.assert_array_equal(
        np.load(folder / "clip_prompt_idx.npy"), [r["prompt_idx"] for r in manifest]
    )
    np.testing.assert_array_equal(np.load(folder / "clip_seeds.npy"), [r["seed"] for r in manifest])


# Step 4


def top_rows(finished, s, manifest, feature):
    """The rows of S on which the feature is strongest, one of each prompt."""
    rows, prompts = [], set()
    for row in np.argsort(-s[:, feature], kind="stable"):
        if s[row, feature] > finished.eps_alive and manifest[row]["prompt_idx"] not in prompts:
            prompts.add(manifest[row]["prompt_idx"])
            rows.append(int(row))
    return rows


def pairwise(vectors):
    return np.mean([a @ b for a, b in itertools.combinations(vectors, 2)])


def test_scores_of_the_selected_are_what_their_names_say(finished, clip, folder, s, manifest, selection):
    vectors, picture_size = np.load(folder / "clip_embeddings.npy"), (finished.width, finished.height)
    draws, prompts = np.random.default_rng(0), np.array([row["prompt_idx"] for row in manifest])
    for record in selection:
        feature = record["feature_id"]
        rows = top_rows(finished, s, manifest, feature)
        top = rows[: finished.top_m_per_feature]
        assert record["top_m_image_ids"] == [manifest[row]["image_id"] for row in top]
        assert record["n_top"] == len(top) and record["coverage"] == len(rows)
        assert record["frequency"] == pytest.approx((s[:, feature] > finished.eps_alive).mean())
        assert record["clip_coherence"] == pytest.approx(pairwise(vectors[top]), abs=1e-5)
        chance = [pairwise(vectors[random_rows(draws, prompts, len(top))]) for _ in range(300)]
        if record["coherence_z"] is not None:
            z = (record["clip_coherence"] - np.mean(chance)) / np.std(chance)
            assert record["coherence_z"] == pytest.approx(z, rel=0.25, abs=0.4)
        crops = []
        for row in top:
            box = box_of_peak(token_codes(finished, row)[:, feature], finished.image_token_grid, picture_size)
            crops.append(
                embedded(clip, Image.open(folder / manifest[row]["image_path"]).convert("RGB").crop(box))
            )
        assert record["crop_coherence"] == pytest.approx(pairwise(crops), abs=1e-4)


def random_rows(draws, prompts, count):
    """One random row of each of so many random prompts."""
    chosen = draws.choice(np.unique(prompts), count, replace=False)
    return [int(draws.choice(np.flatnonzero(prompts == prompt))) for prompt in chosen]


def box_of_peak(codes, grid, size):
    """Half of the picture's sides around the strongest token, moved inside."""
    peak = int(np.argmax(codes))
    box = []
    for place, count, length in ((peak % grid[1], grid[1], size[0]), (peak // grid[1], grid[0], size[1])):
        start = round((place + 0.5) * length / count - length / 4)
        box.append(min(max(start, 0), length // 2))
    left, top = box
    return left, top, left + size[0] // 2, top + size[1] // 2


def test_the_selection_is_the_best_by_the_score_it_ranks_by(finished, folder, s, manifest, selection):
    """Greedily, best first; passed over are only those that lack pictures which no better one shows."""
    scores = np.load(folder / "feature_scores.npz")
    by, chosen, shown = scores["chosen_score"], [record["feature_id"] for record in selection], set()
    assert read(folder, "selected_features.json")["rank_by"] == "clip_held_out"
    np.testing.assert_array_equal(by, scores["clip_held_out"])  # 12 prompts are not parted
    assert (np.diff([by[f] for f in chosen]) <= 0).all()
    ranked = [f for f in np.argsort(-by, kind="stable") if np.isfinite(by[f] + scores["clip_coherence"][f])]
    last = ranked.index(chosen[-1]) + 1 if len(chosen) == finished.top_features else len(ranked)
    for feature in ranked[:last]:
        own = [
            r
            for r in top_rows(finished, s, manifest, feature)[: finished.top_m_per_feature]
            if r not in shown
        ]
        examples = own[: finished.top_examples_per_feature]
        if feature in chosen:
            record = selection[chosen.index(feature)]
            assert record["example_image_ids"] == [manifest[row]["image_id"] for row in examples]
            shown.update(examples)
        else:
            assert len(examples) < finished.top_examples_per_feature, feature


# Step 5


def test_token_maps_and_overlays_are_of_their_own_picture_and_feature(
    finished, folder, s, manifest, selection
):
    items = read(folder, "overlays/overlay_summary.json")["items"]
    pairs = [(r["feature_id"], image) for r in selection for image in r["example_image_ids"]]
    assert [(item["feature_id"], item["image_id"]) for item in items] == pairs
    place = {row["image_id"]: index for index, row in enumerate(manifest)}
    for item in items:
        feature, index = item["feature_id"], place[item["image_id"]]
        row, tokens = manifest[index], np.load(folder / item["tokenmap_path"])
        np.testing.assert_array_equal(tokens, token_codes(finished, index)[:, feature])
        assert item["activation_max"] == s[index, feature] == tokens.max()
        assert item["activation_mean"] == pytest.approx(tokens.mean())
        assert (item["prompt"], item["seed"]) == (row["prompt"], row["seed"])
        assert item["base_image_path"] == row["image_path"]
        check_overlay(finished, folder, item, tokens)


def check_overlay(finished, folder, item, tokens):
    """Away from the outline a pixel is its picture's, mixed with blue by the feature's code at its token."""
    picture = np.asarray(Image.open(folder / item["base_image_path"]).convert("RGB")).astype(float)
    drawn = np.asarray(Image.open(folder / item["overlay_path"]).convert("RGB")).astype(float)
    grid = finished.image_token_grid
    full = np.percentile(tokens, finished.clip_percentile)
    heat = np.clip(tokens.reshape(grid) / (full if full > 1e-6 else tokens.max()), 0, 1)
    side = finished.height // grid[0]
    for row, column in np.ndindex(*grid):  # the pixel at a token's centre is hardly interpolated
        y, x = row * side + side // 2, column * side + side // 2
        around = heat[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        if np.ptp(around) > 1e-6:
            continue  # an edge of the heat: outlined, and smooth
        share = heat[row, column] * finished.alpha_scale
        expected = picture[y, x] * (1 - share) + np.array([32, 112, 255]) * share
        assert np.abs(drawn[y, x] - expected).max() <= 1.5
    hottest, coldest = np.unravel_index(heat.argmax(), grid), heat == 0
    change = np.abs(drawn - picture).sum(-1).reshape(grid[0], side, grid[1], side).mean((1, 3))
    lonely = coldest & ~spread(~coldest)
    assert change[lonely].max(initial=0) == 0, "the overlay touches tokens where the feature is silent"
    assert change[hottest] > 0, "the overlay leaves the strongest token as it is"


def spread(mask):
    """The tokens in or beside a mask."""
    padded = np.pad(mask, 1)
    rows, columns = mask.shape
    return np.any([padded[i : i + rows, j : j + columns] for i in range(3) for j in range(3)], axis=0)


# Step 6


def test_the_sheets_show_each_feature_with_its_own_numbers_and_pictures(
    finished, folder, selection, monkeypatch
):
    shown, written = {}, {}
    for name in ("contact_sheet", "comparison_sheet"):
        draw = getattr(sheet_drawing, name)

        def note(cards, *args, name=name, draw=draw, **options):
            shown[name] = cards
            return draw(cards, *args, **options)

        monkeypatch.setattr(sheet_drawing, name, note)
        if hasattr(sheet_step, name):
            monkeypatch.setattr(sheet_step, name, note)
    monkeypatch.setattr(sheet_step, "save_image", lambda path, image: written.update({path.name: image}))
    sheet_step.run(Context(finished, RunDir.of(finished), Reporter(quiet=True)))
    items = read(folder, "overlays/overlay_summary.json")["items"]
    for cards in shown.values():
        assert [card.feature_id for card in cards] == [record["feature_id"] for record in selection]
        for card, record in zip(cards, selection, strict=True):
            check_numbers(dict(card.numbers()), record)
            own = [item for item in items if item["feature_id"] == card.feature_id]
            for example, item in zip(card.examples, own, strict=True):
                for picture, path in (
                    (example.overlay, "overlay_path"),
                    (example.original, "base_image_path"),
                ):
                    on_disk = np.asarray(Image.open(folder / item[path]).convert("RGB"))
                    np.testing.assert_array_equal(np.asarray(picture), on_disk)
                check_light(example, np.load(folder / item["tokenmap_path"]))
                assert example.caption == item["prompt"]
                assert (
                    f"{item['activation_max']:.2f}" in example.note and str(item["image_id"]) in example.note
                )
    for name, image in written.items():
        np.testing.assert_array_equal(np.asarray(image), np.asarray(Image.open(folder / name)))


def check_light(example, tokens):
    """Where the feature fires most the picture has its own colours; where all is silent, few."""
    bare, shown = np.asarray(example.original).astype(float), np.asarray(example.lit).astype(float)
    grid, side = tokens.reshape(8, 8), bare.shape[0] // 8
    silent = grid == 0
    deep = silent & ~spread(~silent)
    change = np.abs(shown - bare).sum(-1).reshape(8, side, 8, side).mean((1, 3))
    middle = slice(side // 2 - 1, side // 2 + 1)
    y, x = np.unravel_index(grid.argmax(), grid.shape)
    hottest = (slice(y * side, (y + 1) * side), slice(x * side, (x + 1) * side))
    assert np.abs(shown - bare)[hottest][middle, middle].max() < 8
    for row, column in np.argwhere(deep):
        part = (slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side))
        np.testing.assert_allclose(shown[part], faded(bare[part]), atol=1)
    assert not deep.any() or change[deep].max() > change[y, x]


def faded(picture):
    """A tenth of the colours; the rest grey, of which a quarter is the picture's own light."""
    light = 0.299 * picture[..., 0] + 0.587 * picture[..., 1] + 0.114 * picture[..., 2]
    return 0.1 * picture + 0.9 * (0.75 * 226 + 0.25 * light[..., None])


def check_numbers(shown, record):
    """The card's numbers against the record, and each under its own label."""
    assert shown["coherence"] == f"{record['clip_coherence']:.3f}"
    assert shown["crop coherence"] == f"{record['crop_coherence']:.3f}"
    assert shown["frequency"] == f"{record['frequency']:.1%}"
    assert shown["prompts covered"] == str(record["coverage"])
    assert shown["z against chance"] == f"{record['coherence_z']:+.1f}"
    assert shown["chosen on 24"] == f"{record['chosen_score']:.2f}"
    assert record["shown_score"] is None and record["q_value"] is None


# Step 8


def test_directions_are_the_saes_own(finished, folder, selection):
    sae, _ = load(finished.sae_path(RunDir.of(finished).site))
    decoder, encoder = sae.decoder.weight.numpy().astype(float), sae.encoder.weight.numpy().astype(float)
    unit = decoder / np.linalg.norm(decoder, axis=0)
    stats = read(folder, "decoder_stats.json")
    ids = [record["feature_id"] for record in selection]
    assert [record["feature_id"] for record in stats["features"]] == ids
    for record in stats["features"]:
        own, reads = decoder[:, record["feature_id"]], encoder[record["feature_id"]]
        expected = {
            "decoder_norm": np.linalg.norm(own),
            "encoder_norm": np.linalg.norm(reads),
            "encoder_decoder_cosine": own @ reads / np.linalg.norm(own) / np.linalg.norm(reads),
            "decoder_mean": own.mean(),
            "decoder_std": own.std(),
            "decoder_max": own.max(),
            "decoder_min": own.min(),
        }
        assert {name: record[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-6)
        cosines = unit.T @ unit[:, record["feature_id"]]
        cosines[record["feature_id"]] = -2
        nearest = record["nearest_features"]
        assert [each["feature_id"] for each in nearest] == np.argsort(-cosines)[: len(nearest)].tolist()
        assert [each["cosine_similarity"] for each in nearest] == pytest.approx(
            np.sort(cosines)[::-1][: len(nearest)], abs=1e-5
        )
    pairs = {(p["feature_1"], p["feature_2"]): p["cosine_similarity"] for p in stats["pairwise_similarities"]}
    assert list(pairs) == list(itertools.combinations(ids, 2))
    for (a, b), value in pairs.items():
        assert value == pytest.approx(unit[:, a] @ unit[:, b], abs=1e-5)
