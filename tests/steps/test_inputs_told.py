"""What step 1 tells of prompts and SAEs that may be meant otherwise, and what it makes of them."""

import pytest
import torch

from fluxscope.files import read_json
from fluxscope.models.model import open_model
from fluxscope.models.sites import parse_site
from fluxscope.progress import Reporter
from fluxscope.run.jobs import plan_jobs, repeated_prompts
from fluxscope.run.manifest import Manifest, read_prompts
from fluxscope.run.recorders import used_elsewhere
from fluxscope.run.rundir import RunDir
from fluxscope.run.steering import load_steerer
from fluxscope.sae import TopKSparseAutoencoder
from fluxscope.sae.formats import load, save
from fluxscope.settings.config import make_config
from fluxscope.shapes.shipped import shipped_sae
from fluxscope.steps.pipeline import parse_pipeline_steps, run_pipeline

QUICK = {"num_inference_steps": 3, "reps_per_prompt": 1, "batch_size": 8}
RED, BLUE = "a large red circle on a white background", "a small blue star on a gray background"


def collected(tmp_path, capsys, text, steps="1", **settings):
    """What is said, and the run's settings."""
    (tmp_path / "prompts.txt").write_bytes(text)
    paths = {"out_dir": str(tmp_path / "run"), "prompts_path": str(tmp_path / "prompts.txt")}
    config = make_config(**{**QUICK, **paths, **settings})
    run_pipeline(config, Reporter(), parse_pipeline_steps(steps))
    return capsys.readouterr().out, config


def test_a_bom_is_no_part_of_the_first_prompt(tmp_path):
    (tmp_path / "prompts.txt").write_bytes(b"\xef\xbb\xbf" + f"{RED}\r\n{BLUE}\r\n".encode())
    assert read_prompts(tmp_path / "prompts.txt") == [RED, BLUE]
    (tmp_path / "prompts.txt").write_bytes(b"\xef\xbb\xbf\n" + RED.encode())
    assert read_prompts(tmp_path / "prompts.txt") == [RED]


def test_repeated_prompts_are_told_in_one_line_and_count_as_one(tmp_path, capsys):
    """Two pictures each of three lines that hold two prompts."""
    text = f"{RED}\n{BLUE}\n{RED}\n".encode()
    said, config = collected(tmp_path, capsys, text, "1-4", reps_per_prompt=2)
    (line,) = [line for line in said.splitlines() if "distinct" in line]
    assert line.strip().startswith("warning: of 3 prompts 2 are distinct ('a large red circle on a white")
    assert "2 times)" in line
    files = RunDir.of(config)
    manifest = Manifest.read(files.manifest, files.root)
    assert [row.prompt_idx for row in manifest.rows] == [0, 0, 1, 1, 2, 2]
    assert manifest.prompt_of.tolist() == [0, 0, 1, 1, 0, 0]
    words = {row.image_id: row.prompt for row in manifest.rows}
    features = read_json(files.selected_features)["features"]
    assert features
    for feature in features:
        for images in (feature["top_m_image_ids"], feature["example_image_ids"]):
            assert len({words[i] for i in images}) == len(images) == 2
        assert feature["coverage"] == 2


def test_repeats_are_listed_shortly_and_distinct_prompts_are_not_spoken_of(tmp_path):
    def told(*lines):
        (tmp_path / "prompts.txt").write_text("\n".join(lines))
        return repeated_prompts(plan_jobs(make_config(prompts_path=str(tmp_path / "prompts.txt"))))

    assert told(RED, BLUE) is None
    assert told(RED, BLUE, RED.upper()) is None
    many = told(*[f"prompt {i}" for i in range(5)] * 2, "\x1b[31mred", "\x1b[31mred", RED)
    assert many is not None and many.startswith("of 13 prompts 7 are distinct ('prompt 0' 2 times, ")
    assert "and 3 more" in many and "\x1b" not in many


def sae_that_says(path, **config):
    torch.manual_seed(0)
    save(path, TopKSparseAutoencoder(128, 64, 8), config, "fluxscope")
    return str(path)


def test_an_sae_of_another_site_or_step_is_told_with_both_places(tmp_path, capsys):
    path = sae_that_says(tmp_path / "sae.pt", layer=15, timestep=14, site="double.15.ff")
    further = sae_that_says(tmp_path / "further.pt", layer=3, timestep=2)
    settings = {"saes": {"double.7.attn": path}, "sites": (f"single.1={further}", f"single.0={further}")}
    said, _ = collected(tmp_path, capsys, RED.encode(), **settings)
    assert (
        f"{path} says that it was trained at double.15.ff, step 14; it is used at double.7.attn, step 2 of 3"
        in said
    )
    assert f"{further} says that it was trained at block 3; it is used at single.1" in said
    assert said.count("says that it was trained") == 3
    config = make_config(**{**QUICK, **settings, "out_dir": str(tmp_path / "run")})
    report = Reporter()
    model = open_model(config.model_id, "cpu", "float32", prompt_folder=tmp_path / "prompts")
    load_steerer(config, model, "double.7.attn", [RED], report=report)
    steerer_says = capsys.readouterr().out
    assert steerer_says.count("says that it was trained at double.15.ff") == 1


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ({"layer": 15, "timestep": 14, "site": "double.15.ff"}, None),
        ({"layer": 15, "timestep": 14}, None),
        ({}, None),
        ({"layer": "fifteen", "timestep": [3]}, None),
        ({"layer": 5}, "block 5; it is used at double.15.ff"),
        ({"timestep": 9}, "step 9; it is used at step 14 of 20"),
        ({"layer": 15, "site": "double.15.attn"}, "double.15.attn; it is used at double.15.ff"),
    ],
)
def test_only_what_an_sae_says_is_held_against_its_place(tmp_path, says, expected):
    _, info = load(sae_that_says(tmp_path / "sae.pt", **says))
    told = used_elsewhere(make_config(), parse_site("double.15.ff"), info)
    assert told is None if expected is None else told is not None and told.endswith(expected)


def test_the_bundled_ones_are_where_they_were_trained():
    config = make_config()
    for block in (5, 15):
        _, info = load(shipped_sae(block))
        assert info.timestep == 14
        assert used_elsewhere(config, parse_site(f"double.{block}.ff"), info) is None
        assert used_elsewhere(config, parse_site("double.7.ff"), info) is not None


def test_the_marks_of_prompts_do_not_change_what_shipped_prompts_are():
    prompts = read_prompts(str(make_config().prompts_path))
    assert len(set(prompts)) == len(prompts)
    assert repeated_prompts(plan_jobs(make_config())) is None
