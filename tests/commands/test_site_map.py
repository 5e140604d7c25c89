"""`fluxscope site-map` on flux-shapes and on a tiny model of another family."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from fluxscope.commands.site_map import Request, plan_of, site_map
from fluxscope.errors import ConfigError
from fluxscope.files import read_json
from fluxscope.models.model import open_model
from fluxscope.progress import Reporter
from fluxscope.run.context import Context
from fluxscope.run.rundir import RunDir
from fluxscope.run.site_map_records import SiteMap
from fluxscope.settings.config import make_config
from fluxscope.shapes import oracle
from fluxscope.shapes.pairs import caption_pairs, fulfilled, wish_of
from fluxscope.shapes.shipped import CLIP_SHAPES
from tests.tiny_models import save_tiny

SHORT = {"num_inference_steps": 3, "target_step_number": 2, "batch_size": 4}
SMALL = Request(pair_count=3, kinds="ff,image,single", blocks="1,all")
FLAGS = ["--pair-count=3", "--kinds=ff,image,single", "--blocks=1,all"]


def context_of(folder, model, report=None, **settings):
    config = make_config(out_dir=str(folder), **{**SHORT, **settings})
    return Context(config, RunDir.of(config), report or Reporter(quiet=True), _opened=[model])


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    """A small map, and how often the transformer ran for it."""
    context, calls = context_of(tmp_path_factory.mktemp("map"), model), []
    count = model.transformer.register_forward_hook(lambda *_: calls.append(1))
    site_map(context, SMALL)
    count.remove()
    return context, len(calls)


def cells(context):
    return {(each.name, each.control): each for each in SiteMap.read(context.files.site_map).cells}


def test_the_cost_told_beforehand_is_the_transformer_s_calls(made):
    context, calls = made
    plan = plan_of(context, SMALL)
    assert plan.calls == calls
    assert all(batch.size <= 4 for batch in plan.batches())
    assert plan.pictures == sum(batch.size for batch in plan.batches())


def test_of_flux_1_s_shape_every_row_is_made_once_and_the_calls_are_counted(tmp_path):
    """A model of 19 and 38 blocks and two passes would cost what is told: batches x steps x passes."""
    from fluxscope.models.cells import usual_cells
    from fluxscope.models.denoising import Denoising
    from fluxscope.models.spec import ModelSpec
    from fluxscope.run.site_map import Plan
    from fluxscope.run.site_map_records import PromptPair

    cells = usual_cells(ModelSpec(3072, 19, 38, 4096, 768, 64, True, 1))
    pairs = [PromptPair(source=f"source {i}", target=f"target {i}") for i in range(5)]
    plan = Plan(tuple(pairs), tuple(cells), Denoising(tuple(np.linspace(1, 0.05, 20)), 2), 4)
    batches = plan.batches()
    assert plan.calls == len(batches) * 40
    rows = [(batch.pair, row.cell.name, row.control) for batch in batches for row in batch.rows]
    assert len(rows) == len(set(rows)) == 5 * (len(cells) + 2 * 5)
    assert max(batch.size for batch in batches) == 4
    assert len(batches) <= 5 * (-(-(len(cells) + 6) // 3) + 2)
    assert {batch.donor for batch in batches if batch.pair == 0} == {"target 0", "target 2"}


def test_a_model_of_flux_1_s_blocks_is_called_as_often_as_told(tmp_path):
    """The default map of 19 and 38 blocks, made: calls of the transformer and rows in them are counted."""
    folder = save_tiny("FLUX.1", tmp_path / "model")
    deep = open_model(str(folder), "cpu", "float32")
    pair = {"source": "a red circle on white", "target": "a blue circle on white"}
    (tmp_path / "pairs.json").write_text(json.dumps({"pairs": [pair]}))
    small = {"height": 32, "width": 32, "max_sequence_length": 12, "num_inference_steps": 2}
    small |= {
        "batch_size": 48,
        "guidance_scale": 3.5,
        "model_id": deep.model_id,
        "clip_model_id": CLIP_SHAPES,
    }
    context = context_of(tmp_path / "run", deep, **small)
    request = Request(pairs=tmp_path / "pairs.json")
    plan, rows = plan_of(context, request), []
    count = deep.transformer.register_forward_hook(
        lambda _, __, kept, out: rows.append(len(out[0])), with_kwargs=True
    )
    site_map(context, request)
    count.remove()
    assert deep.spec.n_double == 19 and deep.spec.n_single == 38
    assert len(rows) == plan.calls >= 10
    assert sum(rows) == plan.pictures * len(plan.denoising.sigmas) * plan.denoising.passes
    assert len(plan.cells) > 5 * 19 + 38


def test_the_whole_state_copied_gives_the_donor_s_picture_and_its_score_is_the_donors(made):
    context, _ = made
    found = SiteMap.read(context.files.site_map)
    everything = cells(context)["single:1", "donor"]
    assert everything.score == found.donors.score and everything.clean == found.donors.clean
    assert everything.closed > 0.99 and everything.inside > 0.97
    assert everything.outside == pytest.approx(found.donors.outside, abs=1e-3)
    assert everything.nearer.hits == everything.nearer.n == 2  # one pair's prompts make the same picture
    assert found.donors.closed == found.donors.inside == 1


def test_a_score_is_what_the_oracle_says_of_pictures_made_anew(made, model):
    """The image stream of block 1 and of all blocks, by hooks of torch's own, without the product's hook."""
    context, _ = made
    pairs = caption_pairs(3)
    embedded = model.encode([text for pair in pairs for text in pair])

    def copy(module, inputs, output):
        text, image = output
        image = image.clone()
        image[1] = image[0]
        return text, image

    for name, blocks in (("image:1", [1]), ("image:all", range(19))):
        became = []
        for number, (source, target) in enumerate(pairs):
            hooks = [model.transformer.transformer_blocks[b].register_forward_hook(copy) for b in blocks]
            spec = model.defaults.__class__(128, 128, 3, 3.5)
            latents = model.sample([embedded[target], embedded[source]], [42 + number] * 2, spec=spec)
            for hook in hooks:
                hook.remove()
            picture = model.decode(latents, spec).numpy()[1]
            before = np.asarray(Image.open(context.files.site_map_picture(number, "source")))
            wish = wish_of(source, target)
            if not fulfilled(wish, oracle.read(before), oracle.read(before))[0]:
                became.append(fulfilled(wish, oracle.read(before), oracle.read(picture))[0])
        score = cells(context)[name, "donor"].score
        assert (score.hits, score.n) == (sum(became), len(became))


def test_controls_stand_beside_copies_of_all_blocks(made):
    context, _ = made
    found = cells(context)
    assert {name for name, control in found if control == "noise"} == {"ff:all", "image:all", "single:all"}
    assert {name for name, control in found if control == "unrelated"} == {
        "ff:all",
        "image:all",
        "single:all",
    }
    assert found["image:all", "noise"].closed < found["image:all", "donor"].closed
    assert found["image:all", "unrelated"].closed < found["image:all", "donor"].closed


def test_asked_for_again_nothing_is_made_and_other_pairs_make_only_what_is_new(made, model, monkeypatch):
    context, _ = made
    before = context.files.site_map.read_bytes()
    monkeypatch.setattr(type(model), "sample", lambda *_, **__: pytest.fail("pictures were made again"))
    words = site_map(context, SMALL)
    assert words.startswith(("Steer at", "No single block"))
    assert context.files.site_map.read_bytes() == before


def test_a_lost_picture_is_made_again_with_the_same_bytes(made):
    context, _ = made
    path, before = context.files.site_map_picture(1, "donor"), context.files.site_map.read_bytes()
    pixels = path.read_bytes()
    path.unlink()
    site_map(context, SMALL)
    assert path.read_bytes() == pixels and context.files.site_map.read_bytes() == before


@pytest.mark.parametrize("batches", [1, 5])
def test_killed_and_run_again_it_ends_with_the_same_bytes(made, tmp_path, model, batches):
    context, _ = made
    folder = tmp_path / "run"
    settings = [f"--{name.replace('_', '-')}={value}" for name, value in SHORT.items()]
    command = [sys.executable, "-m", "fluxscope", "site-map", f"--out-dir={folder}", *FLAGS, *settings]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    wait_for(process, folder / "step_log.json", batches)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "site_map.json").exists()
    again = context_of(folder, model)
    site_map(again, SMALL)
    for name in ("site_map.json", "site_map.png", "site_map/pair_0002_donor.png"):
        assert (folder / name).read_bytes() == (context.files.root / name).read_bytes()


def wait_for(process, log, batches, limit=300.0):
    """Until so many batches are done."""
    end = time.monotonic() + limit
    while time.monotonic() < end and process.poll() is None:
        if log.exists() and log.read_text().count('"finished": true') >= batches:
            return
        time.sleep(0.02)
    assert process.poll() is None, "the map was finished before it could be killed"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model that no oracle knows, with two passes a step."""
    folder = save_tiny("Flux2KleinPipeline", tmp_path_factory.mktemp("tiny") / "model")
    return open_model(str(folder), "cpu", "float32")


def test_a_model_without_an_oracle_is_measured_by_distance(tiny, tmp_path):
    pairs = [
        {"source": "a red circle on white", "target": "a blue circle on white"},
        {"source": "a small square", "target": "a large square"},
    ]
    (tmp_path / "pairs.json").write_text(json.dumps({"pairs": pairs}))
    context = context_of(
        tmp_path / "run",
        tiny,
        model_id=tiny.model_id,
        clip_model_id=CLIP_SHAPES,
        **{"height": 64, "width": 96, "max_sequence_length": 12, "guidance_scale": 4.0},
    )
    calls = []
    count = tiny.transformer.register_forward_hook(lambda *_: calls.append(1))
    site_map(context, Request(pairs=tmp_path / "pairs.json", kinds="ff,single", blocks="1", windows="whole"))
    count.remove()
    found = SiteMap.read(context.files.site_map)
    assert found.measure == "distance" and len(calls) == 2 * 3 * 2
    by_name = cells(context)
    assert by_name["single:1", "donor"].score == by_name["single:1", "donor"].nearer
    assert by_name["single:1", "donor"].closed == pytest.approx(1, abs=1e-3)
    assert by_name["ff:1", "donor"].clean is None and by_name["ff:1", "donor"].by_attribute is None
    assert by_name["ff:1", "donor"].closed < 1


def test_the_shipped_pairs_of_natural_prompts_differ(tiny, tmp_path):
    context = context_of(tmp_path / "run", tiny, model_id=tiny.model_id, clip_model_id=CLIP_SHAPES)
    plan = plan_of(context, Request(kinds="ff", blocks="each"))
    assert len(plan.pairs) == 12 and len({pair.target for pair in plan.pairs}) == 12
    assert all(pair.source != pair.target for pair in plan.pairs)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"pairs": [{"source": "a cat", "target": " a  cat "}]}, r"pairs\[0\] of .* don't differ: a cat"),
        ({"pairs": []}, "holds 0 pairs"),
        ({"pairs": [{"source": "a cat", "target": " "}]}, "has an empty prompt"),
        ({"pairs": [{"source": "a cat"}]}, r"pairs\[0\].target is missing"),
        ({"pairs": [{"source": "a cat", "target": 3}]}, r"pairs\[0\].target is 3, not a text"),
        ([], "is a list, not an object"),
    ],
)
def test_a_wrong_file_of_pairs_is_one_clear_error(model, tmp_path, content, words):
    (tmp_path / "pairs.json").write_text(json.dumps(content))
    context = context_of(tmp_path / "run", model)
    with pytest.raises(Exception, match=words) as caught:
        site_map(context, Request(pairs=tmp_path / "pairs.json"))
    assert caught.value.hint
    assert not context.files.site_map.exists()


def test_more_pairs_than_the_file_holds_and_sites_that_the_model_lacks_are_refused(model, tmp_path):
    (tmp_path / "pairs.json").write_text(json.dumps({"pairs": [{"source": "a", "target": "b"}]}))
    context = context_of(tmp_path / "run", model)
    with pytest.raises(ConfigError, match="holds 1 pairs, not 2"):
        site_map(context, Request(pairs=tmp_path / "pairs.json", pair_count=2))
    with pytest.raises(ConfigError, match="the model has no blocks 30 of ff"):
        site_map(context, Request(kinds="ff", blocks="30"))


def test_cost_alone_makes_nothing(model, tmp_path, capsys):
    context = context_of(tmp_path / "run", model, Reporter())
    assert site_map(context, SMALL, cost_only=True) == "Nothing was made."
    assert "calls of the transformer" in capsys.readouterr().out
    assert not context.files.root.exists() or not any(context.files.root.iterdir())


def test_the_record_holds_what_the_words_say(made):
    context, _ = made
    found = read_json(context.files.site_map)
    assert found["ranked"] and "single:1" not in found["ranked"]
    assert found["sigmas"] == pytest.approx([1, 2 / 3, 1 / 3], abs=1e-5)
    assert len(found["pairs"]) == 3 and found["measure"] == "oracle"
