"""Step 6 shows what the overlays were made with, and any number that the selection measured."""

import dataclasses
import shutil

import numpy as np
import pytest
from jaxtyping import Float32

from fluxscope.draw import sheet
from fluxscope.errors import FluxscopeError
from fluxscope.files import load_npy, read_json, write_json
from fluxscope.measures.selection import FeatureScores
from fluxscope.run.records import Selection
from fluxscope.run.rundir import RunDir
from fluxscope.steps import contact_sheet, select
from tests.conftest import run_steps


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run: its settings."""
    shutil.copytree(finished.out_dir, tmp_path / "run")
    return dataclasses.replace(finished, out_dir=str(tmp_path / "run"))


@pytest.fixture
def drawn(monkeypatch):
    """What step 6 gives the contact sheet: cards, title, subtitle and footer."""
    given = []

    def draw(*arguments, **keywords):
        given[:] = arguments
        return sheet.contact_sheet(*arguments, **keywords)

    monkeypatch.setattr(contact_sheet, "contact_sheet", draw)
    return given


@pytest.fixture
def drawn_beside(monkeypatch):
    """The same of the sheet that has the bare pictures too."""
    given = []

    def draw(*arguments, **keywords):
        given[:] = arguments
        return sheet.comparison_sheet(*arguments, **keywords)

    monkeypatch.setattr(contact_sheet, "comparison_sheet", draw)
    return given


@pytest.mark.parametrize("fault", ["text", "grid", "style", "percentile", "short"])
def test_token_maps_that_are_none_are_told_with_the_step_that_makes_them(copy, fault):
    files = RunDir.of(copy)
    summary = read_json(files.overlay_summary)
    tokens = files.root / summary["items"][0]["tokenmap_path"]
    match fault:
        case "text":
            np.save(tokens, np.array(["a"] * 64))
        case "short":
            np.save(tokens, np.zeros(63, np.float32))
        case "grid":
            summary["token_grid_size"] = [8]
        case "style":
            summary["overlay_style"] = "oily"
        case "percentile":
            summary["clip_percentile"] = 101
    write_json(files.overlay_summary, summary)
    before = files.contact_sheet.read_bytes()
    with pytest.raises(FluxscopeError, match="token map"):
        run_steps(copy, "6")
    assert files.contact_sheet.read_bytes() == before


def test_the_sheet_states_what_the_overlays_were_made_with_and_not_todays_settings(copy, drawn, drawn_beside):
    made = dataclasses.replace(copy, clip_percentile=90.0, alpha_scale=0.5)
    run_steps(made, "5")
    today = dataclasses.replace(copy, clip_percentile=75, num_inference_steps=18, top_m_per_feature=7)
    run_steps(today, "6")
    _, _, subtitle, footer = drawn
    assert subtitle.startswith("flux-shapes · double.15.ff · step 14 of 20 · ")
    assert "fully from percentile 90 of its token map;" in footer
    assert "over the top 20 pictures" in footer
    assert "full colour at percentile 90 of its token map, 50% opaque." in drawn_beside[3]
    assert "over the top 20 pictures" in drawn_beside[3]
    summary = read_json(RunDir.of(copy).overlay_summary)
    assert {name: summary[name] for name in ("clip_percentile", "alpha_scale", "site")} == {
        "clip_percentile": 90,
        "alpha_scale": 0.5,
        "site": "double.15.ff",
    }
    assert (summary["model_id"], summary["num_inference_steps"]) == ("flux-shapes", 20)


def test_the_number_of_steps_is_the_pictures_even_when_overlays_are_drawn_with_other_settings(copy, drawn):
    run_steps(dataclasses.replace(copy, num_inference_steps=17), "5,6", force=True)
    assert "step 14 of 20 ·" in drawn[2]


def test_overlays_of_other_programs_are_shown_without_what_they_do_not_say(copy, drawn, drawn_beside):
    path = RunDir.of(copy).overlay_summary
    ours = ("clip_percentile", "alpha_scale", "site", "model_id", "num_inference_steps", "overlay_style")
    write_json(path, {name: value for name, value in read_json(path).items() if name not in ours})
    run_steps(copy, "6")
    assert drawn[2].startswith("layer 15 · step 14 · ")
    assert drawn[3].startswith("In its own colours: where the feature is active, fully from percentile 99 ")
    assert drawn_beside[3].startswith("Blue: where the feature is active. Coherence: ")


@dataclasses.dataclass(frozen=True)
class MoreScores(FeatureScores):
    """What measures/selection.py would hold with one more number."""

    largest: Float32[np.ndarray, " f"]


def test_a_further_number_is_a_field_where_it_is_measured_and_a_line_where_it_is_shown(
    copy, drawn, monkeypatch
):
    def measured(ranked, *arguments):
        scores = score_features(ranked, *arguments)
        fields = {each.name: getattr(scores, each.name) for each in dataclasses.fields(scores)}
        return MoreScores(**fields, largest=ranked.score[:, 0])

    score_features = select.score_features
    monkeypatch.setattr(select, "score_features", measured)
    monkeypatch.setitem(sheet.SHOWN, "largest", ("largest activation", "{:.2f}"))
    files = RunDir.of(copy)
    run_steps(copy, "4", force=True)
    run_steps(copy, "6", force=True)
    s = load_npy(files.s_matrix)
    assert drawn[0]
    for card, record in zip(drawn[0], Selection.read(files.selected_features).features, strict=True):
        largest = float(s[:, card.feature_id].max())
        assert record.further == {"largest": largest}
        assert card.numbers()[-1] == ("largest activation", f"{largest:.2f}")
    with np.load(files.feature_scores) as scores:
        assert scores["largest"][card.feature_id] == np.float32(largest)


def test_keys_of_other_programs_are_passed_over_where_they_hold_no_number(copy, drawn, monkeypatch):
    monkeypatch.setitem(sheet.SHOWN, "theirs", ("theirs", "{:.2f}"))
    path = RunDir.of(copy).selected_features
    selection = read_json(path)
    shown = []
    for value in ("a word", [1], 10**400, None, 0.5, 7):
        selection["features"][0]["theirs"] = value
        write_json(path, selection)
        run_steps(copy, "6")
        shown.append(dict(drawn[0][0].numbers()).get("theirs"))
    assert shown == [None, None, None, None, "0.50", "7.00"]
