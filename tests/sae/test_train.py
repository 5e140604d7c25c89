"""The trainer learns, repeats itself, and its SAEs read raw activations."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic import activations, settings

from fluxscope.errors import FluxscopeError
from fluxscope.sae import LinearSae, SparseAutoencoder, TopKSparseAutoencoder
from fluxscope.sae.data import InMemory
from fluxscope.sae.jumprelu import JumpReLU
from fluxscope.sae.matryoshka import Matryoshka
from fluxscope.sae.metrics import evaluate
from fluxscope.sae.normalisation import fit
from fluxscope.sae.relu import ReLU
from fluxscope.sae.table import named
from fluxscope.sae.topk import TopK
from fluxscope.sae.train import TrainConfig, Trainer, train, train_many

SMALL = TrainConfig(
    TopK(k=3), hidden_dim=64, steps=300, batch_size=256, warmup_steps=20, dead_after_tokens=5000
)


def test_topk_explains_held_out_activations_in_raw_space() -> None:
    sae, history = train(activations(8000, 0), SMALL)
    scores = evaluate(sae, [activations(2000, 1)]).scores()
    assert isinstance(sae, TopKSparseAutoencoder)
    assert scores.explained_variance > 0.75
    assert scores.l0 <= 3
    assert scores.dead < 0.1
    assert history[-1]["step"] == 300
    torch.testing.assert_close(sae.decoder.weight.norm(dim=0), torch.ones(64))


def test_relu_is_sparser_the_stronger_its_penalty() -> None:
    weak, strong = (
        train(activations(4000, 0), TrainConfig(ReLU(l1_coeff=c), 64, steps=200, batch_size=256))[0]
        for c in (0.05, 0.8)
    )
    held_out = [activations(1000, 1)]
    assert isinstance(strong, SparseAutoencoder)
    assert evaluate(strong, held_out).scores().l0 < 0.7 * evaluate(weak, held_out).scores().l0


def test_scaling_and_shifting_the_activations_changes_nothing_but_the_units() -> None:
    x = activations(2000, 0)
    quick = TrainConfig(TopK(k=3), hidden_dim=32, steps=20, batch_size=256)
    plain, _ = train(x, quick)
    moved, _ = train(8 * x + 5, quick)
    torch.testing.assert_close(moved.encode(8 * x + 5), 8 * plain.encode(x), rtol=1e-3, atol=1e-2)


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    x = activations(1000, 0)
    quick = TrainConfig(TopK(k=3), hidden_dim=32, steps=10, batch_size=128)
    np.save(tmp_path / "x.npy", x.numpy())
    first, _ = train(x, quick)
    second, _ = train(np.load(tmp_path / "x.npy", mmap_mode="r+"), quick)
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_normalisation_has_mean_zero_and_mean_square_d() -> None:
    x = activations(3000, 0)
    normalise = fit([x])
    y = normalise(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(16), atol=1e-4, rtol=0)
    assert float(y.square().sum(1).mean()) == pytest.approx(16, rel=1e-4)


def test_a_few_bad_rows_are_skipped_and_many_are_refused() -> None:
    x = activations(1000, 0)
    x[3, 0] = torch.nan
    x[4, 1] = torch.inf
    sae, _ = train(x, TrainConfig(TopK(k=3), hidden_dim=32, steps=5, batch_size=128))
    assert all(torch.isfinite(parameter).all() for parameter in sae.parameters())
    x[:11, 0] = torch.nan
    with pytest.raises(FluxscopeError, match="11 of 1000"):
        train(x, SMALL)


@pytest.mark.parametrize(
    ("x", "message"),
    [(torch.zeros(0, 8), "no activations"), (torch.ones(100, 8), "equal")],
)
def test_useless_activations_are_refused(x: torch.Tensor, message: str) -> None:
    with pytest.raises(FluxscopeError, match=message):
        train(x, SMALL)


def test_an_architecture_without_trainer_is_named() -> None:
    with pytest.raises(FluxscopeError, match="quantum"):
        named("quantum")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: TrainConfig(lr=0.0),
        lambda: TrainConfig(lr=-1e-3),
        lambda: TrainConfig(lr=float("nan")),
        lambda: TrainConfig(steps=0),
        lambda: TrainConfig(TopK(k=65), hidden_dim=64),
        lambda: TrainConfig(TopK(k=0)),
        lambda: ReLU(l1_coeff=-0.1),
        lambda: JumpReLU(l0_coeff=float("nan")),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(FluxscopeError, match=r"must be (at least|above|a finite)|k = 65"):
        wrong()


def test_prefixes_that_do_not_end_with_the_width_are_refused_before_training() -> None:
    with pytest.raises(FluxscopeError, match="ascend to 64"):
        TrainConfig(Matryoshka(k=3, levels=(16, 32)), hidden_dim=64)


def test_the_default_learning_rate_falls_with_the_number_of_features() -> None:
    peaks = [TrainConfig(hidden_dim=f).peak_lr() for f in (64, 12288, 49152)]
    assert peaks == pytest.approx([4e-3, 1e-3, 5e-4])
    assert TrainConfig(ReLU(), 2**14).peak_lr() == pytest.approx(2e-4)


def test_the_learning_rate_rises_stays_and_falls() -> None:
    config = TrainConfig(steps=100, warmup_steps=10, decay_share=0.2, lr=1.0)
    rates = [config.learning_rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10:80] == [1.0] * 70
    assert rates[99] == pytest.approx(0.05)


def assert_same_weights(ours: LinearSae, theirs: LinearSae) -> None:
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name


QUICK = {"hidden_dim": 64, "steps": 120, "batch_size": 128, "warmup_steps": 10}


@pytest.mark.parametrize("architecture", ["batch_topk", "matryoshka_batch_topk", "jumprelu"])
def test_the_other_architectures_learn_and_read_raw_activations(architecture: str) -> None:
    config = TrainConfig(JumpReLU(0.1) if architecture == "jumprelu" else settings(architecture, 3), **QUICK)
    sae, history = train(activations(4000, 0), config)
    scores = evaluate(sae, [activations(1000, 1)]).scores()
    assert sae.architecture == architecture
    assert scores.explained_variance > 0.4
    assert scores.l0 < 12
    if architecture != "jumprelu":
        assert scores.l0 == pytest.approx(3, abs=0.2)
        assert history[-1]["l0"] == pytest.approx(3)


def test_exact_and_rescored_choose_alike_and_so_learn_alike() -> None:
    x = activations(2000, 0)
    exact, _ = train(x, TrainConfig(TopK(3, precision="exact"), **QUICK))
    rescored, _ = train(x, TrainConfig(TopK(3, precision="rescored"), **QUICK))
    held_out = [activations(500, 1)]
    ours, theirs = (evaluate(sae, held_out).scores().explained_variance for sae in (exact, rescored))
    assert ours == pytest.approx(theirs, abs=0.02)


@pytest.mark.parametrize("most", [0.01, 1000.0])
def test_gradients_are_clipped_as_pytorch_clips_them(most: float) -> None:
    x = activations(128, 0)
    trainer = Trainer(TrainConfig(TopK(k=3), hidden_dim=32, batch_size=128, clip_norm=most), fit([x]))
    unclipped = Trainer(TrainConfig(TopK(k=3), hidden_dim=32, batch_size=128, clip_norm=1e9), fit([x]))
    for one in (trainer, unclipped):
        one.step(x)
    whole = list(unclipped.sae.parameters())
    torch.nn.utils.clip_grad_norm_(whole, most)
    for ours, theirs in zip(trainer.sae.parameters(), whole, strict=True):
        assert ours.grad is not None and theirs.grad is not None
        assert torch.equal(ours.grad, theirs.grad)


def test_several_saes_train_together_as_each_would_alone() -> None:
    x = activations(1000, 0)
    configs = [TrainConfig(TopK(3), **QUICK), TrainConfig(ReLU(), 32, steps=60, batch_size=128, seed=0)]
    together = train_many(InMemory(x, 128, seed=0), configs)
    for config, (sae, history) in zip(configs, together, strict=True):
        alone, its_history = train(x, config)
        assert_same_weights(sae, alone)
        assert history == its_history


@pytest.mark.parametrize("architecture", ["topk", "relu", "jumprelu"])
def test_a_trainer_that_was_stopped_goes_on_to_the_same_weights(tmp_path: Path, architecture: str) -> None:
    chosen = ReLU(resample_every=20) if architecture == "relu" else settings(architecture, 3)
    config = TrainConfig(chosen, dead_after_tokens=1500, **QUICK)
    source = InMemory(activations(1000, 0), 128, seed=0)
    whole = Trainer(config, source.normalisation)
    for step in range(config.steps):
        whole.step(source.batch(step))

    first = Trainer(config, source.normalisation)
    for step in range(50):
        first.step(source.batch(step))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = Trainer(config, source.normalisation)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    fresh = InMemory(activations(1000, 0), 128, seed=0)
    for step in range(second.steps_done, config.steps):
        second.step(fresh.batch(step))
    assert_same_weights(second.sae, whole.sae)


def test_dead_latents_of_relu_are_resampled() -> None:
    x = activations(2000, 0)
    config = TrainConfig(ReLU(l1_coeff=0.3, resample_every=30), dead_after_tokens=1000, **QUICK)
    source = InMemory(x, 128, seed=0)
    trainer = Trainer(config, source.normalisation)
    trainer.sae.encoder.bias.data[:20] = -100.0
    for step in range(31):
        trainer.step(source.batch(step))
    assert (trainer.sae.encoder.bias[:20] > -1).all()
    assert (trainer.silent_tokens[:20] < 1000).all()


def test_dead_latents_of_topk_are_revived_by_auxk() -> None:
    x = activations(2000, 0)
    source = InMemory(x, 128, seed=0)
    dead = {}
    for aux_coeff in (0.0, 1.0):
        config = TrainConfig(TopK(3, aux_coeff=aux_coeff), dead_after_tokens=500, **QUICK)
        trainer = Trainer(config, source.normalisation)
        trainer.sae.encoder.bias.data[:20] = -1.5
        for step in range(config.steps):
            trainer.step(source.batch(step))
        dead[aux_coeff] = int((trainer.silent_tokens[:20] >= 500).sum())
    assert dead[1.0] < dead[0.0]
