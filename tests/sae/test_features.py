"""Questions about one SAE agree with its dense code."""

import pytest
import torch

from fluxscope.errors import FluxscopeError
from fluxscope.sae import TopKSparseAutoencoder
from fluxscope.sae.features import (
    compute_feature_activations,
    compute_feature_stats,
    encode_to_feature_map,
    extract_image_tokens,
    get_decoder_direction,
    get_encoder_direction,
)


@pytest.fixture
def sae() -> TopKSparseAutoencoder:
    return TopKSparseAutoencoder(8, 24, 3)


def test_image_tokens_first_or_last() -> None:
    activation = torch.arange(10.0).view(1, 5, 2)
    assert torch.equal(extract_image_tokens(activation, 3), activation[:, :3])
    assert torch.equal(extract_image_tokens(activation, 3, image_tokens_first=False), activation[:, 2:])
    with pytest.raises(FluxscopeError, match="5 tokens"):
        extract_image_tokens(activation, 6)


def test_maxima_statistics_and_maps_are_those_of_the_dense_code(sae: TopKSparseAutoencoder) -> None:
    activation = torch.randn(1, 20, 8)
    code = sae.encode(activation[0, :16]).detach()
    stats = compute_feature_stats(activation, sae, 16, token_chunk_size=5)
    torch.testing.assert_close(compute_feature_activations(activation, sae, 16), code.amax(0))
    torch.testing.assert_close(stats["max"], code.amax(0))
    torch.testing.assert_close(stats["mean"], code.mean(0))
    torch.testing.assert_close(stats["std"], code.std(0, correction=0), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(stats["sparsity"], (code == 0).float().mean(0))
    assert torch.equal(stats["l0_per_token"], (code > 0).sum(1))
    torch.testing.assert_close(encode_to_feature_map(activation, sae, 7, 16), code[:, 7])


def test_directions(sae: TopKSparseAutoencoder) -> None:
    assert get_decoder_direction(sae, 4) == pytest.approx(sae.decoder.weight[:, 4].detach().numpy())
    assert get_encoder_direction(sae, 4) == pytest.approx(sae.encoder.weight[4].detach().numpy())


def test_wrong_width_and_wrong_feature_are_named(sae: TopKSparseAutoencoder) -> None:
    with pytest.raises(FluxscopeError, match="9 wide, the SAE reads 8"):
        compute_feature_activations(torch.randn(4, 9), sae)
    with pytest.raises(FluxscopeError, match="no feature 24"):
        get_decoder_direction(sae, 24)
