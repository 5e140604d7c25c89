import pytest
import torch

from fluxscope.models.sites import parse_site
from fluxscope.models.spec import PictureSpec, ResumePoint
from fluxscope.models.splice import random_twin, run_once, spliced_scores
from fluxscope.sae import BatchTopKSparseAutoencoder, SparseAutoencoder, TopKSparseAutoencoder
from fluxscope.sae.formats import load

SPEC = PictureSpec(height=128, width=128, steps=20, guidance=3.5)
PROMPTS = ["a large red circle on a white background", "a small blue square on a black background"]
SITE, STEP = parse_site("double.15.ff"), 13


@pytest.fixture(scope="module")
def embeddings(model):
    return list(model.encode(PROMPTS).values())


def test_putting_the_same_back_changes_nothing_and_zero_changes_both(model, embeddings):
    plain = model.sample(embeddings, [1, 2], spec=SPEC)
    same = run_once(model, embeddings, [1, 2], SPEC, SITE, STEP, lambda x: x)
    zero = run_once(model, embeddings, [1, 2], SPEC, SITE, STEP, torch.zeros_like)
    torch.testing.assert_close(same[1], plain, rtol=0, atol=0)
    for a, b in zip(same, zero, strict=True):
        assert not torch.allclose(a, b, atol=1e-3)
    assert not model.transformer.transformer_blocks[15].ff._forward_hooks


def test_a_perfect_sae_recovers_everything(model, embeddings):
    """Directions +e_i and -e_i with k = d reconstruct every activation."""
    sae = TopKSparseAutoencoder(128, 256, 128)
    both = torch.cat([torch.eye(128), -torch.eye(128)])
    with torch.no_grad():
        sae.encoder.weight.copy_(both)
        sae.decoder.weight.copy_(both.T)
    (scores,) = spliced_scores(model, embeddings, [1, 2], SPEC, SITE, STEP, [sae])
    assert scores.velocity_vs_zero == pytest.approx(1, abs=1e-6)
    assert scores.latents_vs_zero == pytest.approx(1, abs=1e-6)
    assert scores.n_images == 2


def test_the_shipped_sae_beats_its_random_twin(model, embeddings):
    from fluxscope.shapes.shipped import shipped_sae

    sae, _ = load(shipped_sae(15))
    (scores,) = spliced_scores(model, embeddings, [1, 2], SPEC, SITE, STEP, [sae])
    assert scores.velocity_vs_zero > 0.8
    assert scores.velocity_vs_mean > scores.random_velocity_vs_mean
    twin = random_twin(sae, 16)
    assert twin.config() == sae.config()
    assert not torch.equal(twin.decoder.weight, sae.decoder.weight)


def test_going_on_from_the_step_before_gives_the_bits_of_the_whole_run(model, embeddings):
    whole = run_once(model, embeddings, [1, 2], SPEC, SITE, STEP, torch.zeros_like)
    start = ResumePoint(model.sample(embeddings, [1, 2], spec=SPEC, stop_after=STEP - 1), STEP)
    resumed = run_once(model, embeddings, [1, 2], SPEC, SITE, STEP, torch.zeros_like, start)
    for a, b in zip(whole, resumed, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_every_architecture_has_a_control_of_its_own_l0(model, embeddings):
    """A fresh BatchTopK has no threshold, a fresh ReLU SAE half of its latents active: neither would do."""
    saes = [SparseAutoencoder(128, 32, 0.1), BatchTopKSparseAutoencoder(128, 32, 4)]
    saes[1].threshold.fill_(3.0)
    scores = spliced_scores(model, embeddings, [1, 2], SPEC, SITE, STEP, saes, batch_size=1)
    assert all(each.random_velocity_vs_zero < 1 for each in scores)
    (alone,) = spliced_scores(model, embeddings, [1, 2], SPEC, SITE, STEP, [saes[1]], batch_size=1)
    assert alone == scores[1]
    assert random_twin(saes[0], 7).k == 7
    assert random_twin(saes[0], 0).k == 1
