"""The trainer learns, repeats itself, and its SAEs read raw activations."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fluxscope.errors import FluxscopeError
from fluxscope.sae import SparseAutoencoder, TopKSparseAutoencoder
from fluxscope.sae.metrics import evaluate
from fluxscope.sae.train import TrainConfig, finite_rows, fit_normalisation, train

SMALL = TrainConfig(hidden_dim=64, k=3, steps=300, batch_size=256, warmup_steps=20, dead_after_tokens=5000)


def activations(n: int, seed: int, scale: float = 7.0) -> torch.Tensor:
    """Sums of three of 24 directions, far from the origin and far from unit size."""
    directions = torch.nn.functional.normalize(
        torch.randn(24, 16, generator=torch.Generator().manual_seed(99)), dim=1
    )
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(n, 24, generator=generator).argsort(1)[:, :3]
    strength = 1 + torch.rand(n, 3, generator=generator)
    code = torch.zeros(n, 24).scatter(1, chosen, strength)
    return scale * (code @ directions) + 50


def test_topk_explains_held_out_activations_in_raw_space() -> None:
    sae, history = train(activations(8000, 0), SMALL)
    scores = evaluate(sae, [activations(2000, 1)]).scores()
    assert isinstance(sae, TopKSparseAutoencoder)
    assert scores.explained_variance > 0.8
    assert scores.l0 <= 3
    assert scores.dead < 0.1
    assert history[-1]["step"] == 300
    torch.testing.assert_close(sae.decoder.weight.norm(dim=0), torch.ones(64))


def test_relu_is_sparser_the_stronger_its_penalty() -> None:
    weak, strong = (
        train(activations(4000, 0), TrainConfig("relu", 64, l1_coeff=c, steps=200, batch_size=256))[0]
        for c in (0.05, 0.8)
    )
    held_out = [activations(1000, 1)]
    assert isinstance(strong, SparseAutoencoder)
    assert evaluate(strong, held_out).scores().l0 < 0.7 * evaluate(weak, held_out).scores().l0


def test_scaling_and_shifting_the_activations_changes_nothing_but_the_units() -> None:
    x = activations(2000, 0)
    quick = TrainConfig(hidden_dim=32, k=3, steps=20, batch_size=256)
    plain, _ = train(x, quick)
    moved, _ = train(8 * x + 5, quick)
    torch.testing.assert_close(moved.encode(8 * x + 5), 8 * plain.encode(x), rtol=1e-3, atol=1e-2)


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    x = activations(1000, 0)
    quick = TrainConfig(hidden_dim=32, k=3, steps=10, batch_size=128)
    np.save(tmp_path / "x.npy", x.numpy())
    first, _ = train(x, quick)
    second, _ = train(np.load(tmp_path / "x.npy", mmap_mode="r+"), quick)
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_normalisation_has_mean_zero_and_mean_square_d() -> None:
    x = activations(3000, 0)
    normalise = fit_normalisation(x, finite_rows(x))
    y = normalise(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(16), atol=1e-4, rtol=0)
    assert float(y.square().sum(1).mean()) == pytest.approx(16, rel=1e-4)


def test_a_few_bad_rows_are_skipped_and_many_are_refused() -> None:
    x = activations(1000, 0)
    x[3, 0] = torch.nan
    x[4, 1] = torch.inf
    sae, _ = train(x, TrainConfig(hidden_dim=32, k=3, steps=5, batch_size=128))
    assert all(torch.isfinite(parameter).all() for parameter in sae.parameters())
    x[:11, 0] = torch.nan
    with pytest.raises(FluxscopeError, match="11 of 1000"):
        train(x, SMALL)


@pytest.mark.parametrize(
    ("x", "message"),
    [(torch.zeros(0, 8), "no activations"), (torch.ones(100, 8), "equal")],
)
def test_useless_activations_are_refused(x: torch.Tensor, message: str) -> None:
    with pytest.raises(FluxscopeError, match=message):
        train(x, SMALL)


def test_an_architecture_without_trainer_is_named() -> None:
    with pytest.raises(FluxscopeError, match="quantum"):
        train(activations(100, 0), TrainConfig(architecture="quantum"))


def test_the_learning_rate_rises_stays_and_falls() -> None:
    config = TrainConfig(steps=100, warmup_steps=10, decay_share=0.2, lr=1.0)
    rates = [config.learning_rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10:80] == [1.0] * 70
    assert rates[99] == pytest.approx(0.05)
