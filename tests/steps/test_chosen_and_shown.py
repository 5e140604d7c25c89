"""Half of the prompts choose a feature, the other half shows it: computed a second time, in plainer ways."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import pearsonr

from fluxscope.files import read_json, write_json
from fluxscope.measures.halves import part_prompts
from fluxscope.progress import Reporter
from fluxscope.run.codes import CodeStore
from fluxscope.run.context import Context
from fluxscope.run.records import Selection
from fluxscope.run.rundir import RunDir
from fluxscope.settings.config import make_config
from fluxscope.steps import contact_sheet as sheet_step
from fluxscope.steps.pipeline import parse_pipeline_steps, run_pipeline


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Steps 1 to 6 on 24 prompts."""
    config = make_config(
        out_dir=str(tmp_path_factory.mktemp("halves") / "run"), max_prompts=24, reps_per_prompt=1
    )
    run_pipeline(config, Reporter(quiet=True), parse_pipeline_steps("1-6"))
    return config


@pytest.fixture(scope="module")
def run(config):
    """The strength of every feature in every tile, the tiles' embeddings, S; and the halves."""
    files = RunDir.of(config)
    store = CodeStore(files.codes, files.site, config.target_step_index)
    tokens = np.stack([store.image(i).to_dense().numpy() for i in range(24)])
    strength = tokens.reshape(24, 4, 2, 4, 2, -1).max((2, 4)).reshape(24, 16, -1)
    halves = part_prompts(np.arange(24), strength.shape[2])
    return strength, np.load(files.clip_tiles).astype(float), np.load(files.s_matrix), halves


@pytest.fixture(scope="module")
def selection(config):
    return read_json(RunDir.of(config).selected_features)


def sides_of(halves, feature):
    """The pictures that choose a feature, and those that show it."""
    one = np.isin(np.arange(24), halves.prompts)
    assert one.sum() == 12
    return (one, ~one) if halves.by_first[feature] else (~one, one)


def centred(x):
    return x.astype(float) - x.astype(float).mean(0)


def held_out(run, feature):
    """The correlation on the half that shows, and each prompt's part in it: strengths and where tiles lie."""
    strength, tiles, _, halves = run
    chose, shows = sides_of(halves, feature)
    direction = np.einsum("pve,pv->e", centred(tiles[chose]), centred(strength[chose][..., feature]))
    along, s = centred(tiles[shows]) @ direction, centred(strength[shows][..., feature])
    return pearsonr(along.ravel(), s.ravel())[0], along, s


def test_a_feature_is_scored_again_on_the_pictures_that_did_not_choose_it(run, selection):
    for record in selection["features"]:
        r, _, _ = held_out(run, record["feature_id"])
        assert record["shown_score"] == record["clip_held_out"] == pytest.approx(r, abs=1e-4)
        assert record["chosen_pictures"] == record["shown_pictures"] == 12


def test_the_score_that_chooses_is_of_the_other_pictures_each_taught_by_those_beside_it(run, selection):
    strength, tiles, _, halves = run
    for record in selection["features"][:4]:
        feature = record["feature_id"]
        chose = np.flatnonzero(sides_of(halves, feature)[0])
        along = []
        for own in chose:
            others = chose[chose != own]
            direction = np.einsum(
                "pve,pv->e", centred(tiles[others]), centred(strength[others][..., feature])
            )
            along.append((tiles[own] - tiles[others].mean(0)) @ direction)
        s = centred(strength[chose][..., feature])
        assert record["chosen_score"] == pytest.approx(pearsonr(np.ravel(along), s.ravel())[0], abs=1e-4)


def test_chances_are_those_of_dealing_pictures_and_false_discoveries_are_counted(config, run, selection):
    scores, s = np.load(RunDir.of(config).feature_scores), run[2]
    alive = np.flatnonzero((s > config.eps_alive).any(0))
    p, q, rng = scores["p_value"], scores["q_value"], np.random.default_rng(0)
    assert np.isnan(np.delete(p, alive)).all() and np.isnan(np.delete(q, alive)).all()
    deals = [rng.permutation(12) for _ in range(3000)]
    compared = 0
    for feature in alive[:: len(alive) // 40]:
        if np.isnan(scores["clip_held_out"][feature]):
            assert p[feature] == 1
            continue
        _, along, strength = held_out(run, feature)
        products = along @ strength.T  # of picture i's tiles and picture j's strengths
        chance = np.mean([products[deal, np.arange(12)].sum() >= np.trace(products) for deal in deals])
        active = (run[0][sides_of(run[3], feature)[1]][..., feature] > 0).any(1).sum()
        assert p[feature] == pytest.approx(chance, abs=0.05 if active > 2 else 0.12)
        compared += active > 2
    assert compared > 20
    order = np.sort(p[alive])
    for feature in alive[:: len(alive) // 40]:  # of all that are as sure or surer than each of those below
        worse = order[order >= p[feature]]
        expected = min(each * len(alive) / np.searchsorted(order, each, "right") for each in worse)
        assert q[feature] == pytest.approx(min(expected, 1), rel=1e-5)
    assert selection["num_alive_features"] == len(alive)
    assert selection["num_beating_chance"] == (q[alive] <= 0.05).sum() > 0


def test_only_pictures_that_did_not_choose_are_shown_strongest_first(config, run, selection):
    _, _, s, halves = run
    for record in selection["features"]:
        feature = record["feature_id"]
        _, shows = sides_of(halves, feature)
        order = [i for i in np.argsort(-s[:, feature], kind="stable") if s[i, feature] > config.eps_alive]
        others = [i for i in order if shows[i]]
        taken = [i for i in others if i in record["example_image_ids"]]
        assert record["example_image_ids"] == taken
        earlier = selection["features"][: selection["features"].index(record)]
        used = {i for each in earlier for i in each["example_image_ids"]}
        assert taken == [i for i in others if i not in used][:4]
        assert record["top_m_image_ids"] == order[: config.top_m_per_feature]


def test_the_best_are_selected_but_none_that_fires_like_a_better_one(config, run, selection):
    scores, (strength, _, _, halves) = np.load(RunDir.of(config).feature_scores), run
    by = np.where(np.isnan(scores["clip_coherence"]), np.nan, scores["chosen_score"])
    chosen = [record["feature_id"] for record in selection["features"]]
    patterns = strength.reshape(24 * 16, -1)
    alike = np.corrcoef(patterns[:, chosen].T)
    assert len(chosen) > 3 and (alike[~np.eye(len(chosen), dtype=bool)] <= config.most_alike).all()
    ranked = [f for f in np.argsort(-by, kind="stable") if np.isfinite(by[f])]
    assert ranked[0] == chosen[0]
    passed = 0
    for feature in ranked[: ranked.index(chosen[-1])]:
        if feature in chosen:
            continue
        better = [each for each in chosen if by[each] > by[feature]]
        like = max(np.corrcoef(patterns[:, feature], patterns[:, each])[0, 1] for each in better)
        used = {i for r in selection["features"] if r["feature_id"] in better for i in r["example_image_ids"]}
        shows = sides_of(halves, feature)[1]
        free = [i for i in np.flatnonzero(shows) if run[2][i, feature] > config.eps_alive and i not in used]
        assert like > config.most_alike or len(free) < 4
        passed += like > config.most_alike
    assert passed


def test_cards_say_both_scores_of_how_many_pictures_and_what_does_not_beat_chance(config, monkeypatch):
    files, drawn = RunDir.of(config), []
    selection = Selection.read(files.selected_features)
    monkeypatch.setattr(sheet_step, "contact_sheet", lambda cards, *a, **k: drawn.append((cards, *a)))
    monkeypatch.setattr(sheet_step, "save_image", lambda *a: None)
    text = files.selected_features.read_text()
    try:
        changed = json.loads(text)
        changed["features"][1]["q_value"] = 0.0501
        write_json(files.selected_features, changed)
        sheet_step.run(Context(config, files, Reporter(quiet=True)))
    finally:
        Path(files.selected_features).write_text(text)
    cards, title, _, footer = drawn[0]
    for place, (card, record) in enumerate(zip(cards, selection.features, strict=True)):
        shown = dict(card.numbers())
        assert shown["chosen on 12"] == f"{record.chosen_score:.2f}"
        assert shown["shown on 12"] == f"{record.shown_score:.2f}"
        assert shown["false discovery"] == ("5.0%" if place == 1 else f"{record.q_value:.1%}")
        sure = record.q_value <= 0.05 and place != 1
        assert card.warning == ("" if sure else "does not beat chance")
    assert title == f"The {len(cards)} features with the highest held-out correlation with CLIP"
    assert "Chosen on: " in footer


@pytest.mark.parametrize("rank_by", ["clip_coherence", "coverage", "crop_coherence"])
def test_any_score_chooses_on_one_half_and_is_taken_again_on_the_other(config, run, rank_by, tmp_path):
    shutil.copytree(config.out_dir, tmp_path / "run")
    other = replace(config, out_dir=str(tmp_path / "run"), rank_by=rank_by)
    run_pipeline(other, Reporter(quiet=True), parse_pipeline_steps("4"))
    files, (_, _, s, halves) = RunDir.of(other), run
    selection, vectors = read_json(files.selected_features), np.load(files.clip_embeddings)
    assert selection["rank_by"] == rank_by and selection["features"]
    for record in selection["features"]:
        feature = record["feature_id"]
        for side, name in zip(sides_of(halves, feature), ("chosen_score", "shown_score"), strict=True):
            active = [i for i in np.argsort(-s[:, feature]) if side[i] and s[i, feature] > config.eps_alive]
            if rank_by == "coverage":
                assert record[name] == len(active)
            elif rank_by == "clip_coherence":
                products = vectors[active] @ vectors[active].T
                mean = products[~np.eye(len(active), dtype=bool)].mean()
                assert record[name] == pytest.approx(mean, abs=1e-5)
            else:
                assert record[name] is not None and record[name] != record["crop_coherence"]
