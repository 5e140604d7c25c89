"""Shared by all tests: shapes are checked as the code runs, and one real run on flux-shapes is made once."""

from jaxtyping import install_import_hook

# Where arrays are. Config checks its own types, with words for users.
CHECKED = (
    *("draw", "measures", "models", "run", "sae", "shapes", "steps"),
    *("commands.train_saes", "commands.sweep_saes", "run.sae_truth"),
)
install_import_hook([f"fluxscope.{name}" for name in CHECKED], "beartype.beartype")

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from fluxscope.models.model import Model, open_model
from fluxscope.progress import Reporter
from fluxscope.settings.config import Config, make_config
from fluxscope.shapes.shipped import FLUX_SHAPES
from fluxscope.steps.pipeline import parse_pipeline_steps, run_pipeline

SMALL = {"max_prompts": 12, "batch_size": 8, "active_layer": 15}


def run_steps(config: Config, steps: str, **options: bool) -> None:
    run_pipeline(config, Reporter(quiet=True), parse_pipeline_steps(steps), **options)


def in_own_process(module: str, *arguments: str, seconds: int) -> str:
    """Run a harness of the tests that forks, and give what it prints; it must end well.

    This process has threads, which its forks would wait for.
    """
    command = [sys.executable, "-m", module, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """flux-shapes, opened once for all tests."""
    return open_model(FLUX_SHAPES, "cpu", "float32", prompt_folder=tmp_path_factory.mktemp("prompts"))


@pytest.fixture
def one_thread():
    """Equal rows of a batch are then equal bit for bit; several threads sum a row by where in it it lies."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The settings of a finished small run, steps 1-6 and 8 on flux-shapes. Read its folder, don't write."""
    folder: Path = tmp_path_factory.mktemp("finished") / "run"
    config = make_config(out_dir=str(folder), **SMALL)
    run_steps(config, "1-6,8")
    return config
