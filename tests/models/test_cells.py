import pytest

from fluxscope.errors import ConfigError
from fluxscope.models.cells import (
    KINDS,
    PARTS,
    WHOLE,
    Window,
    cells_named,
    cells_of,
    kinds_named,
    spans,
    usual_cells,
    windows_named,
)
from fluxscope.models.spec import ModelSpec

SHAPES = ModelSpec(128, 19, 2, 96, 96, 32, True, 1)
DEV = ModelSpec(3072, 19, 38, 4096, 768, 64, True, 1)
SIGMAS = [1 - i / 20 for i in range(20)]


def test_the_usual_cells_of_flux_shapes():
    cells = usual_cells(SHAPES)
    names = [cell.name for cell in cells]
    assert len(names) == len(set(names)) == 133
    assert {f"ff:{block}" for block in range(19)} < set(names)
    assert {"attn:0-3", "attn:16-18", "attn:all", "attn:all@1-0.725", "image:all", "single:1"} < set(names)
    assert not {"image:0-3", "single_text:1", "ff:19", "single:all"} & set(names)


def test_a_cell_names_every_site_that_it_copies():
    by_name = {cell.name: cell for cell in usual_cells(DEV)}
    assert [site.name for site in by_name["text_kv:4-7"].sites] == [
        f"double.{block}.{half}_context" for block in range(4, 8) for half in "kv"
    ]
    assert [site.name for site in by_name["single:37"].sites] == ["single.37"]
    assert len(by_name["attn:all"].sites) == 19
    assert by_name["ff:3"].alone and not by_name["ff:0-3"].alone and not by_name["ff:all@1-0.725"].alone


def test_windows_are_the_steps_between_two_noise_levels():
    assert [list(part.steps(SIGMAS)) for part in PARTS] == [
        list(range(6)),
        list(range(6, 13)),
        list(range(13, 20)),
    ]
    assert list(WHOLE.steps(SIGMAS)) == list(range(20))
    shifted = [3 * s / (1 + 2 * s) for s in SIGMAS]  # FLUX.1's schedule stays longer at high noise
    assert [len(part.steps(shifted)) for part in PARTS] == [11, 6, 3]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("each", [(i, i) for i in range(6)]),
        ("groups", [(0, 3), (4, 5)]),
        ("all, 2-4,5, 9", [(0, 5), (2, 4), (5, 5)]),
    ],
)
def test_spans_of_blocks(text, expected):
    assert spans(text, 6) == expected


@pytest.mark.parametrize("text", ["", "one", "4-2", "-1", "1.5", "1-2-3", "each;all"])
def test_blocks_that_are_none_are_refused(text):
    with pytest.raises(ConfigError):
        spans(text, 6)


def test_kinds_and_windows_that_there_are_not_are_refused():
    with pytest.raises(ConfigError, match="no kind of site 'mlp'") as caught:
        kinds_named("ff,mlp")
    assert "text_kv" in caught.value.hint
    for text in ("0.2-0.4", "0.5", "2-1", "x"):
        with pytest.raises(ConfigError, match="no window of noise levels"):
            windows_named(text, SIGMAS)
    with pytest.raises(ConfigError, match=r"no step lies between the noise levels 0.04 and 0.01"):
        windows_named("0.04-0.01", SIGMAS)
    assert windows_named("whole,parts,0.5-0.2", SIGMAS) == [WHOLE, *PARTS, Window(0.5, 0.2)]


def test_blocks_that_the_model_lacks_are_refused_and_those_of_some_kinds_left_out():
    ff, single = kinds_named("ff,single")
    assert [cell.name for cell in cells_of(SHAPES, [ff, single], "1,18", [WHOLE])] == [
        "ff:1",
        "ff:18",
        "single:1",
    ]
    with pytest.raises(ConfigError, match="no blocks 19 of ff") as caught:
        cells_of(SHAPES, [ff], "19", [WHOLE])
    assert "19 double blocks" in caught.value.hint


def test_cells_by_name():
    cells = cells_named("ff:15, attn:0-3@0.7-0.4,text:groups", SHAPES, SIGMAS)
    assert [cell.name for cell in cells][:3] == ["ff:15", "attn:0-3@0.7-0.4", "text:0-3"] and len(cells) == 7
    assert cells_named("attn:all@parts", SHAPES, SIGMAS) == cells_of(
        SHAPES, kinds_named("attn"), "all", PARTS
    )
    for wrong in ("ff", "mlp:3", "ff:19", "ff:3@2-1", "ff:", ""):
        with pytest.raises(ConfigError):
            cells_named(wrong, SHAPES, SIGMAS)


def test_every_kind_names_sites_that_there_are():
    for kind in KINDS:
        assert cells_of(DEV, [kind], "0", [WHOLE])[0].sites
