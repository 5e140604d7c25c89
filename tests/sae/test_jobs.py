"""Training in folders: the files it leaves, and that killing it changes nothing."""

from pathlib import Path

import pytest
import torch
from synthetic import activations

from fluxscope import files
from fluxscope.errors import FluxscopeError
from fluxscope.sae.data import InMemory
from fluxscope.sae.formats import load
from fluxscope.sae.jobs import Job, folder_name, train_jobs
from fluxscope.sae.metrics import evaluate
from fluxscope.sae.train import TrainConfig

CONFIGS = (
    TrainConfig(hidden_dim=48, k=3, steps=60, batch_size=64, warmup_steps=5, log_every=10),
    TrainConfig("batch_topk", hidden_dim=32, k=2, steps=40, batch_size=64, warmup_steps=5, log_every=10),
)


def source() -> InMemory:
    return InMemory(activations(1500, 0), 64, seed=0)


def jobs(folder: Path) -> list[Job]:
    return [Job(folder / str(i), config, {"layer": 15, "timestep": 14}) for i, config in enumerate(CONFIGS)]


class Killed(Exception):
    pass


def test_a_killed_run_ends_as_one_that_was_not(tmp_path: Path) -> None:
    held_out = [activations(300, 1)]
    scores = train_jobs(source(), jobs(tmp_path / "whole"), held_out, save_every=20)

    def kill(step: int, logs: dict) -> None:
        if step == 33:
            raise Killed

    with pytest.raises(Killed):
        train_jobs(source(), jobs(tmp_path / "cut"), held_out, save_every=20, on_step=kill)
    steps: list[int] = []
    again = train_jobs(
        source(), jobs(tmp_path / "cut"), held_out, save_every=20, on_step=lambda step, _: steps.append(step)
    )
    assert again == scores
    assert steps[0] == 21
    for name in ("0", "1"):
        ours, theirs = (load(tmp_path / kind / name)[0].state_dict() for kind in ("cut", "whole"))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
        logs = [files.read_jsonl(tmp_path / kind / name / "log.jsonl") for kind in ("cut", "whole")]
        assert logs[0] == logs[1]


def test_the_files_say_what_the_sae_does(tmp_path: Path) -> None:
    held_out = [activations(300, 1)]
    scores = train_jobs(source(), jobs(tmp_path), held_out, save_every=20)
    for i, told in enumerate(scores):
        sae, info = load(tmp_path / str(i))
        assert evaluate(sae, held_out).scores() == told
        assert (info.layer, info.timestep) == (15, 14)
        assert info.config["explained_variance"] == told.explained_variance
        frequency = files.load_npy(tmp_path / str(i) / "frequency.npy")
        assert float(frequency.sum()) == pytest.approx(told.l0, rel=1e-4)


def test_folders_of_other_settings_are_refused(tmp_path: Path) -> None:
    held_out = [activations(300, 1)]
    quick = TrainConfig(hidden_dim=32, k=2, steps=2, batch_size=64)
    train_jobs(source(), [Job(tmp_path, quick, {})], held_out)
    with pytest.raises(FluxscopeError, match="other settings"):
        train_jobs(source(), [Job(tmp_path, TrainConfig(hidden_dim=32, k=3, steps=2), {})], held_out)
    with pytest.raises(FluxscopeError, match="held-out"):
        train_jobs(source(), [Job(tmp_path, quick, {})], [])


def test_folder_names_are_those_that_readers_look_for() -> None:
    assert (
        folder_name("layer15", 14, TrainConfig(k=16, hidden_dim=1024), 128, "now")
        == "sae_training_layer15_t14_topk16_x8_now"
    )
    assert "_relu0.15_x" in folder_name("layer15", 14, TrainConfig("relu", l1_coeff=0.15), 128, "now")
