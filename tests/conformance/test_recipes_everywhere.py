"""Recipes of every method on a tiny model of every pipeline class: what does nothing changes no bit."""

from dataclasses import replace

import pytest
import torch

from fluxscope.models.attribution import attribution, call_of, velocity
from fluxscope.models.editing import sample_edited
from fluxscope.models.edits import Change, Edit, Scope
from fluxscope.models.families import FAMILIES
from fluxscope.models.methods.learned import Fitting
from fluxscope.models.model import open_model
from fluxscope.models.sites import parse_site
from fluxscope.models.spec import PictureSpec
from fluxscope.run.recipe_making import Maker, Wish
from fluxscope.run.recipe_records import FeatureMove, Recipe, Region, SiteMoves
from fluxscope.run.recipes import method_of, read_recipe
from fluxscope.sae import TopKSparseAutoencoder
from tests.tiny_models import save_tiny

SPEC = PictureSpec(height=64, width=96, steps=3, guidance=4.0)
SOURCE, TARGET = "a red circle", "a large blue square on black"
TEXT_TOKENS = 12
SITES = ("double.1.attn", "double.0.ff", "single.0", "double.0.attn_context")
PIPELINES = [pipeline for family in FAMILIES for pipeline in family.pipelines]
ROWS = ["##....", "##....", "......", "......"]


@pytest.fixture(scope="module", params=PIPELINES)
def tiny(request, tmp_path_factory):
    folder = save_tiny(request.param, tmp_path_factory.mktemp("tiny") / request.param)
    return open_model(str(folder), "cpu", "float32")


@pytest.fixture(scope="module")
def prompts(tiny):
    return tiny.encode([SOURCE, TARGET], TEXT_TOKENS)


def recipe(tiny, **changes):
    moves = [FeatureMove(feature=3, amount=1, kind="scale"), FeatureMove(feature=5, amount=1, kind="scale")]
    about = {
        "fluxscope_recipe": 1,
        "name": "nothing",
        "method": "push",
        "model": tiny.model_id,
        "sites": [SiteMoves(site=site, sae_sha256=site, features=moves) for site in SITES],
        "window": [1, 0],
    }
    return Recipe(**(about | changes))


def latents_of(tiny, prompts, *recipes, source=SOURCE):
    torch.manual_seed(0)
    sae = TopKSparseAutoencoder(tiny.spec.width, 64, 4).eval().requires_grad_(False)
    methods = [method_of(each, tiny.model_id, tiny.spec, SPEC, lambda site: (sae, site)) for each in recipes]
    return sample_edited(tiny, prompts, SPEC, source, 1, [[each] for each in methods])


def in_region(tiny, **changes):
    region = Region(grid=[4, 6], rows=ROWS)
    return recipe(tiny, method="detector", target=TARGET, sites=None, region=region, **changes)


def test_recipes_that_do_nothing_change_no_bit(tiny, prompts, one_thread):
    """Scaled by 1; carried over from a donor of the same prompt; mixed with that prompt's velocity."""
    carried = [SiteMoves(site=site, sae_sha256=site, features=[FeatureMove(feature=3)]) for site in SITES]
    nothing = [
        recipe(tiny),
        recipe(tiny, keep_norm=True),
        recipe(tiny, method="transport", target=TARGET, sites=carried),
        in_region(tiny),
    ]
    latents = latents_of(tiny, prompts, *nothing, source=TARGET)
    for row in latents[1:]:
        assert torch.equal(row, latents[0])
    plain = tiny.sample([prompts[TARGET]], [1], spec=SPEC)
    torch.testing.assert_close(latents[:1], plain, rtol=1e-4, atol=1e-4)


def test_recipes_that_do_something_change_the_picture(tiny, prompts):
    pushes = [FeatureMove(feature=3, amount=1.5, natural=8)]
    pushed = [SiteMoves(site=site, sae_sha256=site, features=pushes) for site in SITES]
    carried = [SiteMoves(site=site) for site in SITES]
    recipes = [
        recipe(tiny, sites=pushed),
        recipe(tiny, method="transport", target=TARGET, sites=carried),
        in_region(tiny),
    ]
    latents = latents_of(tiny, prompts, *recipes)
    for row in latents[1:]:
        assert not torch.allclose(row, latents[0], atol=1e-4)


def test_learned_amounts_are_replayed_bit_by_bit(tiny, prompts, tmp_path, one_thread):
    """With guidance the pass with the prompt is fitted. The same features scaled by 1 change nothing."""
    torch.manual_seed(0)
    sae = TopKSparseAutoencoder(tiny.spec.width, 64, 4).eval().requires_grad_(False)
    maker = Maker(tiny, prompts, SPEC, lambda site: (sae, site), fitting=Fitting((4, 4), batch=2))
    made = maker.learned(Wish(SOURCE, TARGET, 1), ("double.1.attn", "double.0.ff"), 3)
    assert 1 <= len({(moves.site, move.feature) for moves in made.sites for move in moves.features}) <= 3
    assert made.made_with["largest_amount"] > 0
    made.write(tmp_path / "a.recipe.json")
    again = read_recipe(tmp_path / "a.recipe.json")
    resting = [
        replace(moves, features=[replace(move, amount=1, kind="scale") for move in moves.features])
        for moves in made.sites
    ]
    latents = latents_of(tiny, prompts, made, again, replace(made, sites=resting))
    assert torch.equal(latents[1], latents[2]) and torch.equal(latents[0], latents[3])
    assert not torch.allclose(latents[0], latents[1], atol=1e-4)


def test_a_mask_of_the_whole_picture_is_the_other_prompt_s_picture_guided_or_not(tiny, prompts):
    everywhere = Region(grid=[4, 6], rows=["######"] * 4)
    whole = recipe(tiny, method="detector", target=TARGET, sites=None, region=everywhere)
    latents = latents_of(tiny, prompts, whole)
    theirs = tiny.sample([prompts[TARGET]], [1], spec=SPEC)
    torch.testing.assert_close(latents[1:], theirs, rtol=1e-3, atol=1e-3)


def test_attribution_reaches_every_kind_of_site(tiny, prompts):
    """A tenth of a feature taken out takes a tenth of its share away; all of it would tell no more than that,
    these random models being far from linear. With guidance the pass with the prompt counts."""
    torch.manual_seed(0)
    sae = TopKSparseAutoencoder(tiny.spec.width, 64, 4).eval().requires_grad_(False)
    saes = {parse_site(name): sae for name in SITES}
    call = call_of(tiny, [prompts[SOURCE]], [1], 1, spec=SPEC)
    wished = velocity(tiny, call.told(call_of(tiny, [prompts[TARGET]], [1], 1, spec=SPEC))) - velocity(
        tiny, call
    )
    found = attribution(tiny, call, saes, lambda v: (v * wished).sum())
    whole = float((velocity(tiny, call) * wished).sum())
    for site in saes:
        shares = found[site.name][0]
        feature = int(shares.abs().argmax())
        out = Edit(sae, [[Change("scale", 0.9, feature)]], Scope(site, range(1, 2)))
        taken = whole - float((velocity(tiny, call, out) * wished).sum())
        assert taken == pytest.approx(0.1 * float(shares[feature]), rel=0.1, abs=2e-6 * abs(whole)), site.name
