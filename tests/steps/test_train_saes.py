import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from fluxscope.config import make_config
from fluxscope.errors import ConfigError, FluxscopeError
from fluxscope.files import read_json
from fluxscope.progress import Reporter
from fluxscope.sae.formats import load
from fluxscope.sae.shards import ActivationStore
from fluxscope.sae.train import TrainConfig
from fluxscope.steps.train import Training, train
from fluxscope.training_commands import numbers, shapes_captions

QUICK = {"num_inference_steps": 3, "target_step_number": 2, "batch_size": 8}
FLAGS = [
    "--num-inference-steps=3",
    "--target-step-number=2",
    "--batch-size=8",
    "--pictures=40",
    "--layers=15",
]
FLAGS += ["--training-steps=30", "--expansion=2", "--k=4,8"]


def training(folder, **changes) -> Training:
    base = TrainConfig(hidden_dim=256, steps=30)
    settings = {"layers": (15,), "ks": (4, 8), "pictures": 40, "base": base, "stamp": "1"}
    return Training(**{**settings, **changes}, activations=folder / "activations", saes=folder)


def checkpoints(folder):
    return {k: load(folder / f"sae_training_layer15_t2_topk{k}_x2_1" / "sae_best.pt") for k in (4, 8)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    config = make_config(**QUICK)
    train(config, training(folder), Reporter(quiet=True), shapes_captions(config, 40))
    return folder


def test_the_saes_read_what_the_model_writes(trained):
    store = ActivationStore(trained / "activations" / "double.15.ff" / "step_1")
    assert (store.n_images, store.tokens_per_image, store.width) == (40, 64, 128)
    for k, (sae, info) in checkpoints(trained).items():
        assert (info.k, info.layer, info.timestep) == (k, 15, 2)
        x = store.read(range(36, 40)).float()
        reconstruction, code = sae(x)
        assert (code > 0).sum(-1).max() <= k
        error = (x - reconstruction).square().sum() / (x - x.mean((0, 1))).square().sum()
        assert error < 0.9


def test_the_scores_tell_what_the_model_does_with_the_reconstruction(trained):
    for record in read_json(trained / "scores_double.15.ff_t2_1.json"):
        assert record["spliced"]["n_images"] == 4
        assert record["spliced"]["velocity_vs_zero"] <= 1
        assert (trained / record["folder"] / "sae_best.pt").is_file()


def test_killed_and_run_again_it_ends_with_the_same_weights(trained, tmp_path):
    command = [sys.executable, "-m", "fluxscope", "train", *FLAGS, f"--saes-dir={tmp_path}"]
    command += [f"--activations-dir={tmp_path / 'activations'}", "--quiet"]
    process = subprocess.Popen(command, env=os.environ)
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        if list(tmp_path.glob("activations/double.15.ff/step_1/meta.json")):
            time.sleep(1.0)
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert subprocess.run(command).returncode == 0
    for k, (sae, _) in checkpoints(tmp_path).items():
        expected = checkpoints(trained)[k][0].state_dict()
        for name, tensor in sae.state_dict().items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


def test_a_disk_that_cannot_hold_the_activations_is_refused_beforehand(tmp_path, monkeypatch):
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(FluxscopeError, match="the activations take"):
        train(make_config(**QUICK), training(tmp_path), Reporter(quiet=True))
    assert not list(tmp_path.rglob("shard_*"))


def test_bad_options_are_clear_errors(tmp_path):
    with pytest.raises(ConfigError, match="too few"):
        train(make_config(**QUICK), training(tmp_path, pictures=3), Reporter(quiet=True))
    with pytest.raises(ConfigError, match="--k cannot be"):
        numbers("--k", "16,x")


def test_flux_shapes_trains_on_captions_of_its_own_world_unless_a_file_is_given():
    captions = shapes_captions(make_config(), 50)
    assert captions is not None
    assert len(set(captions)) > 40
    assert shapes_captions(make_config(prompts_path="mine.txt"), 50) is None
