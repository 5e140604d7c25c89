"""Sparse codes say the same as dense ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxscope.sae import SparseAutoencoder, SparseCodes, TopKSparseAutoencoder, encode_sparse


def random_code(n_tokens: int, n_features: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.relu(torch.randn(n_tokens, n_features, generator=generator) - 1)


@settings(max_examples=30, deadline=None)
@given(n_tokens=st.integers(0, 7), n_features=st.integers(1, 9), seed=st.integers(0, 99))
def test_dense_and_sparse_are_one(n_tokens: int, n_features: int, seed: int) -> None:
    dense = random_code(n_tokens, n_features, seed)
    codes = SparseCodes.from_dense(dense)
    assert torch.equal(codes.to_dense(), dense)
    assert (codes.value > 0).all()
    assert codes.l0() * max(n_tokens, 1) == pytest.approx(float((dense > 0).sum()))
    again = SparseCodes.from_numpy(*codes.numpy(), n_features)
    assert torch.equal(again.to_dense(), dense)
    for feature_id in range(n_features):
        assert torch.equal(codes.column(feature_id), dense[:, feature_id])


def test_features_ascend_within_a_token_and_zeros_are_dropped() -> None:
    indices = torch.tensor([[5, 0, 3], [2, 4, 1]])
    values = torch.tensor([[1.0, 2.0, 0.0], [0.5, 0.0, 3.0]])
    codes = SparseCodes.from_topk(indices, values, 6)
    assert codes.indptr.tolist() == [0, 2, 4]
    assert codes.feature.tolist() == [0, 5, 1, 2]
    assert codes.value.tolist() == [2.0, 1.0, 3.0, 0.5]
    assert (codes.indptr.dtype, codes.feature.dtype) == (torch.int64, torch.int32)


def test_rows_and_concatenate_are_inverse() -> None:
    dense = random_code(11, 6, 1)
    codes = SparseCodes.from_dense(dense)
    parts = [codes.rows(slice(0, 4)), codes.rows(slice(4, 4)), codes.rows(slice(4, None))]
    assert torch.equal(parts[2].to_dense(), dense[4:])
    assert torch.equal(SparseCodes.concatenate(parts).to_dense(), dense)


def test_max_over_tokens_of_equal_and_of_unequal_groups() -> None:
    dense = random_code(12, 5, 2)
    codes = SparseCodes.from_dense(dense)
    assert torch.equal(codes.max_over_tokens(4), dense.view(3, 4, 5).amax(1))
    groups = torch.tensor([0] * 5 + [1] * 7)
    assert torch.equal(codes.max_over_tokens(groups), torch.stack([dense[:5].amax(0), dense[5:].amax(0)]))


@pytest.mark.parametrize("sae", [TopKSparseAutoencoder(32, 96, 5), SparseAutoencoder(32, 96, 0.1)])
@pytest.mark.parametrize("n_tokens", [1, 64, 257, 600])
def test_encoding_in_chunks_gives_the_dense_code_bit_for_bit(sae: torch.nn.Module, n_tokens: int) -> None:
    x = torch.randn(n_tokens, 32, generator=torch.Generator().manual_seed(3))
    codes = encode_sparse(sae, x, chunk=256)
    assert torch.equal(codes.to_dense(), sae.encode(x).detach())


def test_leading_dimensions_are_flattened() -> None:
    sae = TopKSparseAutoencoder(8, 24, 3)
    x = torch.randn(2, 5, 8)
    assert torch.equal(encode_sparse(sae, x).to_dense(), sae.encode(x).detach().reshape(10, 24))
