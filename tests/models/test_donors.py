import pytest
import torch

from fluxscope.errors import FluxscopeError
from fluxscope.models.capture import Capture, listen
from fluxscope.models.donors import Donor
from fluxscope.models.sites import parse_site
from fluxscope.models.spec import PictureSpec

SPEC = PictureSpec(height=128, width=128, steps=4, guidance=3.5)
PROMPTS = ["a large red circle on a white background", "a large blue circle on a white background"]
SITE = parse_site("double.15")


@pytest.fixture(scope="module")
def rows(model):
    return list(model.encode(PROMPTS).values())


def test_only_the_named_row_at_the_named_step_gets_what_passed_in_the_donor_s():
    x = torch.arange(24.0).reshape(4, 2, 3)
    changed = Donor([SITE], [0], {2: 0, 3: 1}).act(SITE, 0, x)
    assert torch.equal(changed[[0, 1]], x[[0, 1]])
    assert torch.equal(changed[[2, 3]], x[[0, 1]])
    assert torch.equal(x, torch.arange(24.0).reshape(4, 2, 3))


def test_a_copy_acts_in_its_own_steps_alone(model, rows):
    copied = model.sample(rows, [1, 1], Donor([SITE], [3], {1: 0}), spec=SPEC, stop_after=3)
    assert not torch.equal(copied[1], model.sample(rows, [1, 1], spec=SPEC)[1])
    heard = []
    before = Capture([SITE], [2, 3], lambda site, step, x: heard.append(x.clone()))
    model.sample(rows, [1, 1], Donor([SITE], [3], {1: 0}), before, spec=SPEC)
    assert not torch.equal(heard[0][1], heard[0][0]) and torch.equal(heard[1][1], heard[1][0])


def test_a_step_that_is_not_taken_is_an_error(model, rows):
    with pytest.raises(FluxscopeError, match="nothing passed double.15 in step 3"):
        model.sample(rows, [1, 1], Donor([SITE], [0, 2], {1: 0}), spec=SPEC, stop_after=1)


def test_a_kept_donor_does_what_one_in_the_batch_does(model, rows):
    sites, steps = [SITE, parse_site("double.3.attn"), parse_site("double.3.k_context")], range(SPEC.steps)
    embedded = dict(zip(PROMPTS, rows, strict=True))
    (_, kept), *_ = listen(model, embedded, PROMPTS[:1], [1], SPEC, sites, steps, 1)
    beside = model.sample(rows, [1, 1], Donor(sites, steps, {1: 0}), spec=SPEC)
    alone = model.sample(rows[1:], [1], Donor(sites, steps, {0: 0}, kept), spec=SPEC)
    torch.testing.assert_close(alone[0], beside[1], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(alone[0], model.sample(rows[1:], [1], spec=SPEC)[0], atol=1e-2)


def test_a_kept_donor_of_fewer_steps_or_other_tokens_is_refused(model, rows):
    embedded = dict(zip(PROMPTS, rows, strict=True))
    (_, kept), *_ = listen(model, embedded, PROMPTS[:1], [1], SPEC, [SITE], [0, 1], 1)
    with pytest.raises(FluxscopeError, match=r"the donor was not heard at double\.15 in step 3") as caught:
        model.sample(rows[1:], [1], Donor([SITE], range(4), {0: 0}, kept), spec=SPEC)
    assert "same number of steps" in caught.value.hint
    small = PictureSpec(64, 64, 4, 3.5)
    (_, kept), *_ = listen(model, embedded, PROMPTS[:1], [1], small, [SITE], [0], 1)
    with pytest.raises(FluxscopeError, match=r"16 tokens of width 128 .* this run has 64 tokens"):
        model.sample(rows[1:], [1], Donor([SITE], [0], {0: 0}, kept), spec=SPEC)
    with pytest.raises(FluxscopeError, match="the donor has 1 rows"):
        model.sample(rows[1:], [1], Donor([SITE], [0], {0: 1}, kept), spec=small)
    assert not model.transformer.transformer_blocks[15]._forward_hooks


def test_rows_of_different_numbers_of_text_tokens_are_refused(model, rows):
    short = model.encode(PROMPTS[:1], 12)[PROMPTS[0]]
    with pytest.raises(FluxscopeError, match="prompts of 12 and 20 text tokens"):
        model.sample([short, rows[1]], [1, 1], Donor([SITE], [0], {1: 0}), spec=SPEC)


def test_noise_moves_each_token_as_far_as_the_donor_s_is_away_but_elsewhere():
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    x[0, 2] = x[1, 2]  # where the donor's token is the same, noise is none
    moved = Donor([SITE], [0], {1: 0}, noise=7).act(SITE, 0, x)
    way, went = x[0] - x[1], moved[1] - x[1]
    torch.testing.assert_close(went.norm(dim=-1), way.norm(dim=-1), rtol=1e-4, atol=1e-5)
    cosine = torch.nn.functional.cosine_similarity(went, way, dim=-1)[[0, 1, 3, 4]]
    assert cosine.abs().max() < 0.5
    assert torch.equal(moved[0], x[0])


def test_noise_depends_on_seed_site_and_step_alone():
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))

    def moved(seed, site, step):
        return Donor([site], [step], {1: 0}, noise=seed).act(site, step, x)[1]

    once = moved(7, SITE, 3)
    assert torch.equal(once, moved(7, SITE, 3))
    for other in (moved(8, SITE, 3), moved(7, parse_site("double.14"), 3), moved(7, SITE, 4)):
        assert not torch.equal(once, other)
