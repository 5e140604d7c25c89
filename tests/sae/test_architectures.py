"""What every SAE architecture promises."""

import pytest
import torch

from fluxscope.errors import CheckpointError
from fluxscope.sae import (
    BatchTopKSparseAutoencoder,
    MatryoshkaSparseAutoencoder,
    SparseAutoencoder,
    TopKSparseAutoencoder,
    jumprelu,
)


def test_the_state_dict_is_the_checkpoints() -> None:
    for sae in (TopKSparseAutoencoder(8, 24, 3), SparseAutoencoder(8, 24, l1_coeff=0.01)):
        shapes = {name: tuple(tensor.shape) for name, tensor in sae.state_dict().items()}
        assert shapes == {
            "pre_bias": (8,),
            "encoder.weight": (24, 8),
            "encoder.bias": (24,),
            "decoder.weight": (8, 24),
        }


def test_topk_follows_its_formula() -> None:
    sae = TopKSparseAutoencoder(8, 24, 3)
    sae.pre_bias.data.normal_()
    sae.encoder.bias.data.normal_()
    x = torch.randn(2, 5, 8)
    reconstruction, code = sae(x)
    pre = torch.relu((x - sae.pre_bias) @ sae.encoder.weight.T + sae.encoder.bias)
    smallest_kept = pre.topk(3, dim=-1).values[..., -1:]
    torch.testing.assert_close(code, torch.where(pre >= smallest_kept, pre, 0.0))
    torch.testing.assert_close(reconstruction, code @ sae.decoder.weight.T + sae.pre_bias)
    assert ((code > 0).sum(-1) <= 3).all()


def test_relu_keeps_all_positive_pre_activations() -> None:
    sae = SparseAutoencoder(8, 24)
    x = torch.randn(5, 8)
    torch.testing.assert_close(sae.encode(x), torch.relu(sae.pre_activations(x)))


def test_normalize_decoder_gives_unit_columns() -> None:
    sae = SparseAutoencoder(8, 24)
    sae.decoder.weight.data.mul_(3)
    sae.normalize_decoder()
    torch.testing.assert_close(sae.decoder.weight.norm(dim=0), torch.ones(24))


def test_code_carries_gradients() -> None:
    sae = TopKSparseAutoencoder(8, 24, 3)
    reconstruction, _ = sae(torch.randn(5, 8))
    reconstruction.square().sum().backward()
    assert all(parameter.grad is not None for parameter in sae.parameters())


@pytest.mark.parametrize("k", [0, 25])
def test_k_beyond_the_width_is_refused(k: int) -> None:
    with pytest.raises(CheckpointError, match=f"k = {k}"):
        TopKSparseAutoencoder(8, 24, k)


def test_batch_topk_keeps_k_a_token_on_the_tokens_it_was_calibrated_on() -> None:
    sae = BatchTopKSparseAutoencoder(8, 64, 5)
    x = torch.randn(200, 8)
    with pytest.raises(CheckpointError, match="no threshold"):
        sae.encode(x)
    sae.calibrate([x[:70], x[70:]])
    code = sae.encode(x)
    assert float((code > 0).sum()) == 200 * 5
    assert len(set((code > 0).sum(1).tolist())) > 1, "tokens share latents out among themselves"


def test_matryoshka_levels_ascend_to_the_width() -> None:
    assert MatryoshkaSparseAutoencoder(8, 64, 5).levels == (4, 8, 16, 32, 64)
    with pytest.raises(CheckpointError, match="ascend"):
        MatryoshkaSparseAutoencoder(8, 64, 5, [32, 16, 64])


def test_jumprelu_gradients_are_the_papers_estimates() -> None:
    settings = jumprelu.JumpReLU(l0_coeff=0.5)
    sae = settings.build(8, 24)
    x = torch.randn(50, 8)
    loss, reconstruction, code = settings.loss(sae, x, warmth=1.0)
    loss.backward()
    pre = torch.relu(sae.pre_activations(x)).detach()
    threshold = sae.threshold.detach()
    torch.testing.assert_close(code.detach(), torch.where(pre > threshold, pre, 0.0))
    window = (((pre - threshold).abs() < jumprelu.BANDWIDTH / 2) & (pre > 0)) / jumprelu.BANDWIDTH
    d_code = 2 * (reconstruction - x).detach() @ sae.decoder.weight.detach() / x.numel()
    expected = -(threshold * d_code * window).sum(0) - 0.5 * window.sum(0) / len(x)
    torch.testing.assert_close(sae.threshold.grad, expected)
    assert window.any()
