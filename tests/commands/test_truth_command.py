import dataclasses

import numpy as np
import pytest
from scipy.sparse import csr_array
from typer.testing import CliRunner

from fluxscope.commands import truth as command
from fluxscope.commands import truth_scores
from fluxscope.commands.benchmarks import scored_saes
from fluxscope.commands.main import build_app
from fluxscope.commands.truth import Wanted, benchmark
from fluxscope.commands.truth_scores import (
    above,
    bench_of,
    pooled,
    reported_pairs,
    score_features,
    score_verdicts,
)
from fluxscope.commands.truth_words import in_words, table
from fluxscope.errors import ConfigError, FluxscopeError
from fluxscope.measures.detection import f1_of
from fluxscope.measures.readout import Verdicts
from fluxscope.models.model import open_model
from fluxscope.progress import Reporter
from fluxscope.run.truth import Truth
from fluxscope.run.truth_records import TruthReport
from fluxscope.sae.topk import TopKSparseAutoencoder
from fluxscope.settings.config import Config
from fluxscope.shapes import oracle, world
from fluxscope.shapes.concepts import ATTRIBUTES, CONCEPTS, columns, token_truth
from fluxscope.shapes.questions import questions
from fluxscope.shapes.shipped import shipped_sae

PICTURES = 120


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """The truth of rendered pictures of the captions: as if the model were perfect. Twins share places."""
    asked = questions(PICTURES)
    scenes = [question.scene for question in asked]
    for i, question in enumerate(asked):
        if question.twin_of is not None:
            places = [thing.center for thing in scenes[question.twin_of].objects]
            moved = [
                dataclasses.replace(thing, center=center)
                for thing, center in zip(question.scene.objects, places, strict=True)
            ]
            scenes[i] = dataclasses.replace(question.scene, objects=tuple(moved))
    tokens = np.stack([token_truth(oracle.read(world.render(scene).image)) for scene in scenes])
    return Truth(tmp_path_factory.mktemp("rendered"), asked, tokens)


@pytest.fixture(scope="module")
def bench(rendered):
    return bench_of(rendered, seed=0, of_tokens=True)


def codes_knowing(truth, noise=0.002, seed=0, f=40):
    """Codes of which the first features stand for concepts, one each, and the others for nothing."""
    rng = np.random.default_rng(seed)
    r, c = truth.shape
    codes = rng.random((r, f)) * (rng.random((r, f)) < 0.05)
    codes[:, :c] = np.where(truth ^ (rng.random((r, c)) < noise), 1 + rng.random((r, c)), 0)
    return csr_array(codes.astype(np.float32))


def test_concepts_on_too_few_pictures_are_left_out(rendered, bench):
    parts = rendered.parts(0)
    assert set(bench.concepts) | set(bench.rare) == set(CONCEPTS)
    for i, concept in enumerate(CONCEPTS):
        on = rendered.tokens[:, :, i].any(1)
        enough = on[parts.choose].sum() >= 5 and on[parts.tune].sum() >= 2 and on[parts.report].sum() >= 5
        assert (concept in bench.concepts) == enough
    assert "shape: square" in bench.concepts
    assert any(concept.startswith("pair") for concept in bench.rare)
    assert (bench.truth == rendered.on_tokens(bench.concepts)).all()
    pictures = bench_of(rendered, 0, of_tokens=False)
    assert pictures.truth.shape == (PICTURES, len(pictures.concepts))
    assert "place: object" not in pictures.concepts


def test_pairs_to_report_on_are_exact(rendered):
    parts = rendered.parts(0)
    pairs = reported_pairs(rendered, parts)
    assert len(pairs) >= 8
    for base, twin in pairs:
        assert {base, twin} <= set(parts.report.tolist())
        changed = rendered.asked[twin].changed
        had, has = (rendered.tokens[i][:, columns(ATTRIBUTES)].any(0) for i in (base, twin))
        assert {ATTRIBUTES[i].split(":")[0] for i in np.flatnonzero(had != has)} == {changed}
    broken = dataclasses.replace(rendered, tokens=rendered.tokens.copy())
    broken.tokens[pairs[0][1]] = rendered.tokens[(pairs[0][1] + 13) % PICTURES]
    assert len(reported_pairs(broken, parts)) == len(pairs) - 1


def test_features_that_know_are_found_and_those_that_do_not_are_not(bench):
    own = bench.attributes[:6]
    codes = codes_knowing(bench.truth[:, own])
    record = score_features("sae", codes, bench, "x.pt").record
    assert (record.n_features, record.checkpoint) == (40, "x.pt")
    assert [record.details.features[c] for c in own] == list(range(6))
    dense, rows = codes.toarray(), bench.parts.report
    for c, feature in zip(own, range(6), strict=True):
        fires = dense[rows][:, [feature]] >= record.details.thresholds[c]
        assert record.single.f1[c] == pytest.approx(f1_of(fires, bench.truth[rows][:, [c]])[0])
        assert record.single.f1[c] > 0.8
        assert record.single.f1_low[c] <= record.single.f1[c] <= record.single.f1_high[c]
        assert record.details.p[c] < 0.05
    assert record.single.mean == pytest.approx(np.mean([record.single.f1[c] for c in bench.attributes]))
    assert record.details.distinct == len({record.details.features[c] for c in bench.attributes})
    assert record.coalition_16.mean >= record.single.mean - 0.02
    nothing = codes_knowing(bench.truth[:, :0], seed=1)
    blind = score_features("untrained", nothing, bench, "x.pt")
    assert blind.record.details.chance == pytest.approx(blind.record.single.mean, abs=0.05)
    assert min(blind.record.details.p[c] for c in bench.attributes) > 0.05
    better = above(score_features("sae", codes, bench), blind)
    assert better[1] > 0
    assert better[0] == pytest.approx(record.coalition_16.mean - blind.record.coalition_16.mean, abs=0.02)


def test_pairs_tell_what_follows_and_what_leaks(bench):
    color = [c for c in bench.attributes if bench.concepts[c].startswith("color")]
    exact = codes_knowing(bench.truth[:, color], noise=0.0)
    found = score_features("sae", exact, bench).record.details.on_pairs["color"]
    assert found.pairs > 0
    assert found.follows == 1
    assert found.leakage == 0
    assert found.selectivity > 0.6


def test_a_feature_that_leaves_out_a_kind_is_seen(rendered, monkeypatch):
    monkeypatch.setattr(truth_scores, "LEAST", 1)
    bench = bench_of(rendered, 0, True)
    pairs = [c for c in bench.concepts if c.startswith("pair")]
    counts = {pair: bench.facts[:, bench.concepts.index(pair)].sum() for pair in pairs}
    pair = max(counts, key=counts.get)
    color = bench.concepts.index("color: " + pair.split()[1])
    fires = bench.facts.copy()
    assert set(truth_scores.absorption_by_kind(fires, bench).values()) == {0}
    fires[:, color] &= ~bench.facts[:, bench.concepts.index(pair)]
    found = truth_scores.absorption_by_kind(fires, bench)
    assert found["color"] > 0
    assert found["shape"] == 0


def test_readouts_are_scored_as_they_say(bench):
    scored = score_verdicts("probe", Verdicts(bench.facts, np.ones(len(bench.concepts))), bench).record
    assert scored.readout.mean == scored.readout.coverage == scored.readout.mean_low == 1
    assert scored.single is None
    half = bench.facts.copy()
    half[::2] = False
    scores = score_verdicts("probe", Verdicts(half, np.ones(len(bench.concepts))), bench).record.readout
    shares = [(h & f).sum() / f.sum() for h, f in zip(half.T, bench.facts.T, strict=True)]
    assert scores.iou == pytest.approx(shares)
    assert scores.by_kind["color"] == pytest.approx(np.mean([scores.f1[c] for c in bench.kinds["color"]]))


def test_pooling_keeps_the_largest_code():
    codes = np.random.default_rng(0).random((12, 5)) * (np.random.default_rng(1).random((12, 5)) < 0.4)
    codes[4:8] = 0
    assert pooled(csr_array(codes), 4).toarray() == pytest.approx(codes.reshape(3, 4, 5).max(1))
    assert pooled(csr_array((8, 5)), 4).shape == (2, 5)


def wanted(folder, **changes):
    spec = open_model("flux-shapes", "cpu", "float32").defaults
    saes = (("double.5.ff", str(shipped_sae(5))),)
    return Wanted(saes, (13,), 40, folder, spec, **{"frozen_steps": 20, **changes})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The bundled SAE of block 5 on forty pictures of the model."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(truth_scores, "LEAST", 2)
        model = open_model("flux-shapes", "cpu", "float32")
        return folder, benchmark(model, wanted(folder), Reporter(quiet=True))


def test_the_bundled_sae_is_scored_with_its_controls(made):
    folder, found = made
    assert TruthReport.read(folder / "truth.json") == found
    assert (folder / "truth.png").stat().st_size > 10_000
    assert (found.pictures, found.prompts) == (40, 28)
    assert sum(found.parts.values()) == 40
    place = found.on_tokens.sites[0]
    names = [each.name for each in place.detectors]
    others = [] if "ica" in found.missing else ["ica", "nmf"]
    expected = [
        "neurons",
        "pca",
        *others,
        "sae",
        "untrained",
        "frozen decoder",
        "difference of means",
        "probe",
    ]
    assert names == expected
    by_name = {each.name: each for each in place.detectors}
    assert by_name["sae"].n_features == by_name["untrained"].n_features == 1536
    assert by_name["untrained"].l0 == pytest.approx(by_name["sae"].l0, abs=0.6)
    assert by_name["neurons"].n_features == 256
    assert by_name["sae"].above_untrained is not None
    assert by_name["probe"].readout is not None
    assert by_name["sae"].share_of_probe == pytest.approx(
        by_name["sae"].coalition_16.mean / by_name["probe"].readout.mean
    )
    for level in (found.on_tokens, found.on_pictures):
        for each in level.sites[0].detectors:
            for scores in filter(None, (each.single, each.coalition_16, each.readout)):
                assert len(scores.f1) == len(level.concepts)
                assert scores.iou == pytest.approx([f / (2 - f) for f in scores.f1])


def test_in_words(made):
    _, found = made
    lines = list(in_words(found))
    assert lines[0].startswith("40 pictures of 28 prompts (")
    assert any("double.5.ff step 14: sae 1536/16: single 0." in line for line in lines)
    rows = list(table(found.on_tokens, 0))
    assert len(rows) == 2 + len(found.on_tokens.sites[0].detectors)
    assert len({row.count("|") for row in rows}) == 1


def test_what_cannot_be_scored_is_refused(tmp_path, monkeypatch):
    model = open_model("flux-shapes", "cpu", "float32")
    narrow = TopKSparseAutoencoder(64, 96, 4)
    monkeypatch.setattr(command, "load_sae", lambda path: (narrow, {}))
    with pytest.raises(FluxscopeError, match="reads activations of width 64, double.5.ff has 128"):
        benchmark(model, wanted(tmp_path), Reporter(quiet=True))
    with pytest.raises(ConfigError, match="no SAE checkpoint is set for double.7.ff"):
        scored_saes(Config(), "double.7.ff")
    assert scored_saes(Config(), "double.5.attn=a.pt, double.5.attn=b.pt,") == (
        ("double.5.attn", "a.pt"),
        ("double.5.attn", "b.pt"),
    )
    assert scored_saes(Config(), "double.5.ff") == (("double.5.ff", str(shipped_sae(5))),)
    assert [site for site, _ in scored_saes(Config(active_layer=15), "")] == ["double.5.ff", "double.15.ff"]
    shipped = ["double.5.attn", "double.5.ff", "double.15.ff"]
    assert [site for site, _ in scored_saes(Config(), "")] == shipped


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--score", f"double.5.context={shipped_sae(5)}"], "carries text tokens"),
        (["--score", "double.99.ff=nowhere.pt"], "checkpoint not found: nowhere.pt"),
        (["--score", f"nonsense={shipped_sae(5)}"], "unknown site"),
        (["--score", f"double.99.ff={shipped_sae(5)}"], "the model has no site double.99.ff"),
    ],
)
def test_users_mistakes_are_two_lines(arguments, complaint, tmp_path):
    result = CliRunner().invoke(build_app(), ["truth", "--truth-dir", str(tmp_path / "t"), *arguments])
    assert result.exit_code != 0
    assert complaint in result.output
    assert not (tmp_path / "t").exists()


def test_a_model_with_no_truth_names_site_map(tmp_path):
    arguments = ["truth", "--model-id", "black-forest-labs/FLUX.1-dev", "--truth-dir", str(tmp_path / "t")]
    result = CliRunner().invoke(build_app(), arguments)
    assert result.exit_code != 0
    assert "nothing is known to be true of black-forest-labs/FLUX.1-dev's pictures" in result.output
    assert "fluxscope site-map" in result.output
    assert not (tmp_path / "t").exists()
