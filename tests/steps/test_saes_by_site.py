"""A run with three SAEs at sites of its own choice: what is collected, compared, resumed and looked up."""

import json
import shutil

import numpy as np
import pytest
import torch

import fluxscope.steps.collect as collect
from fluxscope.commands.main import build_app
from fluxscope.errors import ConfigError, RunDirError
from fluxscope.files import load_npy, read_json, read_jsonl
from fluxscope.run.codes import CodeStore
from fluxscope.run.made_with import load_config_of_run
from fluxscope.run.rundir import RunDir
from fluxscope.sae import TopKSparseAutoencoder
from fluxscope.sae.formats import save
from fluxscope.settings.config import make_config
from tests.conftest import run_steps

OWN = "double.8.attn"
SHORT = {
    **{
        "max_prompts": 8,
        "num_inference_steps": 4,
        "target_step_number": 3,
        "batch_size": 4,
        "min_prompts": 2,
    },
    **{"top_features": 3, "top_examples_per_feature": 2},
}


@pytest.fixture(scope="module")
def sae(tmp_path_factory):
    """A random SAE of 64 features, at a place where none ships."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("sae") / "sae_best.pt"
    save(path, TopKSparseAutoencoder(128, 64, 4), {"layer": 8, "timestep": 3})
    return str(path)


def settings(sae, folder, **more):
    saes = {"double.15.ff": "bundled", "double.5.ff": "bundled", OWN: sae}
    return make_config(
        **{"saes": saes, "compare": (OWN, "double.5.ff"), "out_dir": str(folder), **SHORT, **more}
    )


@pytest.fixture(scope="module")
def made(sae, tmp_path_factory):
    config = settings(sae, tmp_path_factory.mktemp("sites") / "run")
    run_steps(config, "1-6,8,9")
    return config


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The same pictures with the model's own two SAEs only, and the third site's raw activations."""
    config = make_config(out_dir=str(tmp_path_factory.mktemp("plain") / "run"), sites=OWN, **SHORT)
    run_steps(config, "1")
    return config


def lasting(files):
    """S, and the manifest but for its timings."""
    rows = [{k: v for k, v in row.items() if k != "generation_time"} for row in read_jsonl(files.manifest)]
    return files.s_matrix.read_bytes(), json.dumps(rows)


def test_blocks_5_and_15_are_where_and_what_they_are_without_the_third(made, plain):
    for site, folder in (("double.15.ff", ""), ("double.5.ff", "layer_05")):
        files, theirs = RunDir.of(made, site), RunDir.of(plain, site)
        assert files.home == files.root / folder
        assert lasting(files) == lasting(theirs)


def test_the_third_site_lies_in_its_own_folder_and_s_is_the_maximum_of_its_codes(made, plain, sae):
    from fluxscope.run.activations import ActivationStore
    from fluxscope.sae.formats import load

    files = RunDir.of(made, OWN)
    assert files.home == files.root / OWN
    x = ActivationStore(RunDir.of(plain).activations / OWN / "step_2").read(range(16)).float()
    dense = load(sae)[0].encode(x).amax(1)
    s = torch.from_numpy(load_npy(files.s_matrix))
    assert s.shape == (16, 64)
    assert (s > 0).any()
    close = torch.isclose(s, dense, rtol=0.02, atol=0.02)  # activations are kept in half precision
    assert close.float().mean() > 0.99
    log = read_json(files.run_log)
    assert (log["site"], log["layer_index"], log["sae_hidden_dim"]) == (OWN, 8, 64)
    assert {(row["site"], row["layer_index"]) for row in read_jsonl(files.manifest)} == {(OWN, 8)}


def test_the_comparison_is_of_the_two_sites_that_were_named(made):
    files = RunDir.of(made)
    s = {key: load_npy(files.layer_comparison / f"S_{key}.npy") for key in (OWN, "layer5")}
    summary = read_json(files.comparison_summary)
    assert set(summary) == {"num_images", "hidden_dim", OWN, "layer5", "comparison"}
    alive = {key: set(np.flatnonzero((matrix > 1e-4).any(0))) for key, matrix in s.items()}
    for key, matrix in s.items():
        assert summary[key]["num_alive_features"] == len(alive[key])
        assert summary[key]["mean_l0"] == pytest.approx((matrix > 1e-4).sum(1).mean())
    assert summary["comparison"] == {
        "alive_in_both": len(alive[OWN] & alive["layer5"]),
        f"alive_only_in_{OWN}": len(alive[OWN] - alive["layer5"]),
        "alive_only_in_5": len(alive["layer5"] - alive[OWN]),
    }
    found = read_json(files.comparison)
    assert sorted(found["persist"] + found["vanish"]) == sorted(alive[OWN])
    assert set(found["l0"]) == {OWN, "layer 5"}
    np.testing.assert_array_equal(s[OWN], load_npy(RunDir.of(made, OWN).s_matrix))


@pytest.fixture
def copy(made, tmp_path):
    shutil.copytree(made.out_dir, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def no_generation(monkeypatch):
    monkeypatch.setattr(collect, "generate", lambda *_: pytest.fail("pictures were generated again"))


def test_later_steps_of_the_third_site_need_no_generation_and_take_the_runs_saes(copy, no_generation, sae):
    config = load_config_of_run(None, out_dir=str(copy), active_layer=8, min_prompts=2, top_features=3)
    assert config.site == OWN
    assert config.sae_paths[OWN] == sae
    run_steps(config, "2-6,8")
    files = RunDir.of(config)
    selected = read_json(files.selected_features)
    assert selected["layer_index"] == 8
    assert selected["features"]
    item = read_json(files.overlay_summary)["items"][0]
    assert item["overlay_path"].startswith(f"{OWN}/overlays/")
    codes = CodeStore(files.codes, OWN, 2).image(item["image_id"]).column(item["feature_id"]).numpy()
    np.testing.assert_array_equal(load_npy(copy / item["tokenmap_path"]), codes)
    assert len(read_json(files.decoder_stats)["features"]) == len(selected["features"])


def test_flags_say_the_same(copy, sae, no_generation):
    from typer.testing import CliRunner

    small = [f"--{name.replace('_', '-')}={value}" for name, value in SHORT.items()]
    saes = ["--sae=double.15.ff=bundled,double.5.ff=bundled", f"--sae={OWN}={sae}"]
    flags = ["--out-dir", str(copy), *small, *saes, "--steps", "1-6,8"]
    result = CliRunner().invoke(build_app(), ["run", *flags, "--layer", "8"])
    assert result.exit_code == 0, result.output
    assert (copy / OWN / "contact_sheet.png").is_file()
    result = CliRunner().invoke(
        build_app(), ["compare-layers", "--out-dir", str(copy), f"--compare=double.15.ff,{OWN}"]
    )
    assert result.exit_code == 0, result.output
    assert f"alive in {OWN} appear there" in " ".join(result.output.split())
    wrong = CliRunner().invoke(build_app(), ["overlays", "--out-dir", str(copy), "--layer", "9"])
    assert wrong.exit_code == 1
    assert "Choose one of: 5, 8, 15" in wrong.stderr


def test_a_run_that_was_stopped_goes_on_with_all_three(made, sae, tmp_path, monkeypatch):
    config, commit, batches = settings(sae, tmp_path / "run"), collect.commit, []

    def stopped(*given):
        if len(batches) == 2:
            raise KeyboardInterrupt
        batches.append(commit(*given))

    monkeypatch.setattr(collect, "commit", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_steps(config, "1")
    monkeypatch.undo()
    assert len(read_jsonl(RunDir.of(config).manifest)) == 8
    run_steps(config, "1")
    for site in config.sae_paths:
        assert lasting(RunDir.of(config, site)) == lasting(RunDir.of(made, site))


def test_a_site_added_later_is_collected_for_the_same_pictures(made, plain, sae, tmp_path):
    shutil.copytree(plain.out_dir, tmp_path / "run")
    config = make_config(out_dir=str(tmp_path / "run"), saes={OWN: sae}, **SHORT)
    run_steps(config, "1")
    assert lasting(RunDir.of(config)) == lasting(RunDir.of(made, OWN))
    assert RunDir.of(config).home == tmp_path / "run" / OWN
    later = load_config_of_run(None, out_dir=str(tmp_path / "run"), active_site=OWN)
    assert later.sae_paths[OWN] == sae
    with pytest.raises(RunDirError, match="base_seed = 42, not 7"):
        run_steps(
            make_config(out_dir=str(tmp_path / "run"), saes={"single.1": sae}, base_seed=7, **SHORT), "1"
        )


def test_a_forced_collection_leaves_nothing_of_other_sites(copy, sae):
    config = make_config(out_dir=str(copy), saes={"single.1": sae}, **{**SHORT, "max_prompts": 1})
    run_steps(config, "1", force=True)
    assert RunDir.of(config).home == copy
    assert not list(copy.glob("*/manifest.jsonl"))
    assert len(read_jsonl(copy / "manifest.jsonl")) == 2


def test_a_site_of_text_tokens_is_refused_in_words(sae, tmp_path):
    config = make_config(out_dir=str(tmp_path / "run"), saes={"double.8.context": sae}, **SHORT)
    with pytest.raises(ConfigError, match="double.8.context has text tokens") as caught:
        run_steps(config, "1")
    assert f"--sites double.8.context={sae}" in caught.value.hint


def test_a_log_that_names_a_folder_outside_is_refused(copy, sae):
    log = read_json(copy / "run_log.json")
    (copy / "run_log.json").write_text(json.dumps({**log, "site": "../../elsewhere"}))
    with pytest.raises(RunDirError, match="names no site"):
        RunDir.of(settings(sae, copy))
