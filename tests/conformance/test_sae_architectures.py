"""Every SAE architecture keeps what its parent class, the trainer, the formats and the commands promise."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from fluxscope.sae import ARCHITECTURES, LinearSae, encode_sparse
from fluxscope.sae.architecture import Architecture
from fluxscope.sae.data import InMemory
from fluxscope.sae.formats import load, save
from fluxscope.sae.jobs import folder_name
from fluxscope.sae.table import Entry, Sparsity, named, sparsity_of
from fluxscope.sae.train import TrainConfig, Trainer
from tests.sae.synthetic import settings

D, F, K = 12, 64, 4
X = torch.randn(70, D, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=ARCHITECTURES, ids=lambda entry: entry.name)
def entry(request: pytest.FixtureRequest) -> Entry:
    return request.param


@pytest.fixture
def chosen(entry: Entry) -> Architecture:
    return settings(entry.name, K)


def ready(chosen: Architecture) -> LinearSae:
    """A calibrated SAE away from its start."""
    sae = chosen.build(D, F)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.1 * torch.rand(parameter.shape, generator=torch.Generator().manual_seed(1)))
    sae.calibrate([X])
    assert sae.calibrated
    return sae


def source() -> InMemory:
    directions = torch.randn(30, D, generator=torch.Generator().manual_seed(0))
    weights = torch.rand(3000, 30, generator=torch.Generator().manual_seed(1))
    return InMemory((weights * (weights > 0.9)) @ directions + 7, 256, seed=0)


def assert_same_state(ours: LinearSae, theirs: LinearSae) -> None:
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name


def test_the_table_says_what_the_file_says(entry: Entry) -> None:
    kind = entry.load()
    assert issubclass(kind, Architecture)
    assert kind().name == kind.sae.architecture == entry.name
    assert named(entry.name) is entry
    assert sparsity_of(kind()) is entry.sparsity
    own, shared = ({f.name for f in fields(c)} for c in (kind, TrainConfig))
    assert entry.sparsity.setting in own
    assert not own & shared, "config.json holds both side by side"


def test_its_classes_are_final(entry: Entry) -> None:
    kind = entry.load()
    assert getattr(kind, "__final__", False)
    assert getattr(kind.sae, "__final__", False)


def test_names_and_flags_are_not_shared() -> None:
    assert len({entry.name for entry in ARCHITECTURES}) == len(ARCHITECTURES)
    sparsities: set[Sparsity] = {entry.sparsity for entry in ARCHITECTURES}
    assert len({sparsity.flag for sparsity in sparsities}) == len(sparsities)


def test_the_table_is_read_without_torch() -> None:
    code = "import sys; import fluxscope.sae.table, fluxscope.commands.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_it_is_swept_by_its_sparsity(entry: Entry, chosen: Architecture) -> None:
    first, last = entry.sparsity.sweep[0], entry.sparsity.sweep[-1]
    swept = [entry.sparsity.given(chosen, value) for value in (first, last)]
    assert [entry.sparsity.value(each) for each in swept] == [first, last]
    names = [folder_name("layer15", 14, TrainConfig(each), 128, "1") for each in swept]
    assert f"{first:g}_x6_1" in names[0] and f"{last:g}_x6_1" in names[1]
    assert entry.sparsity.given(swept[0], entry.sparsity.value(chosen)) == chosen


def test_it_is_built_again_from_its_config(chosen: Architecture) -> None:
    sae = chosen.build(D, F)
    again = type(sae).from_config(D, F, sae.config())
    assert type(again) is chosen.sae
    assert again.config() == sae.config()
    assert again.state_dict().keys() == sae.state_dict().keys()
    assert sae.config()["architecture"] == chosen.name


def test_it_is_written_and_read_in_the_native_format(chosen: Architecture, tmp_path: Path) -> None:
    sae = ready(chosen)
    again, info = load(save(tmp_path / "sae_best.pt", sae, {"layer": 15}))
    assert type(again) is type(sae)
    assert (info.architecture, info.layer) == (chosen.name, 15)
    assert again.config() == sae.config()
    assert_same_state(again, sae)
    assert torch.equal(again.encode(X), sae.encode(X))


def test_codes_are_never_negative_and_the_same_dense_or_sparse(chosen: Architecture) -> None:
    sae = ready(chosen)
    code = sae.encode(X.view(2, 35, D)).detach()
    assert code.shape == (2, 35, F)
    assert (code >= 0).all()
    assert (code > 0).any()
    assert torch.equal(encode_sparse(sae, X, chunk=32).to_dense(), code.view(70, F))
    reconstruction, again = sae(X)
    assert torch.equal(again.detach(), code.view(70, F))
    torch.testing.assert_close(reconstruction, sae.decode(again))


def test_training_lowers_the_loss_and_keeps_what_constrains_it(chosen: Architecture) -> None:
    config = TrainConfig(chosen, hidden_dim=F, steps=80, warmup_steps=5, log_every=1, lr=3e-3)
    data = source()
    trainer = Trainer(config, data.normalisation)
    logs = [trainer.step(data.batch(step)) for step in range(80)]
    explained = [log["explained_variance"] for log in logs if log]
    assert explained[-1] > explained[0] + 0.1
    before = {name: tensor.clone() for name, tensor in trainer.sae.state_dict().items()}
    trainer.sae.constrain()
    for name, tensor in trainer.sae.state_dict().items():
        torch.testing.assert_close(tensor, before[name], msg=f"{name} was left unconstrained")
    sae = trainer.finish([data.batch(0)])
    torch.testing.assert_close(sae.decoder.weight.norm(dim=0), torch.ones(F))


def test_finishing_calibrates_a_copy_and_training_goes_on(chosen: Architecture) -> None:
    data = source()
    trainer = Trainer(TrainConfig(chosen, hidden_dim=F, steps=20, warmup_steps=5), data.normalisation)
    for step in range(10):
        trainer.step(data.batch(step))
    before = {name: tensor.clone() for name, tensor in trainer.sae.state_dict().items()}
    held_out = [data.batch(0)[:100], data.batch(1)]
    sae = trainer.finish(held_out)
    assert sae.calibrated
    for name, tensor in trainer.sae.state_dict().items():
        assert torch.equal(tensor, before[name]), f"finishing changed {name} of the SAE in training"
    if hasattr(chosen, "k"):
        x = torch.cat(held_out)
        assert float((sae.encode(x) > 0).sum()) / len(x) <= chosen.k + 0.01
    trainer.step(data.batch(10))


def test_a_training_that_was_stopped_goes_on_to_the_same_weights(
    chosen: Architecture, tmp_path: Path
) -> None:
    # Latents die and are revived within these steps, whatever the architecture does about them.
    config = TrainConfig(chosen, hidden_dim=F, steps=60, warmup_steps=5, dead_after_tokens=1000)
    data = source()
    whole, first = (Trainer(config, data.normalisation) for _ in range(2))
    for step in range(60):
        whole.step(data.batch(step))
    for step in range(25):
        first.step(data.batch(step))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = Trainer(config, data.normalisation)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for step in range(second.steps_done, 60):
        second.step(data.batch(step))
    assert_same_state(second.sae, whole.sae)
    assert torch.equal(second.silent_tokens, whole.silent_tokens)


def test_changing_the_units_of_activations_changes_those_of_codes(chosen: Architecture) -> None:
    sae = ready(chosen)
    code = sae.encode(X).detach()
    with torch.no_grad():
        sae.pre_bias.mul_(8)
        sae.encoder.bias.mul_(8)
        sae.scale_codes(8.0)
    torch.testing.assert_close(sae.encode(8 * X).detach(), 8 * code)
