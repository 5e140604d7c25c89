"""Recipes: written, read and replayed as they were; what cannot be replayed is told in one clear error."""

import dataclasses
import json

import pytest
import torch

from fluxscope.errors import ConfigError, RecordError
from fluxscope.models.methods.push import Push
from fluxscope.models.spec import PictureSpec
from fluxscope.run.recipe_records import FeatureMove, Recipe, Region, SiteMoves
from fluxscope.run.recipes import method_of, read_recipe, region_of, region_record
from fluxscope.sae.formats import load
from fluxscope.shapes.shipped import SHIPPED_SAES

SPEC = PictureSpec(height=128, width=128, steps=4, guidance=3.5)
SITE = "double.5.attn"
RED, BLUE = "a large red circle on a white background", "a large blue circle on a white background"
HALF = ["####....", *["........"] * 7]


@pytest.fixture(scope="module")
def saes():
    sae, info = load(SHIPPED_SAES[SITE])
    return lambda site: (sae, info.sha256())


@pytest.fixture(scope="module")
def push(saes):
    moves = [FeatureMove(feature=7, amount=1.5, natural=12.0), FeatureMove(feature=9, amount=0, kind="scale")]
    return Recipe(
        fluxscope_recipe=1,
        name="red to blue",
        method="push",
        model="flux-shapes",
        sites=[SiteMoves(site=SITE, sae_sha256=saes(SITE)[1], features=moves, window=[0.8, 0.2])],
        window=[1, 0],
        region=Region(grid=[8, 8], rows=HALF),
        keep_norm=True,
    )


def replayed(recipe, saes, model, model_id="flux-shapes", picture=SPEC):
    return method_of(recipe, model_id, model.spec, picture, saes)


def test_a_recipe_is_read_back_as_it_was_written(push, tmp_path):
    push.write(tmp_path / "a.recipe.json")
    assert read_recipe(tmp_path / "a.recipe.json") == push
    written = json.loads((tmp_path / "a.recipe.json").read_text())
    assert written["sites"][0]["features"][0] == {"feature": 7, "amount": 1.5, "natural": 12.0}
    assert "target" not in written


def test_a_push_is_replayed_with_every_number_of_it(push, saes, model):
    method = replayed(push, saes, model)
    (edit,) = method.edits
    assert edit.site.name == SITE and (edit.window.high, edit.window.low) == (0.8, 0.2)
    assert edit.pushes == (Push(7, 1.5, 12.0), Push(9, 0.0, 1.0, "scale"))
    assert method.keep_norm and not method.only_active
    assert method.region.nonzero().flatten().tolist() == [0, 1, 2, 3]


def test_a_transport_carries_features_or_all_that_passes(push, saes, model):
    whole = SiteMoves(site="double.7.attn")
    features = dataclasses.replace(push.sites[0], features=[FeatureMove(feature=3)])
    every = dataclasses.replace(push.sites[0], features=None)
    recipe = dataclasses.replace(
        push, method="transport", target=BLUE, sites=[whole, features, every], weight=0.5
    )
    method = replayed(recipe, saes, model)
    assert [(each.sae is None, each.features) for each in method.carried] == [
        (True, None),
        (False, (3,)),
        (False, None),
    ]
    assert [each.window.high for each in method.carried] == [1.0, 0.8, 0.8]
    assert method.donors == (BLUE,) and method.share == 0.5 and method.region.sum() == 4


def test_a_detector_reads_features_or_takes_a_region(push, saes, model):
    recipe = dataclasses.replace(push, method="detector", target=BLUE, sites=None, weight=2, window=[0.8, 0])
    method = replayed(recipe, saes, model)
    assert method.where.sum() == 4 and method.weight == 2 and method.window.high == 0.8
    seen = replayed(dataclasses.replace(recipe, region=None, sites=push.sites, level=0.4), saes, model).where
    assert (seen.features, seen.naturals, seen.level) == ((7, 9), (12.0, 1.0), 0.4)


def test_a_folder_of_the_model_s_name_is_the_model(push, saes, model):
    recipe = dataclasses.replace(push, model="somebody/FLUX.1-dev")
    assert replayed(recipe, saes, model, "/models/flux.1-DEV/")
    with pytest.raises(ConfigError, match=r"is for somebody/FLUX\.1-dev, not for flux-shapes"):
        replayed(recipe, saes, model)


def with_site(recipe, **changes):
    return dataclasses.replace(recipe, sites=[dataclasses.replace(recipe.sites[0], **changes)])


def moving(recipe, **changes):
    move = dataclasses.replace(recipe.sites[0].features[0], **changes)
    return with_site(recipe, features=[move])


REFUSED = [
    (lambda r: with_site(r, site="double.99.attn"), "the model has no site double.99.attn"),
    (lambda r: with_site(r, site="nowhere"), "unknown site: nowhere"),
    (lambda r: with_site(r, sae_sha256="0" * 64), "is for another SAE of double.5.attn"),
    (lambda r: with_site(r, sae_sha256=None), "is for another SAE of double.5.attn"),
    (lambda r: with_site(r, window=[0.2, 0.8]), r"has the window \[0.2, 0.8\]"),
    (lambda r: with_site(r, window=[0.8]), r"has the window \[0.8\]"),
    (
        lambda r: dataclasses.replace(r, window=[2, 1], sites=[with_site(r, window=None).sites[0]]),
        "the window",
    ),
    (lambda r: with_site(r, features=[]), "changes nothing"),
    (lambda r: dataclasses.replace(r, sites=[]), "changes nothing"),
    (lambda r: moving(r, feature=99999), "there is no feature 99999"),
    (lambda r: moving(r, amount=0), "moves feature 7 of double.5.attn by nothing"),
    (lambda r: moving(r, amount=None), "moves feature 7 of double.5.attn by nothing"),
    (lambda r: moving(r, natural=0), "the natural size 0"),
    (lambda r: moving(r, amount=1e300, natural=1e300), "too large"),
    (lambda r: with_site(r, features=r.sites[0].features[:1] * 2), "names feature 7 of double.5.attn twice"),
    (lambda r: dataclasses.replace(r, region=Region(grid=[4, 4], rows=["#..."] * 4)), "is of 4 x 4 tokens"),
    (
        lambda r: dataclasses.replace(r, region=Region(grid=[8, 8], rows=["#..."] * 4)),
        "no 8 texts of 8 letters",
    ),
    (lambda r: dataclasses.replace(r, region=Region(grid=[8, 8], rows=["........"] * 8)), "holds no token"),
    (lambda r: dataclasses.replace(r, method="transport"), "has no target prompt"),
    (lambda r: dataclasses.replace(r, method="transport", target=BLUE, weight=0), "changes nothing"),
    (
        lambda r: dataclasses.replace(with_site(r, sae_sha256=None), method="transport", target=BLUE),
        "but not of which SAE",
    ),
    (lambda r: dataclasses.replace(r, method="transport", source=BLUE, target=BLUE), "equal to the source"),
    (lambda r: dataclasses.replace(r, method="detector", target=BLUE), "says in two ways where"),
    (
        lambda r: dataclasses.replace(r, method="detector", target=BLUE, sites=None, region=None),
        "says not where",
    ),
    (lambda r: with_site(r, site="double.5.attn_context"), "where text tokens pass"),
    (
        lambda r: dataclasses.replace(
            with_site(r, site="double.5.attn_context"), method="transport", target=BLUE
        ),
        "where text tokens pass",
    ),
]


@pytest.mark.parametrize(("change", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_what_cannot_be_replayed_is_one_clear_error(push, saes, model, change, words):
    with pytest.raises(ConfigError, match=words) as caught:
        replayed(change(push), saes, model)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("method", "magic"),
        ("window", "all"),
        ("sites", {}),
        ("fluxscope_recipe", -1),
        ("region", [1]),
        ("name", 3),
    ],
)
def test_a_file_of_another_form_is_refused_with_the_key(push, tmp_path, key, value):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(push.to_json() | {key: value}))
    with pytest.raises(RecordError, match=key):
        read_recipe(path)


def test_a_later_version_is_refused(push, tmp_path):
    dataclasses.replace(push, fluxscope_recipe=2).write(tmp_path / "a.json")
    with pytest.raises(ConfigError, match="a recipe of version 2"):
        read_recipe(tmp_path / "a.json")


def test_a_region_is_the_same_after_it_was_written():
    tokens = torch.rand(64, generator=torch.Generator().manual_seed(1)) > 0.5
    record = region_record(tokens, (8, 8))
    assert torch.equal(region_of(record, SPEC), tokens)
    wide = PictureSpec(32, 64, 4, 3.5)  # 2 rows of 4 tokens
    assert region_record(torch.tensor([1, 0, 0, 0, 0, 0, 1, 1]).bool(), wide.grid).rows == ["#...", "..##"]
    assert region_record(None, (8, 8)) is None
