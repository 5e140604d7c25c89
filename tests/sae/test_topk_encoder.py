"""Rescored means: the latents that fp32 chooses. Also where bf16 alone would choose others."""

import pytest
import torch
from torch import Tensor

from fluxscope.sae.largest import Scratch
from fluxscope.sae.topk_encoder import bound_rows, bound_weights, encode_topk, encode_topk_reference

B, D, F, K = 300, 64, 1024, 8


def problem(seed: int, crowded: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """(centred, encoder, bias); crowded: hundreds of latents nearly tie, which bf16 can't tell apart."""
    generator = torch.Generator().manual_seed(seed)
    centred = torch.randn(B, D, generator=generator)
    encoder = torch.randn(F, D, generator=generator) / D**0.5
    bias = 0.1 * torch.randn(F, generator=generator)
    if crowded:
        encoder = encoder[:4].repeat(F // 4, 1) + 1e-3 * encoder
    return centred, encoder, bias


def chosen(feature: Tensor) -> Tensor:
    return feature.sort(dim=1).values


@pytest.mark.parametrize("precision", ["exact", "rescored"])
@pytest.mark.parametrize("crowded", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_latents_are_those_of_fp32(precision: str, crowded: bool, seed: int) -> None:
    centred, encoder, bias = problem(seed, crowded)
    ours = encode_topk(centred, encoder, bias, K, precision, Scratch())
    # In float64 no rounding decides; pairs closer than fp32 can tell are let go.
    exact = encode_topk_reference(centred.double(), encoder.double(), bias.double(), K + 1)
    clear = exact.value[:, K - 1] - exact.value[:, K] > 1e-5
    assert clear.float().mean() > 0.9
    assert torch.equal(chosen(ours.feature)[clear], chosen(exact.feature[:, :K])[clear])
    reference = encode_topk_reference(centred, encoder, bias, K)
    torch.testing.assert_close(
        ours.value.sort(1).values, reference.value.sort(1).values, rtol=1e-4, atol=1e-5
    )


def test_crowded_rows_fail_their_certificate_and_bf16_alone_gets_them_wrong() -> None:
    centred, encoder, bias = problem(0, crowded=True)
    assert encode_topk(centred, encoder, bias, K, "rescored", Scratch()).redone > 0
    rough = encode_topk(centred, encoder, bias, K, "bf16", Scratch())
    reference = encode_topk_reference(centred, encoder, bias, K)
    assert not torch.equal(chosen(rough.feature), chosen(reference.feature))


def test_clear_rows_need_no_second_product() -> None:
    generator = torch.Generator().manual_seed(0)
    encoder = torch.nn.functional.normalize(torch.randn(F, D, generator=generator), dim=1)
    centred = 10 * encoder[torch.arange(B * 8).view(B, 8) % F].sum(1)
    assert encode_topk(centred, encoder, torch.zeros(F), 2, "rescored", Scratch()).redone < B / 4


@pytest.mark.parametrize("seed", range(3))
def test_the_bf16_product_bounds_every_pre_activation(seed: int) -> None:
    centred, encoder, bias = problem(seed)
    bias = bias * torch.logspace(-3, 3, F)
    scratch = Scratch()
    rows, weights = bound_rows(centred, scratch), bound_weights(encoder, bias, scratch)
    bound = (rows @ weights.T).double()
    exact = centred.double() @ encoder.double().T + bias.double()
    assert (bound + bound.abs() * 2**-8 >= exact).all()
    assert (bound - exact).mean() < 0.1 * exact.std() + 0.01 * bias.abs().mean()


def test_more_candidates_than_latents() -> None:
    centred, encoder, bias = problem(0)
    ours = encode_topk(centred, encoder[:20], bias[:20], K, "rescored", Scratch())
    reference = encode_topk_reference(centred, encoder[:20], bias[:20], K)
    torch.testing.assert_close(ours.value.sort(1).values, reference.value.sort(1).values)
