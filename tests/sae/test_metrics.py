"""Scores against their plain definitions."""

import pytest
import torch

from fluxscope.sae import SparseCodes, TopKSparseAutoencoder
from fluxscope.sae.metrics import Evaluation, evaluate, largest_decoder_cosines


def test_explained_variance_is_that_of_the_whole_corpus() -> None:
    x = torch.randn(50, 8) * torch.linspace(0.1, 5, 50)[:, None] + 100
    sae = TopKSparseAutoencoder(8, 24, 3)
    sae.pre_bias.data.fill_(100)
    reconstruction, code = (part.detach().double() for part in sae(x))
    scores = evaluate(sae, [x[:10], x[10:]], chunk=7).scores()
    y, centre = x.double(), x.double().mean(0)
    error, variance = (y - reconstruction).square().sum(), (y - centre).square().sum()
    size = (reconstruction - centre).square().sum()
    assert scores.explained_variance == pytest.approx(float(1 - error / variance), rel=1e-6)
    assert scores.norm_ratio == pytest.approx(float((size / variance).sqrt()), rel=1e-6)
    overlap = ((reconstruction - centre) * (y - centre)).sum()
    assert scores.relative_bias == pytest.approx(float(size / overlap), rel=1e-6)
    assert scores.l0 == pytest.approx(float((code > 0).sum()) / 50)
    assert scores.n_tokens == 50


def test_shares_of_dead_and_dense_features() -> None:
    code = torch.zeros(1000, 4)
    code[:, 0] = 1
    code[:20, 1] = 1
    code[:5, 2] = 1
    evaluation = Evaluation(3, 4)
    evaluation.update(torch.randn(1000, 3), torch.zeros(1000, 3), SparseCodes.from_dense(code))
    scores = evaluation.scores()
    assert (scores.dead, scores.nearly_dead, scores.dense_1, scores.dense_10) == (0.25, 0.25, 0.5, 0.25)


def test_largest_decoder_cosines_ignore_the_feature_itself() -> None:
    sae = TopKSparseAutoencoder(8, 24, 3)
    sae.decoder.weight.data[:, 5] = 2 * sae.decoder.weight.data[:, 17]
    found = largest_decoder_cosines(sae, block=7)
    unit = torch.nn.functional.normalize(sae.decoder.weight.detach(), dim=0)
    cosines = unit.T @ unit - 2 * torch.eye(24)
    torch.testing.assert_close(found, cosines.amax(1))
    assert found[5] == pytest.approx(1.0)
