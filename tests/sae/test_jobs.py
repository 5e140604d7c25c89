"""Training in folders: the files it leaves, and that killing it changes nothing."""

from pathlib import Path

import pytest
import torch
from synthetic import activations

from fluxscope import files
from fluxscope.errors import FluxscopeError
from fluxscope.sae.batch_topk import BatchTopK
from fluxscope.sae.data import InMemory
from fluxscope.sae.formats import load
from fluxscope.sae.jobs import Job, folder_name, train_jobs
from fluxscope.sae.jumprelu import JumpReLU
from fluxscope.sae.matryoshka import Matryoshka
from fluxscope.sae.metrics import evaluate
from fluxscope.sae.relu import ReLU
from fluxscope.sae.topk import TopK
from fluxscope.sae.train import TrainConfig

CONFIGS = (
    TrainConfig(TopK(k=3), hidden_dim=48, steps=60, batch_size=64, warmup_steps=5, log_every=10),
    TrainConfig(BatchTopK(k=2), hidden_dim=32, steps=40, batch_size=64, warmup_steps=5, log_every=10),
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
    quick = TrainConfig(TopK(k=2), hidden_dim=32, steps=2, batch_size=64)
    train_jobs(source(), [Job(tmp_path, quick, {})], held_out)
    with pytest.raises(FluxscopeError, match="other settings"):
        train_jobs(source(), [Job(tmp_path, TrainConfig(TopK(k=3), hidden_dim=32, steps=2), {})], held_out)
    with pytest.raises(FluxscopeError, match="held-out"):
        train_jobs(source(), [Job(tmp_path, quick, {})], [])


def test_folder_names_are_those_that_readers_look_for() -> None:
    assert (
        folder_name("layer15", 14, TrainConfig(TopK(k=16), hidden_dim=1024), 128, "now")
        == "sae_training_layer15_t14_topk16_x8_now"
    )
    assert "_relu0.15_x" in folder_name("layer15", 14, TrainConfig(ReLU(l1_coeff=0.15)), 128, "now")
    assert "_jumprelu0.003_x" in folder_name("layer15", 14, TrainConfig(JumpReLU()), 128, "now")
    matryoshka = TrainConfig(Matryoshka(k=16))
    assert "_topk16_x" in folder_name("layer15", 14, matryoshka, 128, "now"), "readers look for topk<k>"


def test_a_folder_that_an_older_version_began_goes_on(tmp_path: Path) -> None:
    """Those versions wrote the settings of every architecture into config.json."""
    held_out, quick = [activations(300, 1)], TrainConfig(TopK(k=2), hidden_dim=32, steps=2, batch_size=64)
    train_jobs(source(), [Job(tmp_path, quick, {"layer": 15})], held_out)
    written = files.read_json(tmp_path / "config.json")
    assert written["training"] == quick.to_json()
    older = written["training"] | {"levels": [], "l1_coeff": 0.05, "resample_every": None}
    files.write_json(tmp_path / "config.json", written | {"training": older})
    train_jobs(source(), [Job(tmp_path, quick, {"layer": 15})], held_out)
    for wrong in (written | {"training": older | {"k": 3}}, {"training": []}, [], written | {"entries": {}}):
        files.write_json(tmp_path / "config.json", wrong)
        with pytest.raises(FluxscopeError, match="other settings"):
            train_jobs(source(), [Job(tmp_path, quick, {"layer": 15})], held_out)
