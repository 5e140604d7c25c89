"""Centring, scaling and whitening, and that folding them into the weights changes nothing."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from synthetic import activations, settings
from torch import Tensor

from fluxscope.sae import ARCHITECTURES, LinearSae, formats
from fluxscope.sae.metrics import evaluate
from fluxscope.sae.normalisation import Normalisation, Whitening, fit
from fluxscope.sae.topk import TopK
from fluxscope.sae.train import TrainConfig, train

D, F = 16, 48
WHITENINGS: tuple[Whitening, ...] = ("none", "dimension", "pca", "soft_pca")


def uneven(n: int, seed: int) -> Tensor:
    """Activations whose dimensions differ in size and belong together."""
    return activations(n, seed) * torch.logspace(-1, 1, D)


def undo(normalise: Normalisation, y: Tensor) -> Tensor:
    """x for x' = scale (x - mean) W."""
    matrix = torch.eye(D) if normalise.matrix is None else normalise.matrix
    matrix = torch.diag(matrix) if matrix.ndim == 1 else matrix
    return torch.linalg.solve(matrix, y.T).T / normalise.scale + normalise.mean


@pytest.mark.parametrize("whitening", WHITENINGS)
def test_what_is_trained_on_has_mean_zero_and_mean_square_d(whitening: Whitening) -> None:
    x = uneven(4000, 0)
    y = fit(x.split(1000), whitening)(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(D), atol=1e-3, rtol=0)
    assert float(y.square().sum(1).mean()) == pytest.approx(D, rel=1e-3)
    if whitening == "dimension":
        torch.testing.assert_close(y.var(0), torch.ones(D), atol=1e-2, rtol=0)
    if whitening == "pca":
        torch.testing.assert_close(torch.cov(y.T), torch.eye(D), atol=2e-2, rtol=0)
    if whitening == "soft_pca":
        before, after = (torch.linalg.eigvalsh(torch.cov(rows.T)) for rows in (x, y))
        softened = before**0.3  # of the spread, a power of 0.7 is divided away: 0.3 stays
        torch.testing.assert_close(after, softened * D / softened.sum(), atol=0, rtol=2e-2)


@pytest.mark.parametrize("whitening", ["dimension", "pca", "soft_pca"])
def test_a_dimension_that_never_varies_is_not_blown_up(whitening: Whitening) -> None:
    x = activations(1000, 0)
    x[:, 3] = 7.0
    normalise = fit([x], whitening)
    assert normalise.matrix is not None
    assert torch.isfinite(normalise.matrix).all()
    assert normalise(x).abs().max() < 100


def in_training(architecture: str, y: Tensor) -> LinearSae:
    """An SAE as it is in the middle of training, on normalised activations."""
    sae = settings(architecture, k=5).build(D, F).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    sae.reset_parameters(generator)
    sae.pre_bias.normal_(0, 0.3, generator=generator)
    sae.encoder.bias.normal_(0, 0.3, generator=generator)
    sae.calibrate([y])
    return sae


@pytest.mark.parametrize("whitening", WHITENINGS)
@pytest.mark.parametrize("architecture", [entry.name for entry in ARCHITECTURES])
def test_the_folded_sae_chooses_the_same_features_and_reconstructs_the_same(
    architecture: str, whitening: Whitening
) -> None:
    x = uneven(500, 1)
    normalise = fit([x], whitening)
    before = in_training(architecture, normalise(x))
    after = copy.deepcopy(before)
    normalise.fold(after)
    code, its_code = before.encode(normalise(x)), after.encode(x)
    assert ((code > 0) == (its_code > 0)).float().mean() > 0.9999
    torch.testing.assert_close(
        after.decode(its_code), undo(normalise, before.decode(code)), rtol=1e-3, atol=1e-2 * float(x.std())
    )
    norms = after.decoder.weight.norm(dim=0)
    if whitening == "none" or after.features_stand_alone:
        torch.testing.assert_close(norms, torch.ones(F))
    else:
        torch.testing.assert_close(its_code, code / normalise.scale, rtol=1e-3, atol=1e-3 / normalise.scale)
        assert float(norms.square().mean()) == pytest.approx(1, rel=0.5)
        assert float(norms.std()) > 0.05


@pytest.mark.parametrize("architecture", ["relu", "jumprelu"])
def test_a_feature_without_a_direction_is_not_folded_into_nan(architecture: str) -> None:
    x = uneven(500, 1)
    normalise = fit([x], "dimension")
    sae = in_training(architecture, normalise(x))
    with torch.no_grad():
        sae.decoder.weight[:, 3] = 0
    normalise.fold(sae)
    assert all(tensor.isfinite().all() for tensor in sae.state_dict().values())
    assert (sae.encode(x)[:, 3] == 0).all()
    assert (sae.encode(x) > 0).any()


@pytest.mark.parametrize("whitening", ["dimension", "pca", "soft_pca"])
def test_an_sae_trained_on_whitened_activations_reads_raw_ones(tmp_path: Path, whitening: Whitening) -> None:
    quick = TrainConfig(
        TopK(k=4), hidden_dim=64, steps=200, batch_size=256, warmup_steps=20, whitening=whitening
    )
    sae, _ = train(uneven(4000, 0), quick)
    x = uneven(1000, 1)
    assert evaluate(sae, [x]).scores().explained_variance > 0.6
    for form, target in (("fluxscope", tmp_path / "sae_best.pt"), ("dictionary_learning", tmp_path / "dl")):
        again, _ = formats.load(formats.save(target, sae, form=form))
        torch.testing.assert_close(again.encode(x), sae.encode(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(again(x)[0], sae(x)[0], rtol=1e-4, atol=1e-3)
