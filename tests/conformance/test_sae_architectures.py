"""Every SAE architecture keeps what its parent class and the trainer promise."""

import pytest
import torch

from fluxscope.sae import ARCHITECTURES, LinearSae, encode_sparse
from fluxscope.sae.data import InMemory
from fluxscope.sae.train import TrainConfig, Trainer
from fluxscope.sae.train_config import build

D, F = 12, 64


@pytest.fixture(params=ARCHITECTURES, ids=lambda cls: cls.architecture)
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param.architecture


def ready(architecture: str, x: torch.Tensor) -> LinearSae:
    sae = build(D, TrainConfig(architecture, hidden_dim=F, k=4))
    sae.calibrate([x])
    return sae


def test_it_is_built_again_from_its_config(architecture: str) -> None:
    sae = build(D, TrainConfig(architecture, hidden_dim=F, k=4))
    again = type(sae).from_config(D, F, sae.config())
    assert again.config() == sae.config()
    assert again.state_dict().keys() == sae.state_dict().keys()


def test_codes_are_never_negative_and_the_same_dense_or_sparse(architecture: str) -> None:
    x = torch.randn(70, D, generator=torch.Generator().manual_seed(0))
    sae = ready(architecture, x)
    code = sae.encode(x.view(2, 35, D)).detach()
    assert code.shape == (2, 35, F)
    assert (code >= 0).all()
    assert torch.equal(encode_sparse(sae, x, chunk=32).to_dense(), code.view(70, F))
    reconstruction, again = sae(x)
    assert torch.equal(again.detach(), code.view(70, F))
    torch.testing.assert_close(reconstruction, sae.decode(again))


def test_training_lowers_the_loss_and_keeps_directions_at_unit_norm(architecture: str) -> None:
    directions = torch.randn(30, D, generator=torch.Generator().manual_seed(0))
    weights = torch.rand(3000, 30, generator=torch.Generator().manual_seed(1))
    source = InMemory((weights * (weights > 0.9)) @ directions + 7, 256, seed=0)
    config = TrainConfig(architecture, hidden_dim=F, k=4, steps=80, warmup_steps=5, log_every=1, lr=3e-3)
    trainer = Trainer(config, source.normalisation)
    logs = [trainer.step(source.batch(step)) for step in range(80)]
    explained = [log["explained_variance"] for log in logs if log]
    assert explained[-1] > explained[0] + 0.1
    sae = trainer.finish([source.batch(0)])
    torch.testing.assert_close(sae.decoder.weight.norm(dim=0), torch.ones(F))


def test_changing_the_units_of_activations_changes_those_of_codes(architecture: str) -> None:
    x = torch.randn(50, D, generator=torch.Generator().manual_seed(0))
    sae = ready(architecture, x)
    code = sae.encode(x).detach()
    with torch.no_grad():
        sae.pre_bias.mul_(8)
        sae.encoder.bias.mul_(8)
        sae.scale_codes(8.0)
    torch.testing.assert_close(sae.encode(8 * x).detach(), 8 * code)
