"""From outcomes of single pictures to scores, a ranked list and a sentence."""

import numpy as np
import pytest

from fluxscope.models.cells import cells_named
from fluxscope.models.spec import ModelSpec
from fluxscope.run.site_map import ITSELF
from fluxscope.run.site_map_picture import each_block, picture_of, together
from fluxscope.run.site_map_records import Outcome, PromptPair, SiteMap
from fluxscope.run.site_map_scores import cell_scores, donors_score, in_words, places
from fluxscope.shapes.pairs import Wish

SPEC = ModelSpec(128, 19, 2, 96, 96, 32, True, 1)
SIGMAS = [1 - i / 20 for i in range(20)]
WISHES = [Wish("color", "red"), Wish("shape", "star"), Wish("color", "blue"), None]
CELLS = cells_named("ff:15,ff:3,attn:5,image:18,text:3,single:1,attn:all,attn:all@1-0.725", SPEC, SIGMAS)
BECAME = {
    "ff:15": (0, 0, 0),
    "ff:3": (0, 0, 0),
    "attn:5": (1, 0, 0),
    "image:18": (1, 1, 0),
    "text:3": (1, 1, 1),
    "single:1": (1, 1, 1),
    "attn:all": (1, 1, 1),
    "attn:all@1-0.725": (0, 1, 0),
    ITSELF: (1, 1, 1),
}


def outcome(cell, pair, control="donor", closed=0.6):
    became = bool(BECAME[cell][pair]) if pair < 3 else None  # of the last pair the oracle knows nothing
    clean = became if pair != 2 else (None if became is None else False)
    return Outcome(
        cell=cell, control=control, became=became, clean=clean, closed=closed, inside=0.5, outside=0.1
    )


def outcomes():
    names = [cell.name for cell in CELLS]
    found = {pair: [outcome(name, pair) for name in (ITSELF, *names)] for pair in range(4)}
    found[0].append(outcome("attn:all", 1, "noise", closed=-900.0))
    found[1].append(outcome("attn:all", 1, "noise", closed=0.5))
    return found


@pytest.fixture
def scores():
    return cell_scores(CELLS, SIGMAS, outcomes(), WISHES)


def by_name(scores, name, control="donor"):
    (found,) = [each for each in scores if (each.name, each.control) == (name, control)]
    return found


def test_a_score_counts_the_pairs_that_the_oracle_can_judge(scores):
    image = by_name(scores, "image:18")
    assert (image.score.hits, image.score.n, image.score.share) == (2, 3, 2 / 3)
    assert (image.clean.hits, image.clean.n) == (2, 3)
    assert {name: (each.hits, each.n) for name, each in image.by_attribute.items()} == {
        "color": (1, 2),
        "shape": (1, 1),
    }
    assert image.nearer.n == 4 and image.closed == pytest.approx(0.6)
    assert image.sites == ["double.18"] and image.steps == [0, 19]
    assert by_name(scores, "attn:all@1-0.725").steps == [0, 5]
    assert by_name(scores, "text:3").clean.hits == 2


def test_one_broken_picture_does_not_decide_what_is_closed(scores):
    assert by_name(scores, "attn:all", "noise").closed == pytest.approx((-1 + 0.5) / 2)


def test_without_an_oracle_the_score_is_how_often_the_picture_came_nearer():
    found = {pair: [outcome("ff:15", 3, closed=closed)] for pair, closed in enumerate((0.49, 0.5, 1.0, None))}
    (score,) = cell_scores(CELLS[:1], SIGMAS, found, [None] * 4)
    assert (score.score.hits, score.score.n) == (2, 3) and score.clean is None and score.by_attribute is None


def test_places_are_single_blocks_best_first_without_the_end_of_the_model(scores):
    ranked = places(scores, SPEC)
    assert [each.name for each in ranked] == ["text:3", "image:18", "attn:5", "ff:15", "ff:3"]
    only_double = ModelSpec(128, 19, 0, 96, 96, 32, True, 1)
    assert "image:18" not in [each.name for each in places(scores, only_double)]


def test_the_sentence_names_the_best_of_both_streams_and_the_dead_kind(scores):
    words = in_words(places(scores, SPEC), scores)
    assert words == (
        "Steer at double.18 (image, 67% of 3) or double.3.context (text, 100% of 3); not at the feed-forward "
        "(image) of any one block (best: double.15.ff, 0% of 3)."
    )


def test_where_no_block_alone_decides_the_sentence_says_so_and_names_what_does():
    cells = cells_named("ff:15,attn:all", SPEC, SIGMAS)
    scores = cell_scores(cells, SIGMAS, outcomes(), WISHES)
    words = in_words(places(scores, SPEC), scores)
    assert words.startswith(
        "No single block is a place to steer; together blocks do it: attn:all (100% of 3)"
    )
    assert "nothing can be said" in in_words([], scores)


def test_the_picture_s_squares_stand_in_the_rows_and_columns_of_their_cells(scores):
    alone, several = each_block(scores), together(scores)
    assert list(alone.columns) == ["3", "5", "15", "18", "s1"]
    row = list(alone.rows).index("image stream")
    np.testing.assert_allclose(alone.shares[row, 3:, 0], [2 / 3, 1.0])
    assert np.isnan(alone.shares[row, :3]).all()
    assert list(several.columns) == ["all", "all\n1-0.725", "all\nnoise"]
    np.testing.assert_allclose(several.shares[0, :, 0], [1.0, 1 / 3, 1.0])


def test_the_picture_is_darker_where_more_comes_about(scores):
    pairs = [PromptPair(source=f"a {i}", target=f"b {i}") for i in range(4)]
    ranked = places(scores, SPEC)
    found = SiteMap(
        model_id="flux-shapes",
        measure="oracle",
        words="",
        distance="clip",
        made_with={},
        sigmas=[1.0],
        pairs=pairs,
        donors=donors_score(SIGMAS, outcomes(), WISHES),
        ranked=[],
        cells=scores,
    )
    picture = np.asarray(picture_of(found, ranked)).astype(int)
    assert picture.shape[0] > 500 and picture.shape[1] > 900
    blue = (picture[..., 2] - picture[..., 0]) > 100
    for each in scores:
        assert each.score is not None
        each.score.__dict__["share"] = 0.0
    paler = np.asarray(picture_of(found, ranked)).astype(int)
    assert blue.sum() > 3 * ((paler[..., 2] - paler[..., 0]) > 100).sum()
