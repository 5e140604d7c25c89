import shutil

import numpy as np
import pytest

import fluxscope.steps.compare_layers as step
from fluxscope.errors import MissingInputError, RunDirError
from fluxscope.files import load_npy, read_json, read_jsonl
from fluxscope.measures.compare import correlation_blocks, linear_cka, one_to_one, partners
from fluxscope.measures.profiles import best_pairs, match
from fluxscope.progress import Reporter
from fluxscope.run.codes import CodeStore
from fluxscope.run.context import Context
from fluxscope.run.layers import open_layer, same_images
from fluxscope.run.rundir import RunDir
from fluxscope.settings.config import make_config
from fluxscope.steps.compare_layers import SHEET_LEAST_IMAGES, TOP_IMAGES, distinct
from tests.conftest import SMALL, run_steps


@pytest.fixture(scope="module")
def compared(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared") / "run"
    shutil.copytree(finished.out_dir, folder)
    config = make_config(out_dir=str(folder), **SMALL)
    run_steps(config, "9")
    return Context(config, RunDir.of(config), Reporter(quiet=True))


def test_the_summary_counts_what_s_holds(compared):
    summary = read_json(compared.files.comparison_summary)
    alive = {}
    for layer in (5, 15):
        s = load_npy(compared.files.layer_comparison / f"S_layer{layer}.npy") > 1e-4
        np.testing.assert_array_equal(
            s, load_npy(RunDir.of(compared.config, f"double.{layer}.ff").s_matrix) > 1e-4
        )
        alive[layer] = set(np.flatnonzero(s.any(0)))
        assert summary[f"layer{layer}"]["num_alive_features"] == len(alive[layer])
        assert summary[f"layer{layer}"]["num_features"] == s.shape[1]
        assert summary[f"layer{layer}"]["mean_l0"] == pytest.approx(s.sum(1).mean())
    assert summary["comparison"] == {
        "alive_in_both": len(alive[5] & alive[15]),
        "alive_only_in_5": len(alive[5] - alive[15]),
        "alive_only_in_15": len(alive[15] - alive[5]),
    }


def test_every_alive_early_feature_persists_or_vanishes(compared):
    found = read_json(compared.files.comparison)
    s = load_npy(RunDir.of(compared.config, "double.5.ff").s_matrix)
    assert sorted(found["persist"] + found["vanish"]) == np.flatnonzero((s > 1e-4).any(0)).tolist()
    assert set(found["matches"]) == {"image_level", "token_maps", "decoder_cosine"}
    assert 0 <= found["cka"] <= 1
    for name in ("l0_comparison.png", "frequency_comparison.png", "matched_features.png"):
        assert (compared.files.layer_comparison / name).is_file()


def test_a_layer_and_itself_give_identity_correlation_one_and_cka_one(compared):
    layer = open_layer(compared, "double.15.ff", TOP_IMAGES)
    alive, profiles = layer.stats.alive, layer.profiles()
    for name, found in match(profiles, profiles).items():
        varying = alive[np.isfinite(found.similarity[alive])]
        assert len(varying) > 100, name
        np.testing.assert_allclose(found.similarity[varying], 1, atol=1e-5)
        matched = one_to_one(found)[varying]
        twins = found.similarity[varying] >= 1 - 1e-9  # equal features may swap partners
        assert (matched[~twins] == varying[~twins]).all(), name
        assert np.mean(matched == varying) > 0.95, name
    assert linear_cka(step.reconstructions(layer, layer)) == pytest.approx(1)


def test_random_features_have_nothing_in_common(compared):
    layer = open_layer(compared, "double.15.ff", TOP_IMAGES)
    rng = np.random.default_rng(0)
    rows = layer.token_rows()
    order = rng.permutation(rows.shape[0])
    found = partners(correlation_blocks(rows, rows[order]), rows.shape[1], rows.shape[1])
    common = np.flatnonzero(np.diff(rows.tocsc().indptr) > 50)
    assert np.median(found.similarity[common]) < 0.2
    dense = rows.toarray()
    assert linear_cka([(dense, dense[order])]) < 0.1


def test_features_are_more_alike_on_the_same_images_than_by_chance(compared):
    found = read_json(compared.files.comparison)
    by_maps = found["similarity"]["token_maps"]
    assert by_maps["median"] > by_maps["median_by_chance"] + 0.1
    assert found["persist_by_chance"] < len(found["persist"])
    assert f"{found['persist_by_chance']} by chance" in found["words"]


def test_every_alive_late_feature_has_its_partner_too(compared):
    found = read_json(compared.files.comparison)
    s = [load_npy(RunDir.of(compared.config, f"double.{layer}.ff").s_matrix) for layer in (5, 15)]
    back = found["matches_back"]["image_level"]
    assert [row["feature"] for row in back] == np.flatnonzero((s[1] > 1e-4).any(0)).tolist()
    row = next(row for row in back if row["partner"] is not None)
    columns = s[0][:, row["partner"]], s[1][:, row["feature"]]
    assert row["similarity"] == pytest.approx(np.corrcoef(*columns)[0, 1], abs=1e-5)


def test_the_overlap_is_told_for_every_image(compared):
    found = read_json(compared.files.comparison)
    shares = found["top_feature_overlap_per_image"]
    assert len(shares) == SMALL["max_prompts"] * 2
    assert found["top_feature_overlap"] == pytest.approx(np.mean(shares))
    for layer in (5, 15):
        counts = active_features(compared.config, layer)
        l0 = found["l0"][f"layer {layer}"]
        assert (l0["per_token"], l0["per_token_std"]) == pytest.approx((counts.mean(), counts.std()))
        assert counts.max() == 16, layer  # TopK with k 16; a token may have fewer positive pre-activations
    assert len(found["l0"]) == 2


def active_features(config, layer):
    """How many features are active on each token of the run, counted in the stored codes."""
    files = RunDir.of(config, f"double.{layer}.ff")
    store = CodeStore(files.codes, files.site, config.target_step_index)
    images = [store.image(i) for i in range(SMALL["max_prompts"] * 2)]
    return np.concatenate([codes.counts().numpy() for codes in images])


def test_the_pairs_shown_are_each_others_best_and_each_picture_is_of_its_own_prompt(compared):
    early, late = (open_layer(compared, f"double.{layer}.ff", TOP_IMAGES) for layer in (5, 15))
    found = match(early.profiles(), late.profiles())["token_maps"]
    often = np.rint(early.stats.frequency * len(early.s)) >= SHEET_LEAST_IMAGES
    shown = best_pairs(found, often, 10)
    assert len(shown) == 10
    assert (found.back_best[found.best[shown]] == shown).all()
    assert (np.diff(found.similarity[shown]) <= 0).all()
    manifest = same_images(early, late)
    for feature in shown:
        images = distinct(early.stats.top_idx[:, feature], manifest)
        assert len({manifest.rows[image].prompt for image in images}) == len(images) == 4


def test_a_second_comparison_leaves_no_other_files(compared):
    before = sorted(compared.files.layer_comparison.iterdir())
    run_steps(compared.config, "9", force=True)
    assert sorted(compared.files.layer_comparison.iterdir()) == before


def test_a_layer_that_was_not_collected_is_a_clear_error(tmp_path):
    small = {"max_prompts": 1, "num_inference_steps": 2, "target_step_number": 1}
    config = make_config(out_dir=str(tmp_path / "run"), compare_layers=False, **small)
    run_steps(config, "1")
    with pytest.raises(MissingInputError, match="layer 5 was not collected"):
        run_steps(config, "9")


def test_a_missing_sae_is_found_before_anything_is_generated(tmp_path, capsys):
    config = make_config(out_dir=str(tmp_path / "run"), layer5_sae_path="")
    with pytest.raises(MissingInputError, match="step 9 .* no SAE is set for block 5") as caught:
        run_steps(config, "1-11")
    assert caught.value.hint.endswith("--steps 1,2,3,4,5,6,7,8,10,11")
    assert not (tmp_path / "run").exists()


def test_layers_of_different_images_are_refused(compared, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(compared.config.out_dir, folder)
    manifest = folder / "layer_05" / "manifest.jsonl"
    rows = read_jsonl(manifest)
    manifest.write_text(manifest.read_text().replace(f'"seed": {rows[0]["seed"]}', '"seed": 999'))
    with pytest.raises(RunDirError, match="different images"):
        run_steps(make_config(out_dir=str(folder), **SMALL), "9", force=True)
