"""SAEs by site: which there are, which one the run is about, and what older names mean beside them."""

import dataclasses

import pytest

from fluxscope.errors import ConfigError
from fluxscope.run.rundir import RunDir
from fluxscope.settings.config import make_config
from fluxscope.settings.load import load_config
from fluxscope.shapes.shipped import OWN_SITE, SHIPPED_SAES, shipped_sae

TWO = {"double.7.attn": "a.pt", "single.1": "b.pt"}
FIVE, FIFTEEN, OWN = str(shipped_sae(5)), str(shipped_sae(15)), str(SHIPPED_SAES[OWN_SITE])


def test_where_only_the_block_is_said_its_feed_forward_is_meant_as_ever():
    config = make_config(active_layer=15)
    assert config.sae_paths == {"double.5.ff": FIVE, "double.15.ff": FIFTEEN}
    assert (config.site, config.active_layer, config.sae_ckpt_path) == ("double.15.ff", 15, FIFTEEN)
    assert config.collected_sites == ("double.15.ff", "double.5.ff")
    assert config.compared_sites == ("double.5.ff", "double.15.ff")
    assert make_config(active_layer=5).site == "double.5.ff"


def test_with_nothing_said_a_run_of_flux_shapes_is_about_its_own_site():
    config = make_config()
    assert config.sae_paths == {OWN_SITE: OWN, "double.5.ff": FIVE, "double.15.ff": FIFTEEN}
    assert (config.site, config.active_layer, config.sae_ckpt_path) == (OWN_SITE, 5, OWN)
    assert config.collected_sites == (OWN_SITE, "double.5.ff", "double.15.ff")
    assert config.compared_sites == ("double.5.ff", "double.15.ff")
    assert make_config(active_site=OWN_SITE).sae_paths == config.sae_paths
    assert make_config(saes={OWN_SITE: "bundled"}).sae_paths == {OWN_SITE: OWN}


@pytest.mark.parametrize(
    "said",
    [
        {"active_layer": 15},
        {"layer15_sae_path": "mine.pt"},
        {"layer5_sae_path": "mine.pt"},
        {"site_pattern": "double.{layer}"},
        {"model_id": "black-forest-labs/FLUX.1-dev"},
    ],
)
def test_the_own_site_is_only_for_those_who_say_nothing(said):
    config = make_config(**said)
    assert (config.active_layer, config.number_of(config.site)) == (15, 15)
    assert OWN_SITE not in config.sae_paths
    assert config.compare == ()


def test_saes_are_all_that_there_are_and_the_first_is_what_the_run_is_about():
    config = make_config(saes=TWO)
    assert config.sae_paths == TWO
    assert (config.site, config.active_layer, config.sae_ckpt_path) == ("double.7.attn", 7, "a.pt")
    assert config.collected_sites == config.compared_sites == ("double.7.attn", "single.1")
    assert make_config(saes=TWO, compare_layers=False).collected_sites == ("double.7.attn",)
    assert make_config(saes=TWO, compare="single.1,double.7.attn").compared_sites == (
        "single.1",
        "double.7.attn",
    )


def test_a_site_or_its_block_chooses_what_the_run_is_about():
    for choice in ({"active_site": "single.1"}, {"active_layer": 1}):
        config = make_config(saes=TWO, **choice)
        assert (config.site, config.active_layer) == ("single.1", 1)
        assert config.collected_sites == ("single.1", "double.7.attn")
    both = {"double.7.ff": "a.pt", "double.7.attn": "b.pt"}
    assert make_config(saes=both, active_layer=7).site == "double.7.ff"
    assert make_config(saes=both, active_site="double.7.attn").site == "double.7.attn"
    numbered = {OWN_SITE: "a.pt", "double.5.ff": "b.pt"}
    assert make_config(saes=numbered).site == OWN_SITE
    assert make_config(saes=numbered, active_layer=5).site == "double.5.ff"


@pytest.mark.parametrize(
    "given",
    ["double.7.attn=a.pt,single.1=b.pt", ["double.7.attn=a.pt", "single.1=b.pt"], tuple(TWO.items()), TWO],
)
def test_saes_are_given_as_a_table_or_as_flags(given):
    if isinstance(given, tuple):
        given = dict(given)
    assert make_config(saes=given).sae_paths == TWO


def test_a_path_may_have_commas_and_equals_signs():
    paths = {"double.7.attn": "a,b=c.pt", "single.1": "x=1,2.pt"}
    assert make_config(saes=",".join(f"{site}={path}" for site, path in paths.items())).sae_paths == paths


def test_the_models_own_saes_go_by_the_word_bundled():
    config = make_config(saes={"double.8.attn": "a.pt", "double.5.ff": "bundled"})
    assert config.sae_paths == {"double.8.attn": "a.pt", "double.5.ff": FIVE}
    with pytest.raises(ConfigError, match=r"'flux-shapes' ships no SAE for 'double\.7\.ff'") as caught:
        make_config(saes={"double.7.ff": "bundled"})
    assert "double.5.ff, double.15.ff" in caught.value.hint


def test_older_names_join_saes():
    config = make_config(saes={"double.7.attn": "a.pt"}, layer5_sae_path="five.pt")
    assert config.sae_paths == {"double.7.attn": "a.pt", "double.5.ff": "five.pt"}
    assert config.site == "double.7.attn"
    with pytest.raises(ConfigError, match=r"two SAEs are set for double\.5\.ff: 'a\.pt' and 'b\.pt'"):
        make_config(saes={"double.5.ff": "a.pt"}, layer5_sae_path="b.pt")


def test_a_changed_copy_is_about_what_it_says():
    config = make_config(saes=TWO)
    assert dataclasses.replace(config) == config
    assert dataclasses.replace(config, active_layer=1).site == "single.1"
    assert dataclasses.replace(config, active_site="single.1").active_layer == 1
    assert dataclasses.replace(make_config(active_layer=15), active_layer=5).site == "double.5.ff"
    assert dataclasses.replace(make_config(), active_site="double.5.ff").site == "double.5.ff"
    assert dataclasses.replace(make_config()) == make_config()


def test_a_flags_block_wins_over_a_files_site(tmp_path):
    toml = '[saes]\n"double.7.attn" = "a.pt"\n"single.1" = "b.pt"\n'
    (tmp_path / "s.toml").write_text('active_site = "single.1"\n' + toml)
    (tmp_path / "s.py").write_text(
        "from dataclasses import dataclass\n"
        "from fluxscope.settings.config import Config as Base\n"
        "@dataclass(frozen=True)\n"
        "class Config(Base):\n"
        f"    saes: dict[str, str] = {TWO}\n"
        "    active_site: str | None = 'single.1'\n"
    )
    for file in ("s.toml", "s.py"):
        assert load_config(tmp_path / file).site == "single.1"
        assert load_config(tmp_path / file).sae_paths == TWO
        assert load_config(tmp_path / file, active_layer=7).site == "double.7.attn"
        assert load_config(tmp_path / file, active_site="double.7.attn").active_layer == 7


@pytest.mark.parametrize(
    ("wrong", "message", "hint"),
    [
        ({"saes": {"double.7.attn": ""}}, "empty entry", ""),
        ({"saes": "double.7.attn"}, "cannot be 'double.7.attn'", "NAME=PATH"),
        ({"saes": "double.7.ff=a,double.7.ff=b"}, "names 'double.7.ff' twice", ""),
        ({"saes": {"double": {"5": {"ff": "a.pt"}}}}, "saes cannot be", "in quotes"),
        ({"saes": {5: "a.pt"}}, "saes cannot be", "in quotes"),
        ({"saes": {"../../x": "a.pt"}}, "unknown site", "double.15.ff"),
        ({"saes": {"double.7.attn/../..": "a.pt"}}, "unknown site", ""),
        ({"saes": {"double.٣.ff": "a.pt"}}, "unknown site", ""),
        ({"saes": {"double.7.attn": "a\0b"}}, "cannot be", "control characters"),
        (
            {"saes": TWO, "active_site": "double.5.ff"},
            "double.5.ff: it has no SAE",
            "double.7.attn, single.1",
        ),
        ({"saes": TWO, "active_layer": 5}, "active_layer cannot be 5", "1, 7"),
        ({"saes": TWO, "active_layer": 7, "active_site": "single.1"}, "single.1 is not in block 7", ""),
        ({"saes": TWO, "compare": "single.1"}, "compare cannot be single.1", "two sites"),
        ({"saes": TWO, "compare": "single.1,single.1"}, "compare cannot be", "two sites"),
        ({"saes": TWO, "compare": "single.1,double.5.ff"}, "compare names double.5.ff", "double.7.attn"),
        ({"active_site": "nowhere"}, "unknown site: 'nowhere'", ""),
    ],
)
def test_what_cannot_be_is_refused_in_words(wrong, message, hint):
    with pytest.raises(ConfigError) as caught:
        make_config(**wrong)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_every_site_has_a_folder_and_a_key_of_its_own(tmp_path):
    config = make_config(saes={"double.7.attn": "a.pt", "double.5.ff": "b.pt"}, out_dir=str(tmp_path))
    first, second, third = (RunDir.of(config, site) for site in ("double.7.attn", "double.5.ff", "single.1"))
    assert (first.home, first.name, first.key, first.layer) == (tmp_path, "double.7.attn", "double.7.attn", 7)
    assert (second.home, second.name, second.key) == (tmp_path / "layer_05", "layer 5", "layer5")
    assert (third.home, third.layer) == (tmp_path / "single.1", 1)


def test_a_pattern_numbers_the_sites_of_older_scripts():
    config = make_config(site_pattern="double.{layer}")
    assert config.sae_paths == {"double.5": FIVE, "double.15": FIFTEEN}
    assert RunDir.of(config, "double.5").key == "layer5"
    assert RunDir.of(config, "double.5.ff").key == "double.5.ff"
    one = make_config(site_pattern="double.18", compare_layers=False)
    assert one.sae_paths == {"double.18": FIFTEEN}
