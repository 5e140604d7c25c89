"""The amounts of `learned`, on flux-shapes: the loss by hand, and what a short fit brings about."""

import pytest
import torch

from fluxscope.errors import ConfigError
from fluxscope.models.attribution import calls_of, velocity
from fluxscope.models.cells import WHOLE, Window
from fluxscope.models.editing import sample_edited
from fluxscope.models.edits import Change, Edit, Scope
from fluxscope.models.methods.control import control_of
from fluxscope.models.methods.drawn import Draw, changing_region
from fluxscope.models.methods.learned import Fitting, largest, learn
from fluxscope.models.methods.push import Pushed
from fluxscope.models.methods.shift import WINDOWS
from fluxscope.models.spec import PictureSpec
from fluxscope.sae.formats import load
from fluxscope.shapes.shipped import STEERING_SAES

SPEC = PictureSpec(height=128, width=128, steps=5, guidance=3.5)
RED, BLUE = "a large red circle on a white background", "a large blue circle on a white background"
SITES = ("double.5.attn", "double.11.attn")
SEED, N = 3, 2
SHORT = Fitting(iterations=(8, 8), batch=N)


@pytest.fixture(scope="module")
def prompts(model):
    return model.encode([RED, BLUE])


@pytest.fixture(scope="module")
def saes():
    return {site: load(STEERING_SAES[site])[0] for site in SITES}


@pytest.fixture(scope="module")
def draw(model, prompts, saes):
    return Draw(model, prompts[RED], prompts[BLUE], SEED, SPEC, saes, WHOLE, N)


@pytest.fixture(scope="module")
def drawn(model, prompts, draw):
    return draw.of(model.sample([prompts[RED]], [SEED], spec=SPEC))


@pytest.fixture(scope="module")
def found(model, prompts, saes):
    return learn(model, prompts[RED], prompts[BLUE], SEED, SPEC, saes, WHOLE, 6, None, SHORT)


def test_what_is_drawn_is_the_picture_noised_and_both_prompts_velocities(model, prompts, drawn):
    assert drawn.latents.shape[0] == 5 * N
    assert drawn.window.tolist() == [0] * N + [1] * N + [2] * 2 * N + [3] * N  # at 1, 0.8, 0.6, 0.4 and 0.2
    picture = model.sample([prompts[RED]], [SEED], spec=SPEC)
    noise = drawn.latents[:N]
    for step, sigma in enumerate((1.0, 0.8, 0.6, 0.4, 0.2)):
        rows = slice(step * N, (step + 1) * N)
        torch.testing.assert_close(
            drawn.latents[rows], (1 - sigma) * picture + sigma * noise, atol=1e-5, rtol=0
        )
    own = calls_of(model, [prompts[RED]], [SEED], [0], spec=SPEC)[0]
    torch.testing.assert_close(noise[:1], own.keywords["hidden_states"])
    assert float((noise[0] - noise[1]).abs().mean()) > 0.5
    other = calls_of(model, [prompts[BLUE]], [SEED], [0], spec=SPEC)[0]
    torch.testing.assert_close(drawn.own[:1], velocity(model, own), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(drawn.wished[:1], velocity(model, other), rtol=1e-3, atol=1e-3)


def test_steps_of_several_noise_levels_share_a_call(model, drawn):
    some = torch.tensor([N + 1, 4 * N])
    torch.testing.assert_close(velocity(model, drawn.given(some)), drawn.own[some], rtol=1e-3, atol=1e-3)


def test_the_region_is_where_the_prompts_go_different_ways(drawn):
    """The circle is large: between a tenth and half of the picture, and no corner of it."""
    region = changing_region(drawn.wished - drawn.own)
    assert 6 <= int(region.sum()) <= 40 and not region.view(8, 8)[[0, 0, -1, -1], [0, -1, 0, -1]].any()
    with pytest.raises(ConfigError, match="makes no difference"):
        changing_region(torch.zeros_like(drawn.own))


def test_the_largest_are_chosen_over_sites_and_windows():
    scores = {"a": torch.tensor([[1.0, 0, -3], [1.5, 0, 0]]), "b": torch.tensor([[2.0, 0], [0.0, 0]])}
    chosen = {name: each.tolist() for name, each in largest(scores, 2).items()}
    assert chosen == {"a": [True, False, True], "b": [False, False]}
    assert {name: each.tolist() for name, each in largest(scores, None).items()}["b"] == [True, False]


def test_few_features_are_moved_each_in_its_natural_size(found, draw, saes):
    named = {(edit.site.name, push.feature) for edit in found.edits for push in edit.pushes}
    assert 1 <= len(named) <= 6
    assert all(edit.window in WINDOWS for edit in found.edits)
    for edit in found.edits:
        for push in edit.pushes:
            assert push.kind == "add" and 0 < abs(push.amount) <= SHORT.bound
            assert push.feature in found.live[edit.site.name]
    assert found.largest == max(abs(push.amount) for edit in found.edits for push in edit.pushes)


def test_the_loss_that_is_left_is_that_of_the_moves_themselves(model, prompts, saes, found, draw):
    """Made again with plain edits, step by step, on the source's picture."""
    drawn = draw.of(model.sample([prompts[RED]], [SEED], spec=SPEC))
    goal = torch.where(found.region[:, None], drawn.wished, drawn.own)
    error = 0.0
    for step in range(5):
        rows = torch.arange(step * N, (step + 1) * N)
        call, hooks = drawn.given(rows), []
        for edit in found.edits:
            if step in edit.window.steps((1.0, 0.8, 0.6, 0.4, 0.2)):
                changes = [_as_change(saes[edit.site.name], push) for push in edit.pushes]
                scope = Scope(edit.site, range(call.step, call.step + 1), region=found.region, keep_norm=True)
                hooks.append(Edit(saes[edit.site.name], [changes] * N, scope))
        error += float((velocity(model, call, *hooks) - goal[rows]).square().sum())
    alone = error / float((drawn.own - goal).square().sum())
    assert alone < 0.9 and found.left < 0.9
    assert alone == pytest.approx(found.left, abs=0.1)  # which counts what the moves make of the picture too


def _as_change(sae, push):
    length = float(sae.decoder.weight[:, push.feature].norm())
    return Change("add", push.amount * push.natural * length, push.feature)


def test_the_picture_goes_where_the_target_s_goes_and_the_control_does_not(model, prompts, saes, found):
    """The fit is a short one: it goes a part of the way."""
    method = Pushed(saes, found.edits, region=found.region, keep_norm=True)
    control = control_of(method, found.live, 0)
    made = sample_edited(model, prompts, SPEC, RED, SEED, [[method], [control], [method.dosed(-1.0)]])
    goal = model.sample([prompts[BLUE]], [SEED], spec=SPEC)
    way = (goal[0] - made[0])[found.region]
    ours, theirs, opposite = (
        float(((each - made[0])[found.region] * way).sum() / way.square().sum()) for each in made[1:]
    )
    assert ours > 0.05 and ours > 2 * theirs and ours > opposite


def test_found_again_it_is_the_same_and_a_region_and_window_bound_it(model, prompts, saes, one_thread):
    region = torch.arange(64) % 8 < 4
    once, again = (
        learn(
            model,
            prompts[RED],
            prompts[BLUE],
            SEED,
            SPEC,
            saes,
            Window(0.85, 0.5),
            2,
            region,
            Fitting((3, 3), batch=N),
        )
        for _ in range(2)
    )
    assert once.edits == again.edits and torch.equal(once.region, region)
    assert {(edit.window.high, edit.window.low) for edit in once.edits} <= {(0.85, 0.725), (0.725, 0.5)}


def test_what_cannot_be_fitted_is_refused(model, prompts, saes):
    with pytest.raises(ConfigError, match="makes no difference"):
        learn(model, prompts[RED], prompts[RED], SEED, SPEC, saes, Window(0.5, 0.0), 2, None, SHORT)
    text = {"double.5.attn_context": saes["double.5.attn"]}
    with pytest.raises(ConfigError, match="pass those of the text"):
        learn(model, prompts[RED], prompts[BLUE], SEED, SPEC, text, Window(0.5, 0.0), 2, None, SHORT)
