"""The model is opened once in a process, and only by steps that need it."""

import pytest

import fluxscope.models.model
from fluxscope.commands.train_saes import Training, train
from fluxscope.models.families import Flux1
from fluxscope.progress import Reporter
from fluxscope.sae.topk import TopK
from fluxscope.sae.train import TrainConfig
from fluxscope.settings.config import make_config
from tests.conftest import run_steps
from tests.steps.test_layers import STEERED


@pytest.fixture
def loads(monkeypatch):
    """What was loaded: "text" and "pictures", in order."""
    loaded = []
    for name, part in (("load_text", "text"), ("load_denoiser", "pictures")):
        load = getattr(Flux1, name)
        counting = lambda self, *a, load=load, part=part: loaded.append(part) or load(self, *a)  # noqa: E731
        monkeypatch.setattr(Flux1, name, counting)
    return loaded


def test_all_eleven_steps_load_each_part_once(tmp_path, loads, monkeypatch):
    opened = []
    open_model = fluxscope.models.model.open_model
    counting = lambda *a, **k: opened.append(a[0]) or open_model(*a, **k)  # noqa: E731
    monkeypatch.setattr(fluxscope.models.model, "open_model", counting)
    run_steps(make_config(out_dir=str(tmp_path / "run"), **STEERED), "1-11")
    assert loads == ["text", "pictures"]
    assert opened == ["flux-shapes"]


def test_steps_that_look_up_open_no_model(tmp_path, monkeypatch):
    config = make_config(out_dir=str(tmp_path / "run"), **STEERED)
    run_steps(config, "1")
    monkeypatch.setattr(fluxscope.models.model, "open_model", lambda *a, **k: pytest.fail("opened"))
    run_steps(config, "2-6,8,9")


def test_training_at_two_sites_and_two_steps_loads_each_part_once(tmp_path, model, loads):
    quick = {"num_inference_steps": 3, "target_step_number": 2, "capture_steps": (3,), "batch_size": 8}
    config = make_config(out_dir=str(tmp_path), **quick)
    fresh = fluxscope.models.model.open_model(
        config.model_id, "cpu", "float32", prompt_folder=tmp_path / "prompts"
    )
    base = TrainConfig(TopK(k=4), hidden_dim=256, steps=4, batch_size=64)
    wanted = Training(
        **{
            "sites": ("double.5.ff", "double.15.ff"),
            "sparsities": (4,),
            "pictures": 20,
            "base": base,
            "stamp": "1",
        },
        **{"activations": tmp_path / "activations", "saes": tmp_path, "spliced_pictures": 2},
    )
    trained = train(config, fresh, wanted, Reporter(quiet=True), ["a large red circle"])
    assert len(trained) == 4
    assert loads == ["text", "pictures"]
