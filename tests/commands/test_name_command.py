"""`fluxscope name` on a real run: what names.json says is computed again from S, the pictures and CLIP."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fluxscope.commands.main import build_app
from fluxscope.commands.name import RANDOMS, TEMPLATE, gather, random_crops
from fluxscope.files import load_npy, read_json, save_npy, write_json
from fluxscope.measures.clip import embed_images, embed_texts, load_clip
from fluxscope.measures.names import SEEN, seen_more
from fluxscope.progress import Reporter
from fluxscope.run.codes import CodeStore
from fluxscope.run.context import Context
from fluxscope.run.name_records import Names
from fluxscope.run.rundir import RunDir
from fluxscope.settings.config import make_config
from fluxscope.shapes import CLIP_SHAPES
from tests.conftest import run_steps

COLOURS, SHAPES = ("red", "green", "blue", "yellow"), ("circle", "square", "star", "ring", "heart", "cross")
PROMPTS = [
    f"a large {c} {s} on a {b} background" for c in COLOURS for s in SHAPES for b in ("white", "black")
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Steps 1 to 5 on 48 prompts, few denoising steps, and names of all features. Read, don't write."""
    folder = tmp_path_factory.mktemp("names")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    config = make_config(
        out_dir=str(folder / "run"),
        prompts_path=str(folder / "prompts.txt"),
        reps_per_prompt=1,
        num_inference_steps=8,
        target_step_number=6,
        top_features=4,
        top_examples_per_feature=2,
    )
    run_steps(config, "1-5")
    done = fluxscope("name", "--all", config)
    assert done.exit_code == 0, done.output
    return config


def fluxscope(command, *arguments):
    *flags, config = arguments
    return CliRunner().invoke(build_app(), [command, *flags, f"--out-dir={config.out_dir}"])


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole.out_dir, tmp_path / "run")
    return replace(whole, out_dir=str(tmp_path / "run"))


@pytest.fixture(scope="module")
def names(whole):
    return Names.read(RunDir.of(whole).names)


def test_all_features_that_are_alive_are_there_and_named_ones_hold_on_the_other_half(whole, names):
    s = load_npy(RunDir.of(whole).s_matrix)
    assert [each.feature_id for each in names.features] == np.flatnonzero(s.max(0) > whole.eps_alive).tolist()
    named = [each for each in names.features if each.name]
    assert len(named) > 10
    assert np.mean([each.held_out_r for each in named]) > 0.5
    assert all(each.reason == "" and each.name == each.term and each.clip_z > SEEN for each in named)
    assert all(each.reason for each in names.features if not each.name)


def test_the_numbers_of_a_name_are_those_of_its_prompts(whole, names):
    """Which half names is found by trying both: the counts must fit one of them, for all features."""
    s = load_npy(RunDir.of(whole).s_matrix)
    context = Context(whole, RunDir.of(whole), Reporter(quiet=True))
    naming = gather(context, None, True).naming
    for each in [each for each in names.features if each.term][:40]:
        own = s[:, each.feature_id]
        strong = naming & (own >= own[naming].max() / 2)
        has = np.array([each.term in prompt for prompt in PROMPTS])
        assert each.strong_prompts == strong.sum()
        assert each.shared == pytest.approx(has[strong].mean())
        assert each.held_out_r == pytest.approx(np.corrcoef(own[~naming], has[~naming])[0, 1], abs=1e-5)


def test_clip_is_asked_about_crops_around_the_peaks(whole, names):
    """The z of one feature, from crops cut here: the box of half the picture around its strongest token."""
    files = RunDir.of(whole)
    feature = next(each for each in names.features if each.name)
    context = Context(whole, files, Reporter(quiet=True))
    material = gather(context, [feature.feature_id], False)
    store = CodeStore(files.codes, files.site, whole.target_step_index)
    order = np.argsort(-np.where(material.naming, material.strength[:, 0], 0), kind="stable")[:12]
    crops = []
    for at in order[material.strength[order, 0] > 0]:
        peak = int(store.image(int(at)).column(feature.feature_id).argmax())
        row, column = divmod(peak, 8)
        left = min(max(round((column + 0.5) * 16 - 32), 0), 64)
        top = min(max(round((row + 0.5) * 16 - 32), 0), 64)
        crops.append(picture(files, material, at).crop((left, top, left + 64, top + 64)))
    drawn = random_crops(material, (128, 128))
    assert len(drawn) == RANDOMS and all(material.naming[at] for _, at, _ in drawn)
    others = [picture(files, material, at).crop(box) for _, at, box in drawn]
    model, processor = load_clip(CLIP_SHAPES)
    word = embed_texts(model, CLIP_SHAPES, [TEMPLATE.format(feature.name)])
    z = seen_more(embed_images(model, processor, crops), embed_images(model, processor, others), word)
    assert feature.clip_z == pytest.approx(float(z[0]), rel=1e-3)


def picture(files, material, at):
    return Image.open(material.manifest.picture(material.manifest.rows[at])).convert("RGB")


def test_clip_tells_words_apart():
    model, processor = load_clip(CLIP_SHAPES)
    words = ["a picture of a large red circle", "a picture of a small blue star"]
    texts = embed_texts(model, CLIP_SHAPES, words, batch_size=1)
    assert np.allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-5)
    assert np.allclose(texts, embed_texts(model, CLIP_SHAPES, words), atol=1e-4)
    red = Image.new("RGB", (128, 128), "white")
    red.paste((220, 20, 20), (30, 30, 98, 98))
    cosines = embed_images(model, processor, [red]) @ texts.T
    assert cosines[0, 0] > cosines[0, 1]


def test_names_stand_on_the_sheet_until_the_codes_are_others(copy, monkeypatch):
    files = RunDir.of(copy)
    selected = [each["feature_id"] for each in read_json(files.selected_features)["features"]]
    shown = {}
    from fluxscope.steps import contact_sheet as step

    draw = step.contact_sheet
    monkeypatch.setattr(
        step,
        "contact_sheet",
        lambda cards, *a, **k: (shown.update({c.feature_id: c.name for c in cards}), draw(cards, *a, **k))[1],
    )
    value = read_json(files.names)
    for each in value["features"]:
        if each["feature_id"] == selected[0]:
            each |= {
                "name": "red",
                "reason": "",
                "term": "red",
                "z": 3.21,
                "held_out_r": 0.876,
                "clip_z": 2.0,
            }
    write_json(files.names, value)
    run_steps(copy, "6")
    assert shown[selected[0]] == "red (z 3.2, held out r 0.88)"
    assert shown.keys() == set(selected)
    save_npy(files.s_matrix, load_npy(files.s_matrix) * 2)
    run_steps(copy, "6")
    assert set(shown.values()) == {""}


def test_up_to_date_until_something_changes(copy):
    assert "up to date" in fluxscope("name", "--all", copy).output
    again = fluxscope("name", "--features", "3,5", copy)
    assert again.exit_code == 0 and "of 2 features" in again.output
    assert [each.feature_id for each in Names.read(RunDir.of(copy).names).features] == [3, 5]
    assert "up to date" in fluxscope("name", "--features", "3,5", copy).output
    assert "of 2 features" in fluxscope("name", "--features", "3,5", "--force", copy).output


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--features", "99999"], "there is no feature 99999"),
        (["--features", "1,x"], "--features cannot be"),
        (["--features", "-3"], "--features is -3, but must be at least 0"),
        (["--features", "3", "--all"], "in two ways"),
        (["--out-dir=nowhere"], "is not there"),
    ],
)
def test_mistakes_are_clear(copy, flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = RunDir.of(copy).names.read_bytes()
    place = [] if any("out-dir" in flag for flag in flags) else [f"--out-dir={copy.out_dir}"]
    done = CliRunner().invoke(build_app(), ["name", *flags, *place])
    assert done.exit_code == 1 and message in done.stderr
    assert RunDir.of(copy).names.read_bytes() == before


def test_a_vision_language_model_says_words_beside_the_names(copy, tmp_path):
    """The records are the same but for its words; they are those of the same crops, captioned here."""
    from fluxscope.commands.name import crops_of
    from fluxscope.measures.captions import caption, load_captioner, said_more
    from tests.tiny_captioner import save_captioner

    folder = save_captioner(tmp_path / "vlm")
    context = Context(copy, RunDir.of(copy), Reporter(quiet=True))
    ids = [each.feature_id for each in Names.read(RunDir.of(copy).names).features if each.name][:3]
    flags = ["--features", ",".join(map(str, ids))]
    assert fluxscope("name", *flags, copy).exit_code == 0
    before = Names.read(RunDir.of(copy).names).features
    assert all(each.said is None for each in before)
    done = fluxscope("name", *flags, f"--vlm={folder}", copy)
    assert done.exit_code == 0 and "crops are captioned by" in done.output
    after = Names.read(RunDir.of(copy).names).features
    assert [replace(each, said=None) for each in after] == before
    crops = crops_of(context, gather(context, ids, False))
    captions = caption(load_captioner(folder), crops.pictures, crops.boxes)
    assert [each.said for each in after] == said_more(captions, crops.owner, 3)
    assert "up to date" in fluxscope("name", *flags, f"--vlm={folder}", copy).output
    lost = fluxscope("name", *flags, "--vlm=nowhere", copy)
    assert lost.exit_code == 1 and "no vision-language model could be loaded from nowhere" in lost.stderr
    assert Names.read(RunDir.of(copy).names).features == after
