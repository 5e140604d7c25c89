"""SAEs side by side: what the whole says is what its members say."""

import pytest
import torch
from synthetic import activations

from fluxscope.sae.batch_topk import BatchTopK
from fluxscope.sae.ensemble import joined
from fluxscope.sae.formats import load, save
from fluxscope.sae.train import TrainConfig, train


@pytest.fixture(scope="module")
def members():
    x = activations(3000, 0)
    quick = {"steps": 100, "batch_size": 256, "warmup_steps": 10, "whitening": "soft_pca"}
    return [train(x, TrainConfig(BatchTopK(k), f, seed=k, **quick))[0] for k, f in ((3, 32), (5, 48))]


def test_the_whole_has_every_members_features_and_the_mean_of_their_reconstructions(members, tmp_path):
    x, whole = activations(500, 1), joined(members)
    code = whole.encode(x)
    assert code.shape == (500, 80)
    for member, own in zip(members, (slice(0, 32), slice(32, 80)), strict=True):
        theirs = member.encode(x)
        assert theirs.any()
        assert torch.equal(code[:, own] > 0, theirs > 0)
        written = theirs * member.decoder.weight.norm(dim=0) / 2  # the length that the feature writes
        torch.testing.assert_close(code[:, own], written, rtol=1e-4, atol=1e-5)
    mean = torch.stack([member(x)[0] for member in members]).mean(0)
    torch.testing.assert_close(whole(x)[0], mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole.decoder.weight.norm(dim=0), torch.ones(80))
    strict = joined(members, threshold=2.0).encode(x)
    assert (strict > 0).sum() < (code > 0).sum()
    assert torch.equal(strict[strict > 0], code[strict > 0])
    again, _ = load(save(tmp_path / "sae_best.pt", whole))
    assert torch.equal(again.encode(x), code)
