"""Gradient x code against ablation: features are taken out one by one, and the number is read again."""

import numpy as np
import pytest
import torch

from fluxscope.errors import ConfigError
from fluxscope.models.attribution import attribution, call_of, gradients, shares_of, velocity
from fluxscope.models.edits import Change, Edit, Scope
from fluxscope.models.model import open_model
from fluxscope.models.sites import parse_site
from fluxscope.sae import encode_sparse
from fluxscope.sae.formats import load
from fluxscope.shapes.shipped import SHIPPED_SAES

STEP = 8
SOURCE, TARGET = "a large red circle on a white background", "a large blue circle on a white background"
OTHER = "a small green star on a navy background"
LEFT = torch.arange(64) % 8 < 4


@pytest.fixture(scope="module")
def model():
    return open_model("flux-shapes", "cpu", "float32")


@pytest.fixture(scope="module")
def saes():
    return {parse_site(name): load(path)[0] for name, path in SHIPPED_SAES.items()}


@pytest.fixture(scope="module")
def calls(model):
    """Two rows of one batch, and the same latents told of the wish."""
    call = call_of(model, [SOURCE, OTHER], [1, 2], STEP)
    return call, call.told(call_of(model, [TARGET, OTHER], [1, 2], STEP))


@pytest.fixture(scope="module")
def wished(model, calls):
    return velocity(model, calls[1]) - velocity(model, calls[0])


@pytest.fixture(scope="module")
def found(model, calls, saes, wished):
    return attribution(model, calls[0], saes, lambda v: (v * wished).sum())


def number(model, call, wished, *hooks):
    return float((velocity(model, call, *hooks) * wished).sum())


def without(sae, site, feature, region=None):
    """The feature taken out of row 0, and nothing done to row 1."""
    return Edit(sae, [[Change("scale", 0.0, feature)], []], Scope(site, range(STEP, STEP + 1), region=region))


def test_a_call_is_what_the_run_gave_its_transformer(model, calls):
    """Taking the step from the kept call gives the latents that the run itself has after it."""
    call, _ = calls
    before = model.sample([SOURCE, OTHER], [1, 2], stop_after=STEP - 1)
    after = model.sample([SOURCE, OTHER], [1, 2], stop_after=STEP)
    torch.testing.assert_close(call.keywords["hidden_states"], before)
    sigmas = model.family.sigmas(model.pipe.scheduler, model.defaults)
    moved = before + velocity(model, call) * (sigmas[STEP + 1] - sigmas[STEP])
    torch.testing.assert_close(moved, after, rtol=1e-4, atol=1e-4)


def test_the_wish_moves_only_the_row_that_is_told_of_it(wished):
    assert wished[0].norm() > 10
    torch.testing.assert_close(wished[1], torch.zeros_like(wished[1]), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", SHIPPED_SAES)
def test_shares_are_what_ablation_takes_away(model, calls, saes, wished, found, name):
    site, whole = parse_site(name), number(model, calls[0], wished)
    shares = found[name][0]
    strongest = shares.abs().topk(8).indices.tolist()
    taken = [whole - number(model, calls[0], wished, without(saes[site], site, f)) for f in strongest]
    told = shares[strongest].numpy()
    assert np.corrcoef(taken, told)[0, 1] > 0.99
    assert float(np.dot(taken, told) / np.dot(told, told)) == pytest.approx(1, abs=0.1)
    silent = shares[encode_sparse(saes[site], gradients_at(model, calls[0], site)[0]).to_dense().amax(0) == 0]
    assert len(silent) > 10 and (silent == 0).all()


def gradients_at(model, call, site):
    return gradients(model, call, [site], lambda v: v.sum())[1][site.name]


def test_only_the_named_tokens_count(model, calls, saes, wished):
    site = parse_site("double.5.attn")
    part = attribution(model, calls[0], {site: saes[site]}, lambda v: (v * wished).sum(), LEFT)[site.name][0]
    whole = number(model, calls[0], wished)
    for feature in part.abs().topk(4).indices.tolist():
        taken = whole - number(model, calls[0], wished, without(saes[site], site, feature, LEFT))
        assert taken == pytest.approx(float(part[feature]), rel=0.25)


def test_sites_asked_together_or_alone_say_the_same_and_nothing_is_changed(model, calls, saes, wished, found):
    for site, sae in saes.items():
        alone = attribution(model, calls[0], {site: sae}, lambda v: (v * wished).sum())
        torch.testing.assert_close(alone[site.name], found[site.name], rtol=1e-3, atol=1e-3)
    value, _, _ = gradients(model, calls[0], list(saes), lambda v: (v * wished).sum())
    assert value == pytest.approx(number(model, calls[0], wished), rel=1e-5)


def test_rows_answer_for_themselves(model, calls, saes, wished, found):
    assert all(float(each[1].abs().max()) < 1e-2 * float(each[0].abs().max()) for each in found.values())


def test_a_gradient_is_the_slope_along_the_decoder_direction(model, calls, saes, wished):
    """A small push along a feature's direction changes the number by its size times the gradient there."""
    site = parse_site("double.5.attn")
    sae = saes[site]
    _, passed, slopes = gradients(model, calls[0], [site], lambda v: (v * wished).sum())
    codes = encode_sparse(sae, passed[site.name])
    shares = shares_of(codes, slopes[site.name], sae)
    feature = int(codes.feature[shares.abs().argmax()])
    column = torch.nn.functional.normalize(sae.decoder.weight[:, feature], dim=0)
    push = Edit(sae, [[Change("add", 0.05, feature)], []], Scope(site, range(STEP, STEP + 1)))
    rise = number(model, calls[0], wished, push) - number(model, calls[0], wished)
    assert rise == pytest.approx(0.05 * float((slopes[site.name][0] @ column).sum()), rel=0.05)


def test_a_site_that_the_model_lacks_is_refused(model, calls, saes):
    nowhere = parse_site("double.99.attn")
    with pytest.raises(ConfigError, match=r"no site double\.99\.attn"):
        attribution(model, calls[0], {nowhere: next(iter(saes.values()))}, lambda v: v.sum())
