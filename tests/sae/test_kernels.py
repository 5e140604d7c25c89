"""Each kernel against its dense twin, and the gradients against finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from fluxscope.sae import auxk, kernels, largest
from fluxscope.sae.kernels import Weights
from fluxscope.sae.largest import Entries

B, D, F, K = 7, 5, 32, 4
LEVELS = [(), (8, 20, 32)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_weights() -> Weights:
    return Weights(random(D, seed=1), random(F, D, seed=2), random(F, seed=3), random(F, D, seed=4))


def zeros_like(weights: Weights) -> Weights:
    return Weights(*(torch.full_like(w, torch.nan) for w in tensors(weights)))


def tensors(weights: Weights) -> tuple[Tensor, ...]:
    return weights.pre_bias, weights.encoder, weights.bias, weights.decoder


def ragged(seed: int = 0) -> tuple[Tensor, Tensor]:
    """(columns, offsets) of rows with 0 to 3 entries."""
    counts = torch.tensor([2, 0, 3, 1])
    column = torch.tensor([31, 4, 9, 2, 17, 4])
    return column, torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])


def test_gathers_agree_with_their_twins() -> None:
    column, offsets = ragged()
    table, left, weight = random(F, D, seed=1), random(4, D, seed=2), random(6, seed=3)
    torch.testing.assert_close(
        kernels.weighted_rows(table, column, weight, offsets),
        kernels.weighted_rows_reference(table, column, weight, offsets),
    )
    torch.testing.assert_close(
        kernels.gather_dot(left, table, column, offsets),
        kernels.gather_dot_reference(left, table, column, offsets),
    )


def test_products_by_feature_agree_with_the_transpose() -> None:
    column, offsets = ragged()
    rows, weight = random(4, D, seed=1), random(6, seed=2)
    row = torch.arange(4).repeat_interleave(offsets.diff())
    out = torch.full((F, D), torch.nan, dtype=torch.float64)
    kernels.ByFeature.sort(column, F).product(weight, row, rows, out)
    dense = torch.zeros(4, F, dtype=torch.float64).index_put((row, column), weight)
    torch.testing.assert_close(out, dense.T @ rows)


@pytest.mark.parametrize("levels", LEVELS)
def test_step_agrees_with_autograd_on_the_dense_twin(levels: tuple[int, ...]) -> None:
    x, weights = random(B, D, seed=5), some_weights()
    grads = zeros_like(weights)
    code, entries = choose(x, weights)
    outcome = kernels.sparse_step(x, x - weights.pre_bias, entries, weights, grads, levels)

    leaves = Weights(*(w.clone().requires_grad_() for w in tensors(weights)))
    loss = kernels.sparse_step_reference(x, dense_code(x, leaves, code > 0), leaves, levels)
    expected = torch.autograd.grad(loss, tensors(leaves))
    torch.testing.assert_close(outcome.loss, loss.detach())
    torch.testing.assert_close(outcome.residual, x - weights.pre_bias - code @ weights.decoder)
    for ours, theirs in zip(tensors(grads), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("k", [2, 6, 50])
@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("block", [1024, 4])
def test_aux_step_agrees_with_autograd_on_its_twin(
    k: int, silent: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auxk, "BLOCK", block)
    monkeypatch.setattr(auxk, "_ROWS", 3)
    x, weights, dead = random(B, D, seed=5), some_weights(), torch.tensor([3, 8, 9, 20, 21, 30])
    if silent:  # four of the dead latents fire on one row each, two on none
        pre = (x - weights.pre_bias) @ weights.encoder[dead].T + weights.bias[dead]
        weights.bias[dead] -= pre.sort(0, descending=True).values[1]
        weights.bias[dead[:2]] -= 10
        assert 4 / (B * 6) < auxk.SPARSE_BELOW
    residual = random(B, D, seed=6)
    grads = Weights(*(torch.zeros_like(w) for w in tensors(weights)))
    loss = auxk.aux_step(x - weights.pre_bias, residual, dead, k, 0.3, weights, grads)

    leaves = Weights(*(w.clone().requires_grad_() for w in tensors(weights)))
    expected_loss = auxk.aux_step_reference(x, residual, dead, k, 0.3, leaves)
    expected = torch.autograd.grad(expected_loss, tensors(leaves))
    torch.testing.assert_close(loss, expected_loss.detach())
    for ours, theirs in zip(tensors(grads), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


class Step(torch.autograd.Function):
    """The hand-written step, as autograd sees it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: tuple[int, ...], *parts: Tensor) -> Tensor:
        weights = Weights(*parts)
        grads = zeros_like(weights)
        _, entries = choose(x, weights)
        outcome = kernels.sparse_step(x, x - weights.pre_bias, entries, weights, grads, levels)
        ctx.save_for_backward(*tensors(grads))
        return outcome.loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(grad * saved for saved in ctx.saved_tensors)


@pytest.mark.parametrize("levels", LEVELS)
def test_gradients_pass_gradcheck(levels: tuple[int, ...]) -> None:
    x = random(B, D, seed=5)
    leaves = tuple(w.requires_grad_() for w in tensors(some_weights()))
    assert gradcheck(lambda *parts: Step.apply(x, levels, *parts), leaves)


def choose(x: Tensor, weights: Weights) -> tuple[Tensor, Entries]:
    """The TopK code, dense and as entries that ascend within a row."""
    pre = torch.relu((x - weights.pre_bias) @ weights.encoder.T + weights.bias)
    feature = pre.topk(K, dim=1).indices.sort(dim=1).values
    value = pre.gather(1, feature)
    code = torch.zeros_like(pre).scatter(1, feature, value)
    return code, Entries.from_rows(feature, value)


def dense_code(x: Tensor, weights: Weights, mask: Tensor) -> Tensor:
    return ((x - weights.pre_bias) @ weights.encoder.T + weights.bias) * mask


@pytest.mark.parametrize(
    ("width", "k"),
    [(512, 8), (512, 16), (100, 8), (512, 200), (16, 16), (16384, 40), (8256, 64), (8208, 300)],
)
def test_largest_in_rows_are_the_largest(width: int, k: int) -> None:
    pre = random(20, width).float()
    value, index = largest.largest_in_rows(pre, k)
    expected, _ = largest.largest_in_rows_reference(pre, k)
    assert torch.equal(value.sort(1).values, expected.sort(1).values)
    assert torch.equal(pre.gather(1, index).relu(), value)
    assert all(len(set(row.tolist())) == k for row in index)


@pytest.mark.parametrize(("width", "count"), [(2048, 48), (16384, 60), (100, 30)])
def test_candidates_of_bf16_are_its_largest(width: int, count: int) -> None:
    pre = random(20, width).bfloat16()
    index = largest.candidates(pre, count)
    expected = pre.topk(count, dim=1).values
    assert torch.equal(pre.gather(1, index).sort(1, descending=True).values, expected)
    assert all(len(set(row.tolist())) == count for row in index)


def test_rows_with_few_positive_entries() -> None:
    pre = -random(20, 2048).float().abs()
    pre[:, 7] = 5
    value, index = largest.largest_in_rows(pre, 8)
    assert (value.sum(1) == 5).all()
    assert (index == 7).sum() == 20


def test_largest_in_rows_with_ties_names_each_entry_once() -> None:
    pre = torch.zeros(3, 512)
    pre[:, 100:140] = 1
    value, index = largest.largest_in_rows(pre, 16)
    assert (value == 1).all()
    assert all(len(set(row.tolist())) == 16 for row in index)


@pytest.mark.parametrize(("width", "count"), [(512, 160), (100, 60), (512, 9000)])
def test_largest_overall_is_the_batch_topk(width: int, count: int) -> None:
    pre = random(20, width).float()
    entries = largest.largest_overall(pre, count)
    row = torch.arange(20).repeat_interleave(entries.offsets.diff())
    dense = torch.zeros_like(pre).index_put((row, entries.feature), entries.value)
    assert torch.equal(dense, largest.largest_overall_reference(pre, count))
    assert (entries.value > 0).all()


def test_scratch_keeps_a_buffer_until_its_shape_changes() -> None:
    scratch, like = largest.Scratch(), torch.zeros(1)
    first = scratch.get("a", (3, 4), like)
    assert scratch.get("a", (3, 4), like) is first
    assert scratch.get("a", (3, 5), like).shape == (3, 5)
