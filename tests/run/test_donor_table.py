"""What the steps that steer and select say of a site's donor score."""

import pytest

from fluxscope.errors import RecordError
from fluxscope.files import read_json, write_json
from fluxscope.progress import Reporter
from fluxscope.run.context import Context
from fluxscope.run.donor_table import donor_score, donor_table, in_words, table_of, tell_donor_score, verdict
from fluxscope.run.rundir import RunDir
from fluxscope.run.site_map_records import CellScore, DonorTable, Share, SiteMap
from fluxscope.settings.config import make_config

SHARES = {
    "ff:15": (0, 40),
    "attn:5": (12, 40),
    "text:3": (39, 40),
    "image:18": (30, 40),
    "image:11": (17, 40),
}
SITES = {
    "ff:15": "double.15.ff",
    "attn:5": "double.5.attn",
    "text:3": "double.3.context",
    "image:18": "double.18",
    "image:11": "double.11",
}
RANKED = ["text:3", "image:18", "image:11", "attn:5", "ff:15"]


def share(hits, n):
    return Share(hits=hits, n=n, share=hits / n, low=0.0, high=min(1.0, hits / n + 0.1))


def score(name, control="donor", hits=None):
    hits = SHARES[name] if hits is None else hits
    return CellScore(
        name=name,
        kind=name.partition(":")[0],
        blocks=[int(name.partition(":")[2])] * 2,
        window=[1.0, 0.0],
        steps=[0, 19],
        sites=[SITES[name]],
        control=control,
        score=share(*hits),
    )


def site_map(model_id="flux-shapes"):
    cells = [score(name) for name in SHARES] + [score("ff:15", "noise", (20, 40))]
    return SiteMap(
        model_id=model_id,
        measure="oracle",
        words="Steer there.",
        distance="clip",
        made_with={},
        sigmas=[1.0],
        pairs=[],
        donors=score("image:18"),
        ranked=RANKED,
        cells=cells,
    )


def context_of(folder, **settings):
    config = make_config(out_dir=str(folder), **settings)
    return Context(config, RunDir.of(config), Reporter())


def test_the_folder_s_own_map_wins_and_a_dead_site_is_told_with_its_number(tmp_path, capsys):
    context = context_of(tmp_path)
    site_map().write(context.files.site_map)
    assert tell_donor_score(context, "double.15.ff") == share(0, 40)
    told = capsys.readouterr().out
    assert "the donor score of double.15.ff is 0% (0 of 40, at most 10%)" in told
    assert "More is decided at double.18 (75%) and double.3.context (98%)." in told


def test_a_site_where_something_is_decided_or_that_was_not_measured_is_passed_over(tmp_path, capsys):
    context = context_of(tmp_path)
    site_map().write(context.files.site_map)
    assert tell_donor_score(context, "double.5.attn") == share(12, 40)
    assert tell_donor_score(context, "double.6.attn") is None
    assert capsys.readouterr().out == ""


def test_every_site_is_told_once_and_the_first_one_s_score_is_given(tmp_path, capsys):
    context = context_of(tmp_path)
    site_map().write(context.files.site_map)
    assert tell_donor_score(context, "double.18", "double.15.ff", "double.15.ff") == share(30, 40)
    assert capsys.readouterr().out.count("warning") == 1


def test_the_map_of_another_model_counts_for_nothing(tmp_path):
    context = context_of(tmp_path, model_id="somebody/else", clip_model_id="clip-shapes")
    site_map().write(context.files.site_map)
    assert donor_table(context.config, context.files) is None
    assert donor_score(context, "double.15.ff").share is None


def test_a_damaged_map_is_refused_by_name(tmp_path):
    context = context_of(tmp_path)
    site_map().write(context.files.site_map)
    found = read_json(context.files.site_map)
    found["cells"][0]["score"]["hits"] = "none"
    write_json(context.files.site_map, found)
    with pytest.raises(RecordError, match=r"site_map.json.*cells\[0\].score.hits is 'none'"):
        tell_donor_score(context, "double.15.ff")


def test_the_table_that_is_kept_of_a_map_holds_single_sites_best_first(tmp_path):
    table = table_of(site_map())
    assert list(table.sites) == [SITES[name] for name in RANKED]
    table.write(tmp_path / "table.json")
    assert DonorTable.read(tmp_path / "table.json") == table


def test_what_ships_for_flux_shapes_says_that_block_15_s_feed_forward_decides_nothing(tmp_path, capsys):
    context = context_of(tmp_path)
    table = donor_table(context.config, context.files)
    assert set(table.sites) > {"double.15.ff", "double.5.attn", "double.18", "double.3.context"}
    found = tell_donor_score(context, "double.15.ff")
    assert found.share < 0.1 and found.n >= 12
    assert "no edit of natural size can" in capsys.readouterr().out
    assert table.sites["double.3.context"].share > 0.7


def test_titles_say_where_features_cannot_act():
    assert [verdict(each) for each in (None, share(4, 40), share(3, 40))] == ["", "", " (cannot act here)"]
    assert [in_words(each) for each in (None, share(30, 40))] == ["", " · donor score 75%"]
