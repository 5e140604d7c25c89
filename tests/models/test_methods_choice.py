"""Which features are carried over, and what the control does instead: plain sums on flux-shapes."""

import pytest
import torch

from fluxscope.models.capture import Capture
from fluxscope.models.cells import Window
from fluxscope.models.methods.choice import Differences, differences, natural_sizes
from fluxscope.models.methods.control import control_of, drawn
from fluxscope.models.methods.detector import Blended
from fluxscope.models.methods.push import Push, Pushed, SiteEdit
from fluxscope.models.methods.transport import Carried, Transported
from fluxscope.models.sites import parse_site
from fluxscope.models.spec import PictureSpec
from fluxscope.sae.formats import load
from fluxscope.shapes.shipped import SHIPPED_SAES

SPEC = PictureSpec(height=128, width=128, steps=4, guidance=3.5)
RED, BLUE = "a large red circle on a white background", "a large blue circle on a white background"
ATTN, FF = parse_site("double.5.attn"), parse_site("double.15.ff")
LATE = Window(0.6, 0.0)


@pytest.fixture(scope="module")
def prompts(model):
    return model.encode([RED, BLUE])


@pytest.fixture(scope="module")
def saes():
    return {site.name: load(SHIPPED_SAES[site.name])[0] for site in (ATTN, FF)}


@pytest.fixture(scope="module")
def heard(model, prompts):
    """What passes both sites in all four steps, the red circle's row and the blue one's."""
    found = {}
    capture = Capture([ATTN, FF], range(4), lambda s, i, x: found.update({(s.name, i): x.clone()}))
    model.sample([prompts[RED], prompts[BLUE]], [3, 3], capture, spec=SPEC)
    return found


def test_features_are_ranked_by_how_far_they_would_be_moved(model, prompts, saes, heard):
    found = differences(model, prompts[RED], prompts[BLUE], 3, SPEC, saes, LATE)
    every = []
    for name, sae in saes.items():
        expected, live = torch.zeros(sae.hidden_dim), torch.zeros(sae.hidden_dim, dtype=torch.bool)
        for step in (2, 3):
            own, donor = sae.encode(heard[name, step])
            expected += (donor - own).abs().sum(0)
            live |= ((own > 0) | (donor > 0)).any(0)
        expected *= sae.decoder.weight.norm(dim=0)
        torch.testing.assert_close(found.scores[name], expected, rtol=1e-3, atol=1e-2)
        assert torch.equal(found.live[name], live)
        every += [(float(score), name, i) for i, score in enumerate(found.scores[name])]
    best = sorted(every, reverse=True)[:9]
    chosen = found.top(9)
    assert {(name, f) for name, own in chosen.items() for f in own} == {(name, f) for _, name, f in best}


def test_features_that_do_not_differ_are_not_chosen():
    scores = {"a": torch.tensor([0.0, 2.0, 0.0]), "b": torch.tensor([0.0, 0.0]), "c": torch.tensor([1.0])}
    assert Differences(scores, {}).top(5) == {"a": (1,), "c": (0,)}
    assert Differences(scores, {}).top(1) == {"a": (1,)}


def test_the_natural_size_is_the_mean_code_where_active(model, prompts, saes):
    sae, heard = saes[ATTN.name], {}
    capture = Capture([ATTN], range(4), lambda s, i, x: heard.update({(s.name, i): x.clone()}))
    model.sample([prompts[RED]], [3], capture, spec=SPEC)
    sizes = natural_sizes(model, prompts[RED], 3, SPEC, ATTN.name, sae, LATE)
    codes = torch.cat([sae.encode(heard[ATTN.name, step][0]) for step in (2, 3)])
    expected = codes.sum(0) / (codes > 0).sum(0).clamp_min(1)
    torch.testing.assert_close(sizes, expected, rtol=1e-3, atol=1e-3)
    assert (sizes == 0).any() and (sizes > 0).any()


def length(method, site):
    """How far a push moves a token at a site."""
    total = torch.zeros(128)
    for edit in method.edits:
        if edit.site is site:
            for push in edit.pushes:
                total += push.amount * push.natural * method.saes[site.name].decoder.weight[:, push.feature]
    return float(total.norm())


def test_a_push_s_control_goes_as_far_by_other_live_features(saes):
    edits = (
        SiteEdit(ATTN, (Push(1, 1.0, 10.0), Push(2, -0.5, 20.0))),
        SiteEdit(FF, (Push(3, 2.0, 4.0),), LATE),
    )
    live = {ATTN.name: [1, 2, 5, 6, 7], FF.name: [3, 9]}
    method = Pushed(saes, edits, keep_norm=True)
    control = control_of(method, live, seed=4)
    for own, other in zip(method.edits, control.edits, strict=True):
        assert (other.site, other.window) == (own.site, own.window)
        features = [push.feature for push in other.pushes]
        assert len(set(features)) == len(own.pushes)
        assert not set(features) & {push.feature for push in own.pushes}
        assert set(features) <= set(live[own.site.name])
        assert length(control, own.site) == pytest.approx(length(method, own.site), rel=1e-4)
    assert control.keep_norm
    assert control == control_of(method, live, seed=4) != control_of(method, live, seed=5)


def test_a_transport_s_control_makes_the_same_moves_along_other_live_directions(saes):
    live = {ATTN.name: list(range(10, 40))}
    method = Transported(BLUE, (Carried(ATTN, saes[ATTN.name], (10, 11, 12)),))
    (carried,) = control_of(method, live, seed=0).carried
    assert carried.features == (10, 11, 12)
    assert len(set(carried.stand_ins)) == 3 and set(carried.stand_ins) <= set(range(13, 40))


def test_a_detector_s_control_is_the_mask_elsewhere():
    region = torch.zeros(64, dtype=torch.bool)
    region[:5] = True
    method = Blended(BLUE, region, (8, 8))
    found = {control_of(method, {}, seed).displaced for seed in range(40)}
    assert {number for both in found for number in both} == {2, 3, 4, 5, 6} and len(found) > 5


def test_too_few_live_features_are_made_up_from_the_others():
    import numpy as np

    rng = np.random.default_rng(0)
    assert set(drawn([0, 1], [0, 1, 2], 6, rng)) <= {2, 3, 4, 5}
    assert sorted(drawn([0, 1], [2, 3], 6, rng)) == [2, 3]
