import dataclasses
import math

import pytest
import torch

from fluxscope.errors import ConfigError, FluxscopeError
from fluxscope.models.capture import Capture
from fluxscope.models.edits import (
    SCHEDULES,
    Change,
    Edit,
    Scope,
    box_to_tokens,
    schedule,
)
from fluxscope.models.model import Model
from fluxscope.models.sites import SITES, parse_site
from fluxscope.models.spec import PictureSpec, ResumePoint
from fluxscope.models.steering import Steerer
from fluxscope.sae import ARCHITECTURES, TopKSparseAutoencoder
from fluxscope.settings.steering import parse_denoise_steps

SPEC = PictureSpec(height=128, width=128, steps=4, guidance=3.5)
PROMPT = "a large red circle on a white background"
FF = parse_site("double.15.ff")


@pytest.fixture(scope="module")
def prompts(model):
    return model.encode([PROMPT, "a small blue star"])


@pytest.fixture(scope="module")
def sae():
    torch.manual_seed(0)
    return TopKSparseAutoencoder(128, 256, 8).eval().requires_grad_(False)


def run(model, sae, rows, scope, seed=3, start=None):
    edit = Edit(sae, rows, scope)
    latents = model.sample([PROMPT] * len(rows), [seed] * len(rows), edit, spec=SPEC, start=start)
    return latents, edit


def plain(model, n=1, seed=3, **options):
    return model.sample([PROMPT] * n, [seed] * n, spec=SPEC, **options)


def at_site(model, sae, rows, scope, step):
    """The site's activation in one step, before and after the edits, hooks in order."""
    heard = []

    def receive(site, index, x):
        heard.append(x.clone())

    before, after = (Capture([scope.site], [step], receive) for _ in range(2))
    model.sample([PROMPT] * len(rows), [3] * len(rows), before, Edit(sae, rows, scope), after, spec=SPEC)
    return heard


def with_scheduler(model, **options):
    """The model with another scheduler."""
    scheduler = type(model.pipe.scheduler).from_config(model.pipe.scheduler.config, **options)
    other = type(model.pipe)(**{**model.pipe.components, "scheduler": scheduler})
    other.set_progress_bar_config(disable=True)
    return Model.around(other)


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 3])
def test_resuming_is_bit_exact(model, step, batch):
    whole = plain(model, batch)
    begun = plain(model, batch, stop_after=step - 1)
    resumed = plain(model, batch, start=ResumePoint(begun, step))
    assert torch.equal(whole, resumed)


def test_resuming_is_bit_exact_with_flux_1s_shifted_schedule(model, prompts):
    """FLUX.1-dev shifts its noise levels with the picture's size; each still follows from its step alone."""
    shifted = with_scheduler(model, use_dynamic_shifting=True, shift=3.0)
    row = [prompts[PROMPT]]
    whole = shifted.sample(row, [3], spec=SPEC)
    assert not torch.equal(whole, plain(model))
    begun = shifted.sample(row, [3], spec=SPEC, stop_after=1)
    assert torch.equal(whole, shifted.sample(row, [3], spec=SPEC, start=ResumePoint(begun, 2)))


@pytest.mark.parametrize("option", ["use_karras_sigmas", "shift_terminal"])
def test_schedulers_that_rearrange_the_whole_run_are_not_resumed(model, prompts, sae, option):
    value = {"use_karras_sigmas": True, "shift_terminal": 0.02}[option]
    other = with_scheduler(model, **{option: value})
    assert model.can_resume and not other.can_resume
    assert Steerer(other, sae, SPEC, prompts).begun(PROMPT, 3, 2) is None


@pytest.mark.parametrize("kind", SITES, ids=lambda k: k.pattern)
def test_a_scale_of_one_and_a_strength_of_nothing_change_no_bit_at_any_site(model, sae, kind):
    site = parse_site(kind.pattern.replace("L", "0"))
    rows = [[Change("scale", 1.0, 3), Change("add", 0.0, 4), Change("scale", 1.0, 5)]]
    latents, _ = run(model, sae, rows, Scope(site, range(4)))
    assert torch.equal(latents, plain(model))
    pushed, _ = run(model, sae, [[Change("add", 600.0, 4)]], Scope(site, range(4)))
    assert not torch.equal(pushed, latents)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda entry: entry.name)
def test_a_scale_of_one_changes_no_bit_with_any_sae(model, architecture):
    config = {"topk_k": 8, "group_sizes": [64, 64], "l1_coeff": 0.1}
    sae = architecture.load().sae.from_config(128, 128, config).eval().requires_grad_(False)
    if hasattr(sae, "threshold"):
        sae.threshold.fill_(0.1)
    latents, _ = run(model, sae, [[Change("scale", 1.0, 3)]], Scope(FF, range(4)))
    assert torch.equal(latents, plain(model))


def test_every_picture_of_a_batch_is_steered_with_its_own_strength(model, sae):
    strengths = [0.0, 40.0, -40.0, 80.0]
    rows = [[Change("add", s, 7)] for s in strengths]
    before, after = at_site(model, sae, rows, Scope(FF, range(1, 3)), step=1)
    unit = sae.decoder.weight[:, 7] / sae.decoder.weight[:, 7].norm()
    expected = torch.tensor(strengths)[:, None, None] * unit
    torch.testing.assert_close(after - before, expected.expand_as(after), rtol=1e-4, atol=1e-4)
    latents, _ = run(model, sae, rows, Scope(FF, range(1, 3)))
    assert torch.equal(latents[0], plain(model, 4)[0])
    distances = (latents - latents[0]).abs().mean((1, 2))
    assert distances[0] == 0 and (distances[1:] > 1e-4).all()


def test_scale_and_clamp_move_the_code_and_keep_the_error(model, sae):
    """x' - x is decode(z') - decode(z), for several features at once."""
    changes = [Change("scale", 3.0, 1), Change("scale", 0.0, 2), Change("clamp", 5.0, 3)]
    before, after = at_site(model, sae, [changes, []], Scope(FF, range(4)), step=0)
    z = sae.encode(before[:1])
    changed = z.clone()
    changed[..., 1] *= 3
    changed[..., 2] = 0
    changed[..., 3] = 5
    expected = sae.decode(changed) - sae.decode(z)
    torch.testing.assert_close(after[:1] - before[:1], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(after[1], before[1])


def test_a_region_changes_nothing_outside_itself(model, sae):
    region = box_to_tokens((16, 32, 48, 70), 128, 128)
    scope = Scope(FF, range(4), region=region)
    before, after = at_site(model, sae, [[Change("add", 50.0, 7)]], scope, step=0)
    assert region.view(8, 8)[2:5, 1:3].all() and region.sum() == 6
    assert torch.equal(before[:, ~region], after[:, ~region])
    assert not torch.isclose(before[:, region], after[:, region]).all(-1).any()


def test_a_region_of_text_tokens_is_an_error():
    with pytest.raises(ConfigError, match="where text tokens pass"):
        Scope(parse_site("double.1.context"), range(2), region=torch.ones(64, dtype=torch.bool))


def test_only_active_tokens_change_when_asked(model, sae):
    scope = Scope(FF, range(4), only_active=True)
    unchanged, _ = at_site(model, sae, [[Change("add", 0.0, 7)]], scope, step=0)
    counts = (sae.encode(unchanged)[0] > 0).sum(0)
    feature = int((counts - 16).abs().argmin())  # one that is active on about a quarter of the tokens
    before, after = at_site(model, sae, [[Change("add", 50.0, feature)]], scope, step=0)
    active = sae.encode(before)[0, :, feature] > 0
    assert 0 < active.sum() < 64
    assert torch.equal((before != after).any(-1)[0], active)


def test_a_schedule_weighs_each_step(model, sae):
    steps = range(1, 4)
    for name in SCHEDULES:
        factors = schedule(name, steps)
        scope = Scope(FF, steps, factors=factors)
        for step in steps:
            before, after = at_site(model, sae, [[Change("add", 9.0, 7)]], scope, step)
            norm = (after - before).norm(dim=-1)
            torch.testing.assert_close(
                norm, torch.full_like(norm, 9.0 * scope.factor(step)), rtol=1e-3, atol=1e-3
            )
    assert schedule("fade_out", range(4)) == (1.0, 0.75, 0.5, 0.25)
    assert schedule("fade_in", range(4)) == (0.25, 0.5, 0.75, 1.0)


def test_the_model_is_edited_at_the_planned_steps_and_the_count_is_kept(model, sae):
    _, edits = run(model, sae, [[Change("add", 1.0, 0)]], Scope(FF, range(1, 3)))
    assert edits.fired == {("double.15.ff", 1): 1, ("double.15.ff", 2): 1}


def test_a_step_without_the_hook_is_an_error_and_the_hook_is_gone(model, sae):
    with pytest.raises(FluxscopeError, match=r"nothing passed double\.15\.ff in step 5 \(1 of 2 planned\)"):
        run(model, sae, [[Change("add", 1.0, 0)]], Scope(FF, range(3, 5)))

    def fail(site, step, x):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        edit = Edit(sae, [[]], Scope(FF, range(1)))
        model.sample([PROMPT], [3], edit, Capture([FF], [0], fail), spec=SPEC)
    assert not FF.module(model.transformer)._forward_hooks


def test_bfloat16_activations_keep_their_type_and_unchanged_bits(sae):
    from fluxscope.models.edits import columns_of, delta_of

    x = torch.randn(2, 64, 128, dtype=torch.bfloat16)
    rows = [[Change("scale", 1.0, 7)], [Change("add", 3.0, 7)]]
    delta = delta_of(sae, x, columns_of(sae, rows), Scope(FF, range(1)))
    changed = (x.float() + delta).to(x.dtype)
    assert torch.equal(changed[0], x[0]) and not torch.equal(changed[1], x[1])


@pytest.mark.parametrize("amount", [math.nan, math.inf])
def test_an_amount_that_is_not_finite_is_an_error(amount):
    with pytest.raises(ConfigError, match="cannot be steered by"):
        Change("add", amount, 1)


@pytest.mark.parametrize("feature", [-1, 256])
def test_a_feature_out_of_range_is_an_error(model, sae, feature):
    with pytest.raises(ConfigError, match=f"there is no feature {feature}") as caught:
        run(model, sae, [[Change("add", 1.0, feature)]], Scope(FF, range(4)))
    assert "0 to 255" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "steps"), [("0-5", range(6)), ("3", range(3, 4)), ("2 - 4", range(2, 5)), ("all", range(20))]
)
def test_step_ranges_include_both_ends(text, steps):
    assert parse_denoise_steps(text, 20) == steps


@pytest.mark.parametrize("text", ["", "5-2", "0-20", "-1", "a-b", "1-2-3"])
def test_step_ranges_outside_the_run_are_errors(text):
    with pytest.raises(ConfigError):
        parse_denoise_steps(text, 20)


@pytest.mark.parametrize("box", [(0, 0, 0, 10), (10, 0, 5, 10), (0, 0, 200, 10), (-5, 0, 10, 10)])
def test_boxes_outside_the_picture_are_errors(box):
    with pytest.raises(ConfigError, match="no box inside a picture of 128 x 128"):
        box_to_tokens(box, 128, 128)


def test_steered_pictures_share_their_beginning_and_equal_those_of_runs_of_their_own(model, prompts, sae):
    rows = [[Change("add", s, 7)] for s in (-50.0, 50.0, 100.0)]
    scope = Scope(FF, range(2, 4))
    calls = []
    handle = model.transformer.register_forward_hook(lambda m, a, o: calls.append(len(o[0])))
    steerer = Steerer(model, sae, SPEC, prompts)
    together = steerer.steer(PROMPT, 3, rows, scope)
    assert calls == [1, 1, 4, 4]
    steerer.steer(PROMPT, 3, rows, scope)
    assert calls[4:] == [4, 4]
    handle.remove()
    exact = dataclasses.replace(steerer, exact=True).steer(PROMPT, 3, rows, scope)
    assert (exact.pictures.int() - together.pictures.int()).abs().max() <= 1


def test_exact_pictures_have_the_bits_of_a_plain_run(model, prompts, sae):
    exact = Steerer(model, sae, SPEC, prompts, exact=True)
    made = exact.steer(
        PROMPT, 3, [[Change("scale", 1.0, 7)], [Change("add", 80.0, 7)]], Scope(FF, range(2, 4))
    )
    assert torch.equal(made.baseline, model.decode(plain(model), SPEC)[0])
    assert torch.equal(made.pictures[0], made.baseline)
    assert not torch.equal(made.pictures[1], made.baseline)


def test_rows_beyond_a_batch_bring_their_own_baseline(model, prompts, sae):
    rows = [[Change("add", float(s), 7)] for s in range(5)]
    calls = []
    handle = model.transformer.register_forward_hook(lambda m, a, o: calls.append(len(o[0])))
    made = Steerer(model, sae, SPEC, prompts, max_rows=4).steer(PROMPT, 3, rows, Scope(FF, range(4)))
    handle.remove()
    assert sorted(set(calls)) == [3, 4]
    assert made.pictures.shape == made.baselines.shape == (5, 128, 128, 3)
    assert torch.equal(made.pictures[0], made.baselines[0])
