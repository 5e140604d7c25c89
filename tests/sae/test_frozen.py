import torch

from fluxscope.sae.frozen import FrozenDecoder
from fluxscope.sae.topk import TopK
from fluxscope.sae.train import TrainConfig, train


def test_only_the_encoder_learns():
    x = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0)) @ torch.randn(
        8, 16, generator=torch.Generator().manual_seed(1)
    )
    settings = {"hidden_dim": 48, "steps": 200, "batch_size": 256, "log_every": 50, "seed": 3}
    config = TrainConfig(FrozenDecoder(TopK(k=4)), **settings)
    frozen, log = train(x, config)
    begun = config.build(16)
    begun.reset_parameters(torch.Generator().manual_seed(3))
    trained, free_log = train(x, TrainConfig(TopK(k=4), **settings))
    assert torch.allclose(frozen.decoder.weight, begun.decoder.weight, atol=1e-6)
    assert not torch.allclose(trained.decoder.weight, begun.decoder.weight, atol=1e-2)
    assert log[-1]["explained_variance"] > log[0]["explained_variance"] + 0.05
    assert free_log[-1]["explained_variance"] > log[-1]["explained_variance"] + 0.05
    assert log[-1]["l0"] == 4
