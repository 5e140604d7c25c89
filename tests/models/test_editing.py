"""Edits over many sites: what each method does to what passes, held against plain algebra on flux-shapes."""

import pytest
import torch

from fluxscope.errors import ConfigError
from fluxscope.models.attribution import call_of, velocity
from fluxscope.models.capture import Capture
from fluxscope.models.cells import PARTS, WHOLE, Window
from fluxscope.models.donors import Donor
from fluxscope.models.editing import Rows, edited, sample_edited
from fluxscope.models.edits import moved
from fluxscope.models.methods.detector import Blended, Seen
from fluxscope.models.methods.push import Push, Pushed, SiteEdit
from fluxscope.models.methods.transport import Carried, Transported, columns
from fluxscope.models.sites import VELOCITY, parse_site
from fluxscope.models.spec import PictureSpec
from fluxscope.sae import TopKSparseAutoencoder, encode_sparse
from fluxscope.sae.formats import load
from fluxscope.shapes.shipped import SHIPPED_SAES

SPEC = PictureSpec(height=128, width=128, steps=4, guidance=3.5)
RED, BLUE = "a large red circle on a white background", "a large blue circle on a white background"
GREEN = "a large green circle on a white background"
ATTN, FF = parse_site("double.5.attn"), parse_site("double.15.ff")
LATE = Window(0.6, 0.0)
"""The last two of four steps."""


@pytest.fixture(scope="module")
def prompts(model):
    return model.encode([RED, BLUE, GREEN])


@pytest.fixture(scope="module")
def saes():
    return {site.name: load(SHIPPED_SAES[site.name])[0] for site in (ATTN, FF)}


@pytest.fixture(scope="module")
def loud(model, prompts, saes):
    """Two features of each site that are active on the red circle in the second step."""
    heard = {}
    capture = Capture([ATTN, FF], [1], lambda site, step, x: heard.update({site.name: x.clone()}))
    model.sample([prompts[RED]], [3], capture, spec=SPEC)
    sums = {name: encode_sparse(saes[name], x).to_dense().sum(0) for name, x in heard.items()}
    return {name: each.topk(2).indices.tolist() for name, each in sums.items()}


def latents_of(model, prompts, *variants, seed=3):
    return sample_edited(model, prompts, SPEC, RED, seed, list(variants))


def around(model, prompts, method, site, step, texts=(RED, RED), **rows):
    """What passes a site before and after a method's hooks, where row 0 is the baseline and row 1 edited."""
    heard = []
    before, after = (Capture([site], [step], lambda s, i, x: heard.append(x.clone())) for _ in range(2))
    sigmas = model.family.sigmas(model.pipe.scheduler, SPEC)
    seen = Rows(1, rows.get("donors", {}), rows.get("followers", {}), len(texts), sigmas)
    hooks = method.hooks(seen)
    model.sample([prompts[t] for t in texts], [3] * len(texts), before, *hooks, after, spec=SPEC)
    return heard


def pushed(saes, loud, amount=1.0, natural=20.0, kind="add", **options):
    window = options.pop("window", WHOLE)
    edits = [
        SiteEdit(site, (Push(loud[site.name][0], amount, natural, kind),), window) for site in (ATTN, FF)
    ]
    return Pushed(saes, tuple(edits), **options)


def test_what_does_nothing_changes_no_bit(model, prompts, saes, loud, one_thread):
    here = torch.zeros(64, dtype=torch.bool)
    here[:20] = True
    seen = Seen(ATTN, saes[ATTN.name], (loud[ATTN.name][0],), (10.0,), (8, 8), 0.5)
    nothing = [
        [pushed(saes, loud, 1.0, kind="scale")],
        [pushed(saes, loud, 0.0, keep_norm=True)],
        [pushed(saes, loud, 3.0).dosed(0.0)],
        [pushed(saes, loud, 3.0, kind="scale").dosed(0.0)],
        [
            Transported(
                RED, (Carried(ATTN, saes[ATTN.name], (1, 2)), Carried(FF, saes[FF.name]), Carried(ATTN))
            )
        ],
        [Blended(RED, here, (8, 8))],
        [Blended(BLUE, seen, (8, 8), weight=0.0)],
    ]
    latents = latents_of(model, prompts, *nothing)
    assert len(latents) == 1 + len(nothing)
    for row in latents[1:]:
        assert torch.equal(row, latents[0])
    torch.testing.assert_close(
        latents[:1], model.sample([prompts[RED]], [3], spec=SPEC), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("site", [ATTN, FF], ids=lambda site: site.name)
def test_a_push_moves_each_site_by_so_many_natural_sizes_and_other_rows_by_nothing(
    model, prompts, saes, loud, site
):
    before, after = around(model, prompts, pushed(saes, loud, 1.5, 20.0), site, 1)
    column = saes[site.name].decoder.weight[:, loud[site.name][0]]
    torch.testing.assert_close(after[1] - before[1], (30 * column).expand_as(after[1]), rtol=1e-3, atol=1e-3)
    assert torch.equal(after[0], before[0])


def test_the_natural_size_is_one_of_codes_whatever_the_decoder_s_norm(model, prompts, loud):
    torch.manual_seed(0)
    sae = TopKSparseAutoencoder(128, 64, 4).eval().requires_grad_(False)
    sae.decoder.weight.mul_(2.5)
    method = Pushed({ATTN.name: sae}, (SiteEdit(ATTN, (Push(7, 2.0, 3.0),)),))
    before, after = around(model, prompts, method, ATTN, 0)
    expected = (6 * sae.decoder.weight[:, 7]).expand_as(after[1])
    torch.testing.assert_close(after[1] - before[1], expected, rtol=1e-3, atol=1e-3)


def test_clamping_sets_the_code_to_natural_sizes_and_a_dose_is_a_share_of_the_move():
    push = Push(3, 2.0, 5.0, "clamp")
    sae = TopKSparseAutoencoder(8, 16, 2)
    assert push.change(sae).amount == 10
    assert push.dosed(0.5).amount == 1.0
    assert Push(3, 4.0, kind="scale").dosed(0.5).amount == 2.5
    assert Push(3, 4.0, 9.0, "scale").change(sae).amount == 4.0


def test_norms_are_kept_per_token_and_the_direction_changes(model, prompts, saes, loud):
    free = around(model, prompts, pushed(saes, loud, 2.0), ATTN, 1)
    before, after = around(model, prompts, pushed(saes, loud, 2.0, keep_norm=True), ATTN, 1)
    # Both runs differ before: the first step was edited too. So each is held against its own.
    torch.testing.assert_close(after.norm(dim=-1), before.norm(dim=-1), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(free[1].norm(dim=-1)[1], free[0].norm(dim=-1)[1], rtol=1e-2)
    straight = before[1] + 40 * saes[ATTN.name].decoder.weight[:, loud[ATTN.name][0]]
    expected = torch.nn.functional.normalize(straight, dim=-1) * before[1].norm(dim=-1, keepdim=True)
    torch.testing.assert_close(after[1], expected, rtol=1e-3, atol=1e-3)


def test_a_token_of_nothing_keeps_its_norm_without_becoming_nan():
    x, delta = torch.zeros(1, 2, 4), torch.zeros(1, 2, 4)
    delta[0, 1] = 3.0
    assert torch.equal(moved(x, delta, keep_norm=True), torch.zeros(1, 2, 4))


def test_windows_of_noise_hold_on_every_schedule(model, prompts, saes, loud):
    method = pushed(saes, loud, window=LATE)
    sigmas = model.family.sigmas(model.pipe.scheduler, SPEC)
    assert sigmas == pytest.approx((1, 0.75, 0.5, 0.25))
    assert [hook.steps for hook in method.hooks(Rows(1, {}, {}, 2, sigmas))] == [{2, 3}, {2, 3}]
    shifted = tuple(3 * s / (1 + 2 * s) for s in sigmas)  # as FLUX.1's: 1, 0.9, 0.75, 0.5
    assert [hook.steps for hook in method.hooks(Rows(1, {}, {}, 2, shifted))] == [{3}, {3}]
    before, after = around(model, prompts, method, ATTN, 1)
    assert torch.equal(before, after)
    before, after = around(model, prompts, method, ATTN, 2)
    assert not torch.equal(before[1], after[1])
    with pytest.raises(ConfigError, match=r"no step lies between the noise levels 0\.2 and 0\.1"):
        pushed(saes, loud, window=Window(0.2, 0.1)).hooks(Rows(1, {}, {}, 2, sigmas))


def test_two_windows_of_one_site_act_one_after_the_other(model, prompts, saes, loud):
    feature, column = loud[ATTN.name][0], saes[ATTN.name].decoder.weight[:, loud[ATTN.name][0]]
    edits = [
        SiteEdit(ATTN, (Push(feature, float(n), 10.0),), window) for n, window in enumerate(PARTS, start=1)
    ]
    for step, amount in ((0, 10), (1, 10), (2, 20), (3, 30)):  # at 1, 0.75, 0.5, 0.25
        before, after = around(model, prompts, Pushed(saes, tuple(edits)), ATTN, step)
        expected = (amount * column).expand_as(after[1])
        torch.testing.assert_close(after[1] - before[1], expected, rtol=1e-3, atol=1e-3)


def transported(*carried, **options):
    return Transported(BLUE, carried, **options)


def carried_over(model, prompts, method, site, step=1):
    """Own activation, the donor's, and what passes on."""
    before, after = around(model, prompts, method, site, step, texts=(RED, RED, BLUE), donors={BLUE: 2})
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    return before[1], before[2], after[1]


def test_all_that_passes_carried_over_is_a_donor_s_copy(model, prompts):
    sites = [parse_site(f"double.{n}.attn") for n in range(19)]
    ours = latents_of(model, prompts, [transported(*map(Carried, sites))])
    rows = [prompts[RED], prompts[RED], prompts[BLUE]]
    theirs = model.sample(rows, [3, 3, 3], Donor(sites, range(4), {1: 2}), spec=SPEC)
    torch.testing.assert_close(ours, theirs[:2], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(ours[1], ours[0], atol=0.05)


def test_all_features_carried_over_is_the_difference_of_the_decoded_codes(model, prompts, saes):
    for site in (ATTN, FF):
        sae = saes[site.name]
        for features in (None, tuple(range(sae.hidden_dim))):
            own, given, after = carried_over(model, prompts, transported(Carried(site, sae, features)), site)
            expected = sae.decode(sae.encode(given)) - sae.decode(sae.encode(own))
            assert expected.norm() > 1
            torch.testing.assert_close(after - own, expected, rtol=1e-3, atol=1e-2)


def test_some_features_carried_over_take_the_donor_s_codes_and_no_others_move(model, prompts, saes):
    sae = saes[ATTN.name]
    own, given, _ = carried_over(model, prompts, transported(Carried(ATTN, sae, (0,))), ATTN)
    z, wished = sae.encode(own), sae.encode(given)
    features = tuple((wished - z).abs().sum(0).topk(3).indices.tolist())
    own, given, after = carried_over(
        model, prompts, transported(Carried(ATTN, sae, features), share=0.5), ATTN, step=0
    )
    changed = sae.encode(own)
    half = (sae.encode(given) + changed) / 2
    changed[:, list(features)] = half[:, list(features)]
    expected = sae.decode(changed) - sae.decode(sae.encode(own))
    assert expected.norm() > 0.5
    torch.testing.assert_close(after - own, expected, rtol=1e-3, atol=1e-3)


def test_a_region_of_a_transport_leaves_all_other_tokens_as_they_are(model, prompts, saes):
    region = torch.zeros(64, dtype=torch.bool)
    region[[3, 20, 21]] = True
    own, given, after = carried_over(model, prompts, transported(Carried(ATTN), region=region), ATTN)
    assert torch.equal(after[~region], own[~region])
    torch.testing.assert_close(after[region], given[region], rtol=1e-4, atol=1e-4)


def test_stand_ins_go_as_far_along_other_directions(model, prompts, saes):
    sae, features = saes[ATTN.name], tuple(range(60))
    others = tuple(range(100, 160))
    own, given, after = carried_over(model, prompts, transported(Carried(ATTN, sae, features)), ATTN, 0)
    _, _, control = carried_over(
        model, prompts, transported(Carried(ATTN, sae, features, stand_ins=others)), ATTN, 0
    )
    far = (after - own).norm(dim=-1)
    torch.testing.assert_close((control - own).norm(dim=-1), far, rtol=1e-3, atol=1e-3)
    codes = (sae.encode(given) - sae.encode(own))[:, :60]
    way = codes @ sae.decoder.weight[:, 100:160].T
    cosine = torch.nn.functional.cosine_similarity(control - own, way, dim=-1)
    assert (cosine[far > 1e-2] > 0.999).all() and (far > 1e-2).any()


def test_columns_are_those_of_the_dense_codes():
    dense = torch.relu(torch.randn(7, 9, generator=torch.Generator().manual_seed(0)))
    from fluxscope.sae import SparseCodes

    assert torch.equal(columns(SparseCodes.from_dense(dense), (5, 0, 8)), dense[:, [5, 0, 8]])


def test_a_velocity_is_mixed_in_where_it_is_meant_and_both_rows_go_on_together(model, prompts):
    region = torch.zeros(64, dtype=torch.bool)
    region[18:30] = True
    heard = []
    listen = Capture([VELOCITY], range(4), lambda s, i, x: heard.append(x.clone()))
    method = Blended(BLUE, region, (8, 8), weight=0.5, window=Window(0.8, 0.0))
    latents = sample_edited(model, prompts, SPEC, RED, 3, [[method]], listen)
    velocities = torch.stack(heard)  # before they are mixed: baseline, edited, follower
    assert torch.equal(velocities[0, 1], velocities[0, 0])
    assert not torch.equal(velocities[0, 2], velocities[0, 0])
    assert torch.equal(velocities[1, 1], velocities[1, 0]), "in the first step nothing was mixed in"
    sigmas = torch.tensor([1, 0.75, 0.5, 0.25, 0.0])
    far = torch.zeros_like(latents[0])
    for step in range(4):
        source, other = velocities[step, 1], velocities[step, 2]
        mixed = source + (0.5 * region[:, None] * (other - source) if step else 0)
        far = far + (sigmas[step + 1] - sigmas[step]) * mixed
    noise = latents[0] - sum((sigmas[step + 1] - sigmas[step]) * velocities[step, 0] for step in range(4))
    torch.testing.assert_close(latents[1], noise + far, rtol=1e-3, atol=1e-3)


def test_a_follower_is_asked_of_the_edited_row_s_own_latents(model, prompts):
    heard = []
    listen = Capture([VELOCITY], range(4), lambda s, i, x: heard.append(x.clone()))
    method = Blended(BLUE, torch.ones(64, dtype=torch.bool), (8, 8), weight=0.0, window=WHOLE)
    sample_edited(model, prompts, SPEC, RED, 3, [[method]], listen)
    own, other = (call_of(model, [prompts[text]], [3], 3, spec=SPEC) for text in (RED, BLUE))
    expected = velocity(model, own.told(other))[0]
    torch.testing.assert_close(heard[3][2], expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(velocity(model, other)[0], expected, atol=0.05)


def test_the_whole_velocity_from_the_first_step_on_is_the_other_prompt_s_picture(model, prompts):
    everywhere = torch.ones(64, dtype=torch.bool)
    latents = latents_of(model, prompts, [Blended(BLUE, everywhere, (8, 8), window=WHOLE)])
    theirs = model.sample([prompts[BLUE]], [3], spec=SPEC)
    torch.testing.assert_close(latents[1:], theirs, rtol=1e-3, atol=1e-3)


def smoothed(grid):
    """The mean of the 3 x 3 tokens around each, edges going on as they are, by hand."""
    offsets = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    found = torch.zeros(8, 8)
    for y in range(8):
        for x in range(8):
            found[y, x] = sum(grid[min(max(y + i, 0), 7), min(max(x + j, 0), 7)] for i, j in offsets) / 9
    return found.flatten()


def test_features_of_the_baseline_say_where(model, prompts, saes, loud):
    """The mask by hand: the sum of codes in natural sizes, smoothed, above a level."""
    sae, features, naturals = saes[ATTN.name], tuple(loud[ATTN.name]), (4.0, 8.0)
    heard = {}
    listen = Capture([ATTN], range(4), lambda s, i, x: heard.update({i: x[0].clone()}))
    model.sample([prompts[RED]], [3], listen, spec=SPEC)
    maps = {}
    for step in (2, 3):
        codes = sae.encode(heard[step])
        maps[step] = smoothed(
            sum(codes[:, f] / n for f, n in zip(features, naturals, strict=True)).view(8, 8)
        )
    level = float(maps[2].sort().values[30:32].mean())
    seen = Seen(ATTN, sae, features, naturals, (8, 8), level)
    sigmas = model.family.sigmas(model.pipe.scheduler, SPEC)
    push = pushed(saes, loud, 5.0)  # on the edited row alone: the map is the unchanged picture's
    blended = Blended(BLUE, seen, (8, 8), window=LATE)
    rows = Rows(1, {}, {BLUE: 2}, 3, sigmas)
    (blend,) = blended.hooks(rows)
    model.sample([prompts[t] for t in (RED, RED, BLUE)], [3] * 3, *push.hooks(rows), blend, spec=SPEC)
    assert set(blend.masks) == {2, 3}
    for step, mask in blend.masks.items():
        assert 0 < mask.sum() < 64
        assert torch.equal(mask, maps[step] >= level)


def test_a_displaced_mask_is_as_large_and_elsewhere(model, prompts):
    region = torch.zeros(8, 8, dtype=torch.bool)
    region[2:4, 1:3] = True
    method = Blended(BLUE, region.flatten(), (8, 8), displaced=(3, 4), window=WHOLE)
    before, after = around(model, prompts, method, VELOCITY, 0, texts=(RED, RED, BLUE), followers={BLUE: 2})
    changed = (before[1] != after[1]).any(-1).view(8, 8)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[5:7, 5:7] = True
    assert torch.equal(changed, expected)


def test_edits_are_composed_and_batches_change_no_meaning(model, prompts, saes, loud):
    left = torch.zeros(8, 8, dtype=torch.bool)
    left[:, :4] = True
    one = Blended(BLUE, left.flatten(), (8, 8), window=WHOLE)
    two = Blended(GREEN, ~left.flatten(), (8, 8), window=WHOLE)
    push = pushed(saes, loud, 1.0)
    variants = [[one], [two], [one, two], [push], [push, one], [transported(Carried(FF))]]
    together = edited(model, prompts, SPEC, RED, 3, variants)
    few = edited(model, prompts, SPEC, RED, 3, variants, at_once=4)
    assert together.shape == (7, 128, 128, 3)
    assert (together.int() - few.int()).abs().max() <= 2
    differ = (together[1:].int() - together[:1].int()).abs().amax((1, 2, 3))
    assert (differ[[0, 1, 2, 3, 4]] > 5).all()
    before, after = around(
        model,
        prompts,
        Both(one, two),
        VELOCITY,
        0,
        texts=(RED, RED, BLUE, GREEN),
        followers={BLUE: 2, GREEN: 3},
    )
    expected = torch.where(left.flatten()[:, None], before[2], before[3])
    torch.testing.assert_close(after[1], expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before[2], before[3], atol=0.01)


class Both:
    """Two methods as one."""

    def __init__(self, *methods):
        self._methods = methods

    def hooks(self, rows):
        return [hook for each in self._methods for hook in each.hooks(rows)]


@pytest.mark.parametrize("amount", [float("nan"), float("inf")])
def test_amounts_that_are_not_finite_are_errors(amount):
    with pytest.raises(ConfigError, match="cannot be moved by"):
        Push(1, amount)
    with pytest.raises(ConfigError, match="the natural size of feature 1 is"):
        Push(1, 1.0, amount)


def test_features_that_there_are_not_are_errors_before_anything_runs(saes):
    sae = saes[ATTN.name]
    with pytest.raises(ConfigError, match="there is no feature 99999"):
        Pushed(saes, (SiteEdit(ATTN, (Push(99999, 1.0),)),))
    with pytest.raises(ConfigError, match="there is no feature 99999"):
        Carried(ATTN, sae, (1, 99999))
    with pytest.raises(ConfigError, match="there is no feature 99999"):
        Seen(ATTN, sae, (99999,), (1.0,), (8, 8), 0.5)
