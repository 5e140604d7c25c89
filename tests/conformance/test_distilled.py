"""Models that are distilled to few steps and no guidance: their own settings, and guidance given in vain."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from fluxscope.models.model import open_model
from fluxscope.models.spec import PictureSpec
from fluxscope.progress import Reporter
from fluxscope.run.context import open_model_of
from fluxscope.run.rundir import RunDir
from fluxscope.sae import TopKSparseAutoencoder
from fluxscope.sae.formats import save
from fluxscope.settings.config import Config, make_config
from fluxscope.shapes.shipped import CLIP_SHAPES
from fluxscope.steps.pipeline import parse_pipeline_steps, run_pipeline
from tests.tiny_models import DISTILLED, save_tiny

OWN = {"schnell": 0.0, "klein": 1.0}


@pytest.fixture(scope="module", params=sorted(DISTILLED))
def distilled(request, tmp_path_factory):
    """Its name and its folder, which says nothing by its own name, beside prompts and an SAE."""
    folder = tmp_path_factory.mktemp("distilled")
    torch.manual_seed(1)
    save(folder / "sae.pt", TopKSparseAutoencoder(32, 64, 8), {}, "fluxscope")
    (folder / "prompts.txt").write_text("a red circle\na blue square\n")
    return request.param, save_tiny(request.param, folder / "model")


def settings(folder, out, **more) -> Config:
    return make_config(
        model_id=str(folder),
        out_dir=str(out),
        saes={"double.1.ff": str(folder.parent / "sae.pt")},
        prompts_path=str(folder.parent / "prompts.txt"),
        clip_model_id=CLIP_SHAPES,
        **{"height": 64, "width": 64, "max_sequence_length": 12, "dtype": "float32", "reps_per_prompt": 1},
        **more,
    )


def test_a_run_takes_its_models_own_steps_and_guidance_and_records_them(distilled, tmp_path, capsys):
    name, folder = distilled
    config = settings(folder, tmp_path / "run", steer_strengths=(-4, 4), steer_scales=(0, 1))
    run_pipeline(config, Reporter(), parse_pipeline_steps("1,2,3,4,5,7"))
    log = json.loads(RunDir.of(config).run_log.read_text())
    used = {key: log[key] for key in ("num_inference_steps", "guidance_scale", "target_step_number")}
    assert used == {"num_inference_steps": 4, "guidance_scale": OWN[name], "target_step_number": 3}
    assert "changes nothing" not in capsys.readouterr().out
    model = open_model(str(folder), "cpu", "float32")
    prompts = model.encode(["a red circle"], 12)
    spec = PictureSpec(64, 64, 4, OWN[name])
    alone = model.decode(model.sample([prompts["a red circle"]], [42], spec=spec), spec)
    first = np.asarray(Image.open(next(RunDir.of(config).images.glob("img_000000*"))))
    assert np.abs(first.astype(int) - alone[0].numpy()).max() <= 1
    assert model.defaults.steps == 4 and model.defaults.guidance == OWN[name]


def test_guidance_given_to_it_is_told_to_change_nothing_and_changes_nothing(distilled, tmp_path, capsys):
    name, folder = distilled
    pictures = {}
    for guidance in (OWN[name], 4.0):
        config = settings(folder, tmp_path / f"run{guidance:g}", guidance_scale=guidance)
        run_pipeline(config, Reporter(), parse_pipeline_steps("1"))
        told = capsys.readouterr().out.count("guidance_scale 4 changes nothing")
        assert told == (guidance == 4.0)
        paths = sorted(RunDir.of(config).images.glob("*.png"))
        assert len(paths) == 2
        pictures[guidance] = [np.asarray(Image.open(path)) for path in paths]
    assert np.array_equal(*pictures.values())


@pytest.mark.parametrize("pipeline", ["FluxPipeline", "Flux2Pipeline", "Flux2KleinPipeline"])
def test_no_word_is_said_of_guidance_that_acts(pipeline, tmp_path, capsys):
    folder = save_tiny(pipeline, tmp_path / "model")
    model = open_model_of(settings(folder, tmp_path / "run", guidance_scale=4.0), Reporter())
    assert "guidance" not in capsys.readouterr().out
    rows = list(model.encode(["a red circle"], 12).values())[:1]
    weak, strong = (model.sample(rows, [1], spec=PictureSpec(64, 64, 2, g)) for g in (1.5, 4.0))
    assert not torch.equal(weak, strong)
