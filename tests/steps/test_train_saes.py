import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from fluxscope.commands import train_saes
from fluxscope.commands.sweep_saes import sweep
from fluxscope.commands.train_saes import Training, train
from fluxscope.commands.training import SweepOptions, TrainOptions, numbers, shapes_captions, wanted_training
from fluxscope.commands.wandb_log import check_wandb
from fluxscope.errors import ConfigError, FluxscopeError, RunDirError
from fluxscope.files import load_npy, read_json, read_jsonl, save_npy
from fluxscope.measures.detection import best_single_f1
from fluxscope.models.sites import parse_site
from fluxscope.progress import Reporter
from fluxscope.run import harvest as harvesting
from fluxscope.run.activations import ActivationStore
from fluxscope.run.context import picture_spec
from fluxscope.run.lock import lock
from fluxscope.run.sae_truth import TruthMaterial
from fluxscope.run.truth import codes_of
from fluxscope.sae.data import split_by_prompt
from fluxscope.sae.formats import load
from fluxscope.sae.relu import ReLU
from fluxscope.sae.table import named
from fluxscope.sae.topk import TopK
from fluxscope.sae.train import TrainConfig
from fluxscope.settings.config import make_config
from fluxscope.shapes.concepts import ATTRIBUTES, TOKENS
from tests.test_contract import check_json, table

NAN = {("double.15.ff", 1): torch.full((8, 64, 128), torch.nan)}
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
    settings = {"sites": ("double.15.ff",), "sparsities": (4, 8), "pictures": 40, "base": base, "stamp": "1"}
    settings |= {"activations": folder / "activations", "saes": folder}
    return Training(**{**settings, **changes})


def checkpoints(folder):
    return {k: load(folder / f"sae_training_layer15_t2_topk{k}_x2_1" / "sae_best.pt") for k in (4, 8)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("trained")
    config = make_config(**QUICK)
    train(config, model, training(folder), Reporter(quiet=True), shapes_captions(config, 40))
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
        assert record["random_explained_variance"] < record["explained_variance"]
        assert (trained / record["folder"] / "sae_best.pt").is_file()


def paths_of(pattern, folder, sae):
    """The files of a name of the page, in a training's folder."""
    site = "activations/double.15.ff/step_1"
    name = pattern.replace("{activations}", site).replace("{sae}", sae).replace("{shard:06d}", "*")
    return list(
        folder.glob(name.replace("{site}", "double.15.ff").replace("{step}", "2").replace("{stamp}", "1"))
    )


def check_file(path, content):
    if path.suffix == ".png":
        with Image.open(path) as picture:
            assert min(picture.size) > 300
    elif path.suffix == ".json":
        records = read_json(path)
        for record in records if isinstance(records, list) else [records]:
            check_json(record, content)
    elif path.suffix == ".npy":
        assert f"{load_npy(path).dtype} (" in content
    elif path.suffix == ".jsonl":
        for record in read_jsonl(path):
            check_json(record, content.split("; or ")["held_out" in record])
    else:
        assert path.stat().st_size > 0


@pytest.mark.parametrize("row", table("Files of `fluxscope train` and `fluxscope sweep`"))
def test_every_file_is_as_the_page_says(trained, swept, row):
    pattern, content = row
    swept_only = pattern in ("sweep.json", "sparsity_frontier.png")
    paths = paths_of(pattern, swept if swept_only else trained, "sae_training_layer15_t2_topk4_x2_1")
    assert paths, pattern
    for path in paths:
        check_file(path, content)


@pytest.fixture(scope="module")
def swept(trained, tmp_path_factory, model):
    """A sweep over the activations that the other training left."""
    folder = tmp_path_factory.mktemp("swept")
    again = training(folder, activations=trained / "activations", sparsities=(2, 16), spliced_pictures=2)
    sweep(make_config(**QUICK), model, again, Reporter(quiet=True), shapes_captions(make_config(**QUICK), 40))
    return folder


def test_a_sweep_tells_what_each_sparsity_costs(swept):
    few, many = read_json(swept / "sweep.json")["points"]
    assert (few["setting"], few["value"], many["value"]) == ("k", 2, 16)
    assert few["l0"] == 2
    assert few["explained_variance"] < many["explained_variance"]
    assert few["random_explained_variance"] < many["random_explained_variance"]
    assert few["spliced"]["n_images"] == 2


@pytest.mark.parametrize(
    ("architecture", "setting", "values"),
    # Beyond these weights of the L0 penalty Adam moves all thresholds as fast as it can, whatever they are.
    [("relu", "l1_coeff", (0.1, 2.0)), ("jumprelu", "l0_coeff", (0.0005, 0.1))],
)
def test_a_sweep_of_penalties_has_a_control_of_the_same_l0(
    trained, tmp_path, architecture, setting, values, model
):
    base = TrainConfig(named(architecture).load()(), hidden_dim=256, steps=200)
    shared = {"activations": trained / "activations", "base": base, "spliced_pictures": 0}
    wanted = training(tmp_path, **shared, sparsities=values)
    captions = shapes_captions(make_config(**QUICK), 40)
    weak, strong = sweep(make_config(**QUICK), model, wanted, Reporter(quiet=True), captions)
    assert (weak["setting"], weak["value"], weak["spliced"]) == (setting, values[0], None)
    assert strong["l0"] < 0.8 * weak["l0"]
    folder = tmp_path / f"sae_training_layer15_t2_{architecture}{values[1]:g}_x2_1"
    assert (folder / "sae_best.pt").is_file()
    with pytest.raises(ConfigError, match="two sparsities"):
        sweep(make_config(**QUICK), model, training(tmp_path, sparsities=(4,)), Reporter(quiet=True))


def test_bad_activations_are_left_out_and_reported(trained, tmp_path, capsys, model):
    shutil.copytree(trained / "activations", tmp_path / "activations")
    (shard,) = tmp_path.glob("activations/*/*/shard_*.npy")
    bits = load_npy(shard).copy()
    bits[0, 0, 0] = bits[39, 5, 7] = 0x7FC0  # NaN in bfloat16: one in training, one held out
    save_npy(shard, bits)
    captions = shapes_captions(make_config(**QUICK), 40)
    train(
        make_config(**QUICK),
        model,
        training(tmp_path, sparsities=(4,), spliced_pictures=0),
        Reporter(),
        captions,
    )
    told = capsys.readouterr().out
    found = re.search(r"(\d+) of (\d+) activations", told)
    assert found and (found[1], found[2]) == ("1", str(32 * 64))
    assert "255 held-out tokens" in told
    bits[:5, :, 0] = 0x7FC0
    save_npy(shard, bits)
    with pytest.raises(FluxscopeError, match=r"hold NaN or infinity"):
        train(
            make_config(**QUICK),
            model,
            training(tmp_path, stamp="2", spliced_pictures=0),
            Reporter(quiet=True),
            captions,
        )


@pytest.mark.parametrize(
    ("changes", "pictures", "named"),
    [
        ({}, 41, "n_images, prompts_sha256, seeds_sha256"),
        ({"guidance_scale": 2.0}, 40, "guidance_scale"),
        ({"base_seed": 7}, 40, "seeds_sha256"),
        ({"num_inference_steps": 4}, 40, "num_inference_steps"),
        ({"prompts": ["a red circle"]}, 40, "prompts_sha256"),
    ],
)
def test_activations_of_other_pictures_are_refused(trained, tmp_path, model, changes, pictures, named):
    prompts = changes.pop("prompts", None)
    config = make_config(**{**QUICK, **changes})
    wanted = training(tmp_path, activations=trained / "activations", pictures=pictures)
    with pytest.raises(FluxscopeError, match=rf"\({named} differ\)"):
        train(config, model, wanted, Reporter(quiet=True), prompts or shapes_captions(config, pictures))


def test_a_model_that_gives_nan_is_refused_while_its_activations_are_taken(tmp_path, model, monkeypatch):
    monkeypatch.setattr(harvesting, "listen", lambda *_: iter([(0, NAN)]))
    with pytest.raises(FluxscopeError, match="512 of 512 activations hold NaN"):
        train(make_config(**QUICK), model, training(tmp_path), Reporter(quiet=True), ["a red circle"])
    assert not list(tmp_path.rglob("shard_*"))


def test_wandb_without_the_package_is_one_clear_error_before_any_work(tmp_path, monkeypatch, model):
    monkeypatch.setattr("fluxscope.commands.wandb_log.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="wandb package") as caught:
        train(make_config(**QUICK), model, training(tmp_path, wandb="project"), Reporter(quiet=True))
    assert "fluxscope[wandb]" in caught.value.hint
    assert not list(tmp_path.iterdir())
    check_wandb(None)


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


def test_what_killed_writers_left_of_the_scores_goes_and_nothing_else(trained, tmp_path, model):
    folder = tmp_path / "again"
    shutil.copytree(trained, folder)
    mine, others = folder / ".scores_double.15.ff_t2_1.json.99.tmp", folder / ".sweep.json.99.tmp"
    for path in (mine, others):
        path.write_text("half")
    before = read_json(folder / "scores_double.15.ff_t2_1.json")
    config = make_config(**QUICK)
    train(config, model, training(folder), Reporter(quiet=True), shapes_captions(config, 40))
    assert not mine.exists() and others.exists()
    assert read_json(folder / "scores_double.15.ff_t2_1.json") == before


def test_two_sweeps_in_one_folder_are_one_too_many(tmp_path, model):
    with (
        lock(tmp_path, Reporter(quiet=True)),
        pytest.raises(RunDirError, match=f"in use by process {os.getpid()}"),
    ):
        sweep(make_config(**QUICK), model, training(tmp_path), Reporter(quiet=True))
    assert not list(tmp_path.iterdir())


def test_a_disk_that_cannot_hold_the_activations_is_refused_beforehand(tmp_path, monkeypatch, model):
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(FluxscopeError, match="the activations take"):
        train(make_config(**QUICK), model, training(tmp_path), Reporter(quiet=True))
    assert not list(tmp_path.rglob("shard_*"))


def test_bad_options_are_clear_errors(tmp_path, model):
    with pytest.raises(ConfigError, match="too few"):
        train(make_config(**QUICK), model, training(tmp_path, pictures=3), Reporter(quiet=True))
    with pytest.raises(ConfigError, match="--k cannot be"):
        numbers("--k", "16,x", int)
    with pytest.raises(FluxscopeError, match="k = 257 active features of 256"):
        train(make_config(**QUICK), model, training(tmp_path, sparsities=(4, 257)), Reporter(quiet=True))
    assert not list(tmp_path.iterdir())
    assert numbers("--k", "16,32,16", int) == (16, 32)
    with pytest.raises(ConfigError, match="--l1 cannot be"):
        numbers("--l1", "0.1;0.2", float)


def test_flux_shapes_trains_on_captions_of_its_own_world_unless_a_file_is_given():
    captions = shapes_captions(make_config(), 50)
    assert captions is not None
    assert len(set(captions)) > 40
    assert shapes_captions(make_config(prompts_path="mine.txt"), 50) is None


def test_the_flag_of_its_architecture_says_what_is_trained():
    given = {"k": None, "l1": "0.1,0.2", "l0": None}
    relu = wanted_training(128, make_config(), TrainOptions(architecture="relu"), given)
    assert relu.sparsities == (0.1, 0.2)
    assert [config.architecture for config in relu.configs()] == [ReLU(0.1), ReLU(0.2)]
    given = {"k": None, "l1": None, "l0": None}
    topk = wanted_training(128, make_config(), TrainOptions(), given)
    assert [config.architecture for config in topk.configs()] == [TopK(16)]
    swept = wanted_training(128, make_config(), SweepOptions(architecture="batch_topk"), given)
    assert [config.architecture.k for config in swept.configs()] == [2, 4, 8, 16, 32]
    wide = wanted_training(3072, make_config(model_id="a/model"), TrainOptions(), {})
    assert [config.architecture for config in wide.configs()] == [TopK(64)]


@pytest.mark.parametrize(
    ("architecture", "flag", "readers", "own"),
    [
        ("topk", "l1", "relu", "k"),
        ("batch_topk", "l0", "jumprelu", "k"),
        ("relu", "k", "topk, batch_topk, matryoshka_batch_topk", "l1"),
        ("jumprelu", "k", "topk, batch_topk, matryoshka_batch_topk", "l0"),
    ],
)
def test_a_flag_that_only_other_architectures_read_is_refused(architecture, flag, readers, own):
    given = {"k": None, "l1": None, "l0": None, flag: "2"}
    for options in (TrainOptions(architecture=architecture), SweepOptions(architecture=architecture)):
        with pytest.raises(ConfigError) as caught:
            wanted_training(128, make_config(), options, given)
        assert caught.value.message == f"--{flag} is read by {readers}, and not by {architecture}"
        assert f"--{own} " in caught.value.hint


def test_a_mistake_in_the_flag_of_another_architecture_is_not_passed_over():
    with pytest.raises(ConfigError, match="--l0"):
        wanted_training(128, make_config(), TrainOptions(), {"l0": "0.1;2"})
    with pytest.raises(FluxscopeError, match="unknown architecture 'quantum'") as caught:
        wanted_training(128, make_config(), TrainOptions(architecture="quantum"), {})
    assert "topk, relu" in caught.value.hint


def test_what_is_reported_shares_no_prompt_with_what_was_trained_on(trained, monkeypatch, tmp_path, model):
    """The same captions come twice: no picture of a caption in one part is in another."""
    shutil.copytree(trained / "activations", tmp_path / "activations")
    read = {}
    real_trained, real_evaluate = train_saes.train_jobs, train_saes.evaluate
    captions = shapes_captions(make_config(**QUICK), 40)
    store = ActivationStore(next(iter((tmp_path / "activations").glob("*/*"))))

    def watch_training(source, jobs, choosing, *args, **settings):
        read["train"], read["choose"] = source.batch(0), torch.cat(choosing)
        return real_trained(source, jobs, choosing, *args, **settings)

    def watch_scores(sae, batches):
        read["report"] = torch.cat(list(batches))
        return real_evaluate(sae, batches)

    monkeypatch.setattr(train_saes, "train_jobs", watch_training)
    monkeypatch.setattr(train_saes, "evaluate", watch_scores)
    few = training(tmp_path, sparsities=(4,), spliced_pictures=0)
    (done,) = train(make_config(**QUICK), model, few, Reporter(quiet=True), captions)
    split = split_by_prompt(captions)
    for part, images in (("choose", split.choose), ("report", split.report)):
        assert torch.equal(read[part], store.read(images).float().flatten(0, 1))
    rows = {tuple(row) for row in store.read(split.train).flatten(0, 1).tolist()}
    assert all(tuple(row) in rows for row in read["train"][:50].tolist())
    assert done.scores == real_evaluate(load(done.job.folder / "sae_best.pt")[0], [read["report"]]).scores()


def test_a_sweep_held_against_the_truth_scores_every_sae_by_what_its_features_know(
    trained, tmp_path, model, capsys
):
    material = TruthMaterial(tmp_path / "truth", 40)
    again = training(tmp_path, activations=trained / "activations", spliced_pictures=0)
    config = make_config(**QUICK)
    captions = shapes_captions(config, 40)
    points = sweep(config, model, again, Reporter(quiet=False), captions, material)
    assert read_json(tmp_path / "sweep.json")["points"] == points
    said = capsys.readouterr().out
    truth = material.make(
        model, [parse_site("double.15.ff")], [1], picture_spec(config), Reporter(quiet=True)
    )
    for found in points:
        sae, _ = load(tmp_path / found["folder"] / "sae_best.pt")
        codes = codes_of(sae, truth.activations("double.15.ff", 1))
        expected = best_single_f1(codes, truth.on_tokens(ATTRIBUTES), truth.parts().of_tokens(TOKENS))
        of_truth = found["truth"]
        assert of_truth["pictures"] == 40
        assert of_truth["f1"] == pytest.approx(expected.f1.mean())
        assert of_truth["by_kind"]["size"] == pytest.approx(expected.f1[16:18].mean())
        assert of_truth["best"]["shape: circle"] == [int(expected.feature[0]), pytest.approx(expected.f1[0])]
        assert 0 < of_truth["untrained_f1"] < 1
        assert f"F1 {of_truth['f1']:.3f}" in said
    best = max(points, key=lambda found: found["truth"]["f1"])
    assert f"single features say most in {best['folder']}" in said


def test_truth_is_refused_before_any_work_where_there_is_none(tmp_path, model):
    material = TruthMaterial(tmp_path / "truth", 40)
    wanted = training(tmp_path, sites=("double.15.context",))
    with pytest.raises(ConfigError, match="carries text tokens"):
        sweep(make_config(**QUICK), model, wanted, Reporter(quiet=True), None, material)
    assert not list(tmp_path.iterdir())
