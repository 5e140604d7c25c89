import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fluxscope.errors import CheckpointError, ConfigError, FluxscopeError, MissingInputError, RunDirError
from fluxscope.files import load_npy, read_json
from fluxscope.models.capture import Capture
from fluxscope.models.model import open_model
from fluxscope.progress import Reporter
from fluxscope.run.codes import CodeStore
from fluxscope.run.manifest import load_manifest
from fluxscope.run.rundir import RunDir
from fluxscope.sae import BatchTopKSparseAutoencoder, TopKSparseAutoencoder
from fluxscope.sae.formats import load, save
from fluxscope.settings.config import make_config
from fluxscope.shapes.shipped import FLUX_SHAPES
from fluxscope.steps.pipeline import parse_pipeline_steps, run_pipeline
from tests.conftest import SMALL, run_steps

SHORT = {"max_prompts": 6, "num_inference_steps": 4, "target_step_number": 3, "batch_size": 3}


def contents(folder: Path) -> dict[str, bytes]:
    """What must not depend on interruptions: pictures, S, and the manifest but for its timings."""
    found = {p.name: p.read_bytes() for p in folder.glob("images/*.png")}
    for place in (folder, folder / "layer_05"):
        found[f"{place.name == 'layer_05'} S"] = (place / "S_matrix.npy").read_bytes()
        rows = [json.loads(line) for line in (place / "manifest.jsonl").read_text().splitlines()]
        found[f"{place.name == 'layer_05'} manifest"] = json.dumps(
            [{k: v for k, v in row.items() if k != "generation_time"} for row in rows]
        ).encode()
    return found


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """A folder that step 1 filled without interruption; to be copied."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run_steps(make_config(out_dir=str(folder), **SHORT), "1")
    return folder


@pytest.fixture(scope="module")
def uninterrupted(collected):
    return contents(collected)


def test_s_is_the_maximum_of_the_dense_code_over_tokens(finished):
    """Against an independent hook on the plain pipeline, for both layers of the first pictures."""
    config = finished
    prompts = [row["prompt"] for row in load_manifest(RunDir.of(config).manifest, config.out_dir)[0][:8]]
    seeds = [row["seed"] for row in load_manifest(RunDir.of(config).manifest, config.out_dir)[0][:8]]
    model = open_model(FLUX_SHAPES, "cpu", "float32")  # its hooks stay: not the model of other tests
    embeddings, pipe = model.encode(prompts), model.pipe
    outputs = {5: [], 15: []}
    for layer, heard in outputs.items():
        pipe.transformer.transformer_blocks[layer].ff.register_forward_hook(
            lambda module, args, output, heard=heard: heard.append(output.clone())
        )
    pipe(
        prompt_embeds=torch.stack([embeddings[p].tokens for p in prompts]),
        pooled_prompt_embeds=torch.stack([embeddings[p].pooled for p in prompts]),
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        height=128,
        width=128,
        num_inference_steps=20,
        guidance_scale=3.5,
        output_type="latent",
    )
    for layer, heard in outputs.items():
        assert len(heard) == 20
        files = RunDir.of(config, f"double.{layer}.ff")
        sae, _ = load(config.sae_paths[files.site])
        dense = sae.encode(heard[config.target_step_index])  # (b, t, f)
        s = load_npy(files.s_matrix)
        np.testing.assert_allclose(s[:8], dense.amax(1).numpy(), rtol=1e-4, atol=1e-4)
        store = CodeStore(files.codes, files.site, config.target_step_index)
        stored = torch.stack([store.image(i).to_dense() for i in range(8)])
        torch.testing.assert_close(stored, dense, rtol=1e-4, atol=1e-4)


def test_a_batch_of_eight_and_single_pictures_agree(tmp_path):
    results = []
    for size in (8, 1):
        config = make_config(
            out_dir=str(tmp_path / str(size)), **{**SHORT, "batch_size": size, "max_prompts": 4}
        )
        run_steps(config, "1,2")
        files = RunDir.of(config)
        results.append((load_npy(files.s_matrix), load_npy(files.alive_features)))
    (s8, alive8), (s1, alive1) = results
    # float32's noise grows along the steps, and with S itself: 2e-5 of the largest value.
    np.testing.assert_allclose(s8, s1, rtol=0, atol=2e-5 * float(s1.max()))
    np.testing.assert_array_equal(alive8, alive1)


@pytest.mark.parametrize("moment", ["first_batch", "second_batch", "anywhere"])
def test_killed_and_run_again_it_ends_with_the_same_bytes(tmp_path, uninterrupted, moment):
    folder = tmp_path / "run"
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SHORT.items()]
    command = [sys.executable, "-m", "fluxscope", "collect", f"--out-dir={folder}", *flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    wait_for(process, folder, rows={"first_batch": 0, "second_batch": 3, "anywhere": 6}[moment])
    process.send_signal(signal.SIGKILL)
    process.wait()
    if moment == "anywhere":  # also a line and rows that a writer did not finish
        with (folder / "manifest.jsonl").open("ab") as file:
            file.write(b'{"image_id": 9')
    run_steps(make_config(out_dir=str(folder), **SHORT), "1")
    assert contents(folder) == uninterrupted


def wait_for(process, folder, rows, limit=120.0):
    """Until the run has committed so many pictures, and has begun the next batch."""
    end = time.monotonic() + limit
    while time.monotonic() < end and process.poll() is None:
        manifest = folder / "manifest.jsonl"
        count = manifest.read_bytes().count(b"\n") if manifest.exists() else 0
        if count >= rows and (folder / "run_log.json").exists():
            return
        time.sleep(0.02)
    assert process.poll() is None, "the run ended before it could be killed"


def test_another_layer_costs_no_generation(finished, monkeypatch):
    """`--layer 5` on a folder made with both layers: nothing is generated, layer_05 holds the same names."""
    import fluxscope.steps.collect as collect

    monkeypatch.setattr(collect, "generate", lambda *_: pytest.fail("pictures were generated again"))
    run_steps(make_config(**{**SMALL, "out_dir": finished.out_dir, "active_layer": 5}), "1-6,8")
    files = RunDir.of(make_config(**{**SMALL, "out_dir": finished.out_dir, "active_layer": 5}))
    assert files.home.name == "layer_05"
    assert files.contact_sheet.is_file()
    assert read_json(files.selected_features)["layer_index"] == 5


def test_a_layer_added_later_is_collected_for_the_same_pictures(tmp_path, uninterrupted):
    folder = tmp_path / "run"
    run_steps(make_config(out_dir=str(folder), compare_layers=False, **SHORT), "1")
    assert not (folder / "layer_05").exists()
    run_steps(make_config(out_dir=str(folder), **SHORT), "1")
    assert contents(folder) == uninterrupted


def test_collecting_again_takes_nothing_away(tmp_path, uninterrupted):
    """Fewer layers asked for, in a folder that has more: all pictures and the other layer's files stay."""
    folder = tmp_path / "run"
    run_steps(make_config(out_dir=str(folder), **SHORT), "1")
    run_steps(make_config(out_dir=str(folder), compare_layers=False, **SHORT), "1")
    assert contents(folder) == uninterrupted
    assert (folder / "layer_05" / "run_log.json").is_file()


def test_lost_and_damaged_pictures_and_s_are_made_again(tmp_path, uninterrupted):
    folder = tmp_path / "run"
    config = make_config(out_dir=str(folder), **SHORT)
    run_steps(config, "1")
    manifest = (folder / "manifest.jsonl").read_bytes()
    first, second, *_ = sorted((folder / "images").iterdir())
    first.unlink()
    for path in (second, folder / "S_matrix.npy"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    run_steps(config, "1")
    assert contents(folder) == uninterrupted
    assert (folder / "manifest.jsonl").read_bytes() == manifest


def edited(lines, how):
    """A manifest's lines as somebody left them."""
    first = json.loads(lines[0])
    match how:
        case "another prompt":
            return [json.dumps(first | {"prompt": "a lie"}), *lines[1:]]
        case "another seed and height":
            return [json.dumps(first | {"seed": 7, "height": 1}), *lines[1:]]
        case "another picture's file":
            path = json.loads(lines[1])["image_path"]
            return [json.dumps(first | {"image_path": path}), *lines[1:]]
        case "two swapped":
            return [lines[1], lines[0], *lines[2:]]
        case "the first two missing":
            return lines[2:]


@pytest.mark.parametrize(
    "how",
    [
        *("another prompt", "another seed and height", "another picture's file"),
        *("two swapped", "the first two missing"),
    ],
)
def test_an_edited_manifest_is_put_right(tmp_path, collected, uninterrupted, how):
    """Both sites' manifests: what the lines say is what was made, whatever somebody wrote there."""
    folder = tmp_path / "run"
    shutil.copytree(collected, folder)
    for path in (folder / "manifest.jsonl", folder / "layer_05" / "manifest.jsonl"):
        path.write_text("\n".join(edited(path.read_text().splitlines(), how)) + "\n")
    run_steps(make_config(out_dir=str(folder), **SHORT), "1")
    assert contents(folder) == uninterrupted


def test_further_steps_are_captured_in_the_same_pass(tmp_path, uninterrupted):
    folder = tmp_path / "run"
    config = make_config(out_dir=str(folder), capture_steps=(1, 4), **SHORT)
    run_steps(config, "1")
    assert contents(folder) == uninterrupted
    codes = {
        step: CodeStore(folder / "codes.zarr", "double.15.ff", step).image(0).to_dense() for step in (0, 2, 3)
    }
    assert not torch.equal(codes[0], codes[2])
    assert not torch.equal(codes[2], codes[3])


def test_a_folder_of_other_settings_is_refused_unless_forced(tmp_path):
    first = {**SHORT, "max_prompts": 2, "out_dir": str(tmp_path / "run"), "compare_layers": False}
    run_steps(make_config(**first), "1")
    other = make_config(**{**first, "base_seed": 7})
    with pytest.raises(RunDirError, match="base_seed = 42, not 7") as caught:
        run_steps(other, "1")
    assert "--out-dir" in caught.value.hint
    run_steps(other, "1", force=True)
    records, _ = load_manifest(RunDir.of(other).manifest, other.out_dir)
    assert [row["seed"] for row in records] == [7, 8, 9, 10]
    assert len(list((tmp_path / "run" / "images").iterdir())) == 4


def test_force_clears_nothing_before_everything_has_been_found_right(tmp_path):
    def collected():
        found = (path for path in (tmp_path / "run").rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in found if path.name != "step_log.json"}

    settings = {**SHORT, "max_prompts": 1, "out_dir": str(tmp_path / "run"), "compare_layers": False}
    run_steps(make_config(**settings), "1")
    before = collected()
    for wrong in ({"layer15_sae_path": "nowhere.pt"}, {"sites": ("single.9",)}, {"device": "cuda:7"}):
        with pytest.raises(FluxscopeError):
            run_steps(make_config(**settings, **wrong), "1", force=True)
    assert collected() == before


def test_force_from_another_first_layer_leaves_no_files_of_the_old_one(tmp_path):
    settings = {**SHORT, "max_prompts": 1, "out_dir": str(tmp_path / "run")}
    run_steps(make_config(**settings, active_layer=5), "1")
    assert (tmp_path / "run" / "layer_15" / "run_log.json").is_file()
    run_steps(make_config(**settings, active_layer=15), "1", force=True)
    assert not list((tmp_path / "run" / "layer_15").glob("*"))
    assert read_json(tmp_path / "run" / "run_log.json")["layer_index"] == 15


def test_an_sae_of_another_width_is_refused_before_anything_is_generated(tmp_path):
    path = tmp_path / "sae_best.pt"
    save(path, TopKSparseAutoencoder(64, 256, 8), {"layer": 15})
    config = make_config(out_dir=str(tmp_path / "run"), layer15_sae_path=str(path))
    with pytest.raises(CheckpointError, match=r"width 64, but double\.15\.ff of flux-shapes has width 128"):
        run_steps(config, "1")
    assert not (tmp_path / "run" / "images").exists()


def test_an_sae_that_is_active_in_more_features_than_its_k_is_told(tmp_path, capsys):
    sae = BatchTopKSparseAutoencoder(128, 256, 3).requires_grad_(False)
    sae.threshold.fill_(0)  # as if its file had been read as what it is not
    save(tmp_path / "sae_best.pt", sae, {"layer": 15})
    settings = {**SHORT, "max_prompts": 2, "layer15_sae_path": str(tmp_path / "sae_best.pt")}
    config = make_config(out_dir=str(tmp_path / "run"), **settings)
    run_pipeline(config, Reporter(), parse_pipeline_steps("1"))
    told = capsys.readouterr().out
    l0 = float(CodeStore(RunDir.of(config).codes, "double.15.ff", 2).images(0, 4).counts().float().mean())
    assert l0 > 12
    assert f"the SAE of layer 15: on these pictures {l0:.1f} features are active" in told
    assert "its config says k = 3" in told
    assert told.count("features are active") == 1, (
        "the shipped SAE of the other layer is as active as it says"
    )


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"layer15_sae_path": "nowhere/sae_best.pt"}, CheckpointError, "not found"),
        ({"prompts_path": "nowhere.txt"}, MissingInputError, "prompts file not found"),
        ({"model_id": "nowhere/at-all", "height": 128, "width": 128}, FluxscopeError, "no SAE checkpoint"),
        ({"sites": ("double.3=nowhere.pt",)}, CheckpointError, "checkpoint not found: nowhere.pt"),
        ({"site_pattern": "double.18.ff"}, ConfigError, "both layers' SAEs would listen at double.18.ff"),
        ({"site_pattern": "double.{block}.ff"}, ConfigError, "both layers' SAEs would listen at"),
        ({"site_pattern": "double.{block}", "compare_layers": False}, ConfigError, "unknown site"),
        ({"site_pattern": "double.{layer}.fff"}, ConfigError, "unknown site"),
        ({"device": "cuda:7"}, ConfigError, "not on this machine"),
    ],
)
def test_bad_settings_are_clear_errors_before_anything_is_generated(tmp_path, settings, error, message):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a large red circle\n")
    settings = {"out_dir": str(tmp_path / "run"), "prompts_path": str(prompts), **settings}
    with pytest.raises(error, match=message):
        run_steps(make_config(**settings), "1")
    assert not (tmp_path / "run" / "images").exists()


@pytest.mark.parametrize(("text", "message"), [("", "holds no prompts"), ("\n  \n", "holds no prompts")])
def test_an_empty_prompts_file_is_an_error(tmp_path, text, message):
    (tmp_path / "prompts.txt").write_text(text)
    config = make_config(out_dir=str(tmp_path / "run"), prompts_path=str(tmp_path / "prompts.txt"))
    with pytest.raises(MissingInputError, match=message):
        run_steps(config, "1")


def test_one_prompt_is_collected_and_analyzed_and_the_selection_says_what_is_missing(tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("a large red circle on a white background\n")
    config = make_config(
        **{**SHORT, "out_dir": str(tmp_path / "run"), "prompts_path": str(tmp_path / "prompts.txt")}
    )
    run_steps(config, "1-3")
    run_pipeline(config, Reporter(), parse_pipeline_steps("4-6"))
    said, files = capsys.readouterr().out, RunDir.of(config)
    assert "no feature is active on enough of the 2 pictures to be selected: use more prompts" in said
    assert said.count("nothing is selected") == 2  # steps 5 and 6 have nothing to draw
    assert read_json(files.selected_features)["features"] == []
    assert read_json(files.overlay_summary)["items"] == []
    assert not files.contact_sheet.exists()


def test_ctrl_c_keeps_what_is_finished(tmp_path, uninterrupted):
    folder = tmp_path / "run"
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SHORT.items()]
    command = [sys.executable, "-m", "fluxscope", "collect", f"--out-dir={folder}", *flags]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ,
        # Tests may themselves run in the background, where shells let their children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for(process, folder, rows=3)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate()
    assert process.returncode == 130
    assert b"Finished work is kept" in complaint
    assert b"Traceback" not in complaint
    run_steps(make_config(out_dir=str(folder), **SHORT), "1")
    assert contents(folder) == uninterrupted


class Broken(Capture):
    """A model whose activations hold NaN in the first tokens of every picture."""

    tokens = 0

    def act(self, site, step, x):
        x = x.clone()
        x[:, : self.tokens] = torch.nan
        super().act(site, step, x)


def test_nan_above_one_percent_stops_and_below_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fluxscope.models.capture.Capture", Broken)
    settings = {**SHORT, "max_prompts": 2, "batch_size": 4, "sites": ("double.3",)}
    config = make_config(out_dir=str(tmp_path / "run"), **settings)
    Broken.tokens = 64
    with pytest.raises(FluxscopeError, match=r"256 of 256 tokens at double\.\d+\S* hold NaN or infinity"):
        run_steps(config, "1")
    assert not list((tmp_path / "run").rglob("*.png"))
    assert not (tmp_path / "run" / "manifest.jsonl").exists()
    Broken.tokens = 1  # of 64: more than 1%
    with pytest.raises(FluxscopeError, match=r"4 of 256 tokens"):
        run_steps(config, "1")
    monkeypatch.setattr("fluxscope.run.recorders.MAX_BAD_SHARE", 0.02)
    run_pipeline(config, Reporter(), parse_pipeline_steps("1"))
    told = capsys.readouterr().out
    assert "4 of 256 tokens at double.15.ff hold NaN or infinity" in told
    assert "4 of 256 tokens at double.3 hold NaN or infinity" in told
    files = RunDir.of(config)
    codes = CodeStore(files.codes, "double.15.ff", 2).images(0, 4)
    assert codes.counts().view(4, 64)[:, 0].tolist() == [0] * 4
    assert (codes.counts().view(4, 64)[:, 1:] > 0).all()
    assert np.isfinite(load_npy(files.s_matrix)).all()
