"""The mean-code differences of `shift`, added up again by hand on flux-shapes."""

import pytest
import torch

from fluxscope.models.capture import Capture
from fluxscope.models.cells import WHOLE, Window
from fluxscope.models.methods.shift import WINDOWS, changing_tokens, shift
from fluxscope.models.sites import VELOCITY, parse_site
from fluxscope.models.spec import PictureSpec
from fluxscope.sae.formats import load
from fluxscope.shapes.shipped import SHIPPED_SAES

SPEC = PictureSpec(height=128, width=128, steps=4, guidance=3.5)
RED, BLUE = "a large red circle on a white background", "a large blue circle on a white background"
SITE = parse_site("double.5.attn")
SEEDS = (5, 6)


@pytest.fixture(scope="module")
def sae():
    return load(SHIPPED_SAES[SITE.name])[0]


@pytest.fixture(scope="module")
def prompts(model):
    return model.encode([RED, BLUE])


@pytest.fixture(scope="module")
def means(model, prompts, sae):
    """By step (at noise 1, 0.75, 0.5, 0.25): codes of the changing tokens, row by row, of both seeds."""
    found = {step: [[], []] for step in range(4)}
    for seed in SEEDS:
        heard = {}

        def receive(site, step, x, heard=heard):
            heard[site.name, step] = x.clone()

        capture = Capture([SITE, VELOCITY], range(4), receive)
        model.sample([prompts[RED], prompts[BLUE]], [seed, seed], capture, spec=SPEC)
        for step in range(4):
            far = (heard["velocity", step][1] - heard["velocity", step][0]).norm(dim=-1)
            here = far >= 0.5 * far.max()
            assert 0 < here.sum() < 64
            for row in (0, 1):
                found[step][row].append(sae.encode(heard[SITE.name, step][row][here]))
    return {step: [torch.cat(rows) for rows in both] for step, both in found.items()}


def test_amounts_are_differences_of_mean_codes_in_natural_sizes(model, prompts, sae, means):
    found = shift(model, prompts[RED], prompts[BLUE], SEEDS, SPEC, {SITE.name: sae}, WHOLE)
    edits, live = found.edits(12), found.live
    assert [edit.window for edit in edits] == list(WINDOWS)
    for edit, steps in zip(edits, ((0,), (1,), (2,), (3,)), strict=True):
        present, wished = (torch.cat([means[s][row] for s in steps]) for row in (0, 1))
        difference = wished.mean(0) - present.mean(0)
        for push in edit.pushes:
            side = wished if difference[push.feature] > 0 else present
            active = side[:, push.feature][side[:, push.feature] > 0]
            assert push.natural == pytest.approx(float(active.mean()), rel=0.02)
            moved = push.amount * push.natural
            assert moved == pytest.approx(float(difference[push.feature]), rel=0.05, abs=0.02)
    named = {push.feature for edit in edits for push in edit.pushes}
    assert len(named) == 12 and named <= set(live[SITE.name])
    norms = sae.decoder.weight.norm(dim=0)
    score = sum((means[s][1].mean(0) - means[s][0].mean(0)).abs() for s in range(4)) * norms
    assert len(named & set(score.topk(12).indices.tolist())) >= 11  # the last two may be as good as equal


def test_a_window_bounds_the_amounts_noise_levels(model, prompts, sae):
    within = Window(0.8, 0.3)
    edits = shift(model, prompts[RED], prompts[BLUE], (5,), SPEC, {SITE.name: sae}, within).edits(3)
    assert [(edit.window.high, edit.window.low) for edit in edits] == [(0.8, 0.725), (0.725, 0.375)]


def test_tokens_change_where_velocities_differ_by_half_of_the_most():
    velocity = torch.zeros(2, 4, 3)
    velocity[1, :, 0] = torch.tensor([4.0, 2.0, 1.9, 0.0])
    assert changing_tokens(velocity).tolist() == [True, True, False, False]
