"""The page of a run holds what the run holds: each number is found again by another way."""

import base64
import json
import re
import shutil
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from fluxscope.atlas.build import MARK, build
from fluxscope.atlas.features import enriched, heat_texts, prompt_words, strip_places
from fluxscope.atlas.neighbours import correlations, cosines, firing, nearest, plane, quantised
from fluxscope.atlas.shards import shown, write_shard
from fluxscope.errors import RunDirError
from fluxscope.files import load_npy, read_jsonl, write_text
from fluxscope.progress import Reporter
from fluxscope.run.codes import CodeStore
from fluxscope.run.context import Context
from fluxscope.run.rundir import RunDir
from fluxscope.run.step_log import StepLog

MOST = 70


def context_of(config):
    return Context(config, RunDir.of(config), Reporter(quiet=True))


@pytest.fixture(scope="session")
def page(finished, tmp_path_factory):
    target = tmp_path_factory.mktemp("atlas") / "page"
    build(context_of(finished), target, MOST)
    return target


def folder_of(page: Path) -> Path:
    (folder,) = [each for each in page.iterdir() if each.is_dir()]
    return folder


def shard(page: Path, name: str):
    return shard_text(folder_of(page) / "data" / f"{name}.js", name)


def shard_text(path: Path, name: str):
    text = path.read_text("ascii")
    found = re.fullmatch(r'fluxscopeShard\("([^"]+)","([A-Za-z0-9+/=]*)"\);\n', text)
    assert found and found[1] == name
    return json.loads(zlib.decompress(base64.b64decode(found[2])))


def drawn(heat: str, n_tokens: int) -> np.ndarray:
    """A heatmap's levels on all tokens, read a character at a time."""
    found, token = np.zeros(n_tokens), 0
    for letter in heat:
        if "a" <= letter <= "p":
            found[token] = ord(letter) - ord("a") + 1
            token += 1
        else:
            token += ord(letter) - ord("(") + 1
    return found


def test_features_have_their_pictures_and_codes(finished, page):
    files = RunDir.of(finished)
    s = load_npy(files.s_matrix)
    rows = read_jsonl(files.manifest)
    store = CodeStore(files.codes, files.site, finished.target_step_index)
    table = shard(page, "s0_table")
    features = shard(page, "s0_f0") + shard(page, "s0_f1")
    assert [each["id"] for each in features] == table["id"]
    assert len(table["id"]) == MOST
    dense = {}
    for record in features[:5] + features[-2:]:
        column = s[:, record["id"]]
        best = {}  # the strongest picture of each prompt
        for place in np.argsort(-column, kind="stable"):
            if column[place] > finished.eps_alive:
                best.setdefault(rows[place]["prompt"], int(place))
        assert [place for place, *_ in record["top"]] == list(best.values())[:16]
        for place, value, heat in record["top"] + [each for _, part in record["strips"] for each in part]:
            assert value == pytest.approx(column[place], rel=5e-3)
            if place not in dense:
                dense[place] = store.image(place).to_dense().numpy()
            codes = dense[place][:, record["id"]]
            expected = np.ceil(16 * codes / column.max())
            np.testing.assert_allclose(drawn(heat, store.n_tokens), expected, atol=1e-9)
        assert sum(record["histogram"]) == len(store.column(record["id"])[0])


def test_strips_hold_pictures_of_their_range(page, finished):
    s = load_npy(RunDir.of(finished).s_matrix)
    for record in shard(page, "s0_f0")[:10]:
        column = s[:, record["id"]]
        active = np.sort(column[column > finished.eps_alive])
        for name, pictures in record["strips"]:
            values = [column[place] for place, *_ in pictures]
            if name == "silent":
                assert all(value <= finished.eps_alive for value in values)
                assert len(values) == min(4, (column <= finished.eps_alive).sum())
            else:
                low, high = (int(part) for part in name.rstrip("%").split("-"))
                inside = active[len(active) * low // 100 : len(active) * high // 100]
                assert all(inside.min() <= value <= inside.max() for value in values)


def test_strips_show_both_ends_of_a_range():
    column = np.arange(101, dtype=np.float32)  # 0 is silent; 1 to 100 are active
    strips = dict(strip_places(column, 0.5, 0))
    assert strips["90-99%"] == [99, 96, 94, 91]
    assert (strips["50-90%"][0], strips["50-90%"][-1]) == (90, 51)
    assert (strips["0-50%"][0], strips["0-50%"][-1]) == (50, 1)
    assert strips["silent"] == [0]


def test_a_token_leads_to_its_features(finished, page):
    files = RunDir.of(finished)
    store = CodeStore(files.codes, files.site, finished.target_step_index)
    ids = np.array(shard(page, "s0_table")["id"])
    counts, features, levels = shard(page, "s0_p0")["pictures"][3]
    assert sum(counts) == len(features) == len(levels)
    assert len(counts) == store.n_tokens
    dense = store.image(3).to_dense().numpy()[:, ids]
    largest = load_npy(files.s_matrix).max(0)[ids]
    token = int(np.flatnonzero(counts)[0])
    share = dense[token, features[0]] / largest[features[0]]
    assert levels[0] == chr(ord("`") + int(np.ceil(16 * share)))
    for token, part in enumerate(np.split(np.array(features), np.cumsum(counts)[:-1])):
        strongest = np.argsort(-dense[token], kind="stable")[: (dense[token] > 0).sum()]
        assert part.tolist() == strongest.tolist()[:16]


def test_neighbours_are_those_of_the_correlation(finished, page):
    s = load_npy(RunDir.of(finished).s_matrix)
    ids = shard(page, "s0_table")["id"]
    fires = (s[:, ids] > finished.eps_alive).astype(float)
    for line, record in enumerate(shard(page, "s0_f0")[:8]):
        varies = fires[:, line].std() > 0
        for other, value in record["cofiring"]:
            expected = np.corrcoef(fires[:, line], fires[:, ids.index(other)])[0, 1]
            assert varies
            assert other != record["id"]
            assert value == pytest.approx(expected, abs=1e-3)


def test_correlations_and_constant_columns():
    s = np.random.default_rng(0).random((600, 7)).astype(np.float32)
    s[:, 2] = 1
    ids = np.array([6, 2, 0])
    fires = firing(s, ids, 0.5)
    assert ((s[:, ids] > 0.5) == fires.numpy().T).all()
    found = correlations(fires, fires).numpy()
    np.testing.assert_allclose(found[::2, ::2], np.corrcoef(s[:, [6, 0]].T > 0.5), atol=1e-5)
    assert (found[1] == 0).all() and (found[:, 1] == 0).all()


def test_cosines_in_eight_bits_are_those_of_the_directions():
    rows = np.random.default_rng(0).normal(size=(50, 128)).astype(np.float32)
    rows[7] = rows[3] + 0.5 * rows[7]
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    coarse, scale = quantised(unit)
    np.testing.assert_allclose(cosines(slice(2, 9), coarse, scale), unit[2:9] @ unit.T, atol=5e-3)
    ids = np.arange(100, 150)
    lists = nearest(cosines(slice(0, 50), coarse, scale), ids, ids)
    assert lists[3][0][0] == 107
    assert all(ids[row] not in [i for i, _ in each] for row, each in enumerate(lists))
    assert [v for _, v in lists[3]] == sorted((v for _, v in lists[3]), reverse=True)


def test_the_map_is_of_the_first_two_principal_axes():
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(300, 20)) * np.geomspace(8, 0.1, 20) + 5).astype(np.float32)
    coarse, scale = quantised(rows)
    found = plane(coarse, scale)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    u, *_ = np.linalg.svd(unit - unit.mean(0), full_matrices=False)
    assert found.min() >= 0
    assert found.max() <= 1000
    for axis in range(2):
        assert len(np.unique(found[:, axis])) == 300
        assert abs(spearmanr(found[:, axis], u[:, axis]).statistic) > 0.995


@pytest.mark.parametrize(("rows", "n_tokens"), [([3], 4), ([0, 1, 63], 64), ([300, 352, 353, 405, 499], 200)])
def test_a_heatmap_passes_over_what_is_silent(rows, n_tokens):
    values = np.linspace(0.1, 1, len(rows), dtype=np.float32)
    for place in range(3):
        dense = np.zeros(3 * n_tokens)
        dense[rows] = np.ceil(16 * values)
        (heat,) = heat_texts(np.array(rows), values, [place], n_tokens, 1.0)
        assert drawn(heat, n_tokens).tolist() == dense[place * n_tokens : (place + 1) * n_tokens].tolist()


def test_words_are_compared_with_the_other_prompts():
    words, has = prompt_words(["red cat", "red dog", "blue cat", "blue dog"] * 5)
    assert set(words) == {"red", "blue", "cat", "dog"}
    fires = np.array([True, True, False, False] * 5)[:, None]
    inside, outside, z = enriched(fires, has)
    red, cat = words.index("red"), words.index("cat")
    assert (inside[0, red], outside[0, red]) == (1, 0)
    assert z[0, red] == pytest.approx(1 / np.sqrt(0.25 * (1 / 10 + 1 / 10)))
    assert z[0, cat] == pytest.approx(0)


def test_what_was_not_measured_is_null(page):
    record = shard(page, "s0_f0")[0]
    assert (record["steps"], record["truth"], record["truthMeasured"], record["effects"]) == (
        None,
        [],
        False,
        [],
    )


def test_names_are_those_of_this_S(finished, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(finished.out_dir, root)
    config = replace(finished, out_dir=str(root))
    files = RunDir.of(config)
    build(context_of(config), tmp_path / "page", 2)
    first, second = shard(tmp_path / "page", "s0_table")["id"]
    known = {"term": "red", "z": 4.5, "shared": 0.5, "strong_prompts": 3, "clip_z": None, "looks_like": []}
    features = [
        {"feature_id": first, "name": "red <b>", "reason": "", "held_out_r": 0.62, **known},
        {"feature_id": second, "name": None, "reason": "too few prompts", "held_out_r": None, **known},
    ]
    digest = StepLog.open(files.step_log).digest(files.s_matrix.absolute())
    for own, names, reasons in (
        (digest, ["red <b>", None], [None, "too few prompts"]),
        ("another", [None, None], [None, None]),
    ):
        names_file = {"s_sha256": own, "num_prompts": 12, "clip_model_id": "clip", "features": features}
        write_text(files.names, json.dumps(names_file))
        build(context_of(config), tmp_path / "page", 2)
        table = shard(tmp_path / "page", "s0_table")
        assert (table["name"], table["unnamed"]) == (names, reasons)
        assert table["evidence"][0] == ({"z": 4.5, "held_out_r": 0.62} if own == digest else {})


def test_hostile_texts_become_harmless(finished, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(finished.out_dir, root)
    config = replace(finished, out_dir=str(root))
    manifest = RunDir.of(config).manifest
    evil = "</script><img src=x onerror=alert(1)>\u202egnp.exe\u001b\u2028\u2066 e\u0301"
    rows = [{**row, "prompt": evil} if row["prompt_idx"] == 0 else row for row in read_jsonl(manifest)]
    write_text(manifest, "".join(json.dumps(row) + "\n" for row in rows))
    build(context_of(config), tmp_path / "page", 3)
    first = shard(tmp_path / "page", "index")["prompts"][0]
    assert first == "</script><img src=x onerror=alert(1)>\ufffdgnp.exe\ufffd\u2028\ufffd e\u0301"
    assert len(shown("x" * 10**6)) < 2100


def test_a_shard_is_ascii_and_strict(tmp_path):
    write_shard(tmp_path, "a", {"text": "\u2028\U0001f600"})
    assert (tmp_path / "data/a.js").read_bytes().isascii()
    assert shard_text(tmp_path / "data/a.js", "a") == {"text": "\u2028\U0001f600"}
    with pytest.raises(ValueError, match="JSON"):
        write_shard(tmp_path, "a", float("nan"))


def test_the_page_runs_only_its_own_script():
    page = Path(build.__code__.co_filename).parent / "page"
    html = (page / "index.html").read_text()
    assert MARK in html
    assert "default-src 'none'" in html
    assert "connect-src" not in html  # so that default-src forbids it
    assert re.findall(r"<script(?![^>]*\bsrc=)", html) == []
    script = "".join(part.read_text() for part in page.glob("*.js"))
    for door in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch(", "http"):
        assert door not in script


def test_a_page_is_made_once_and_replaced_whole(finished, tmp_path, monkeypatch):
    context = context_of(finished)
    build(context, tmp_path, 2)
    before = folder_of(tmp_path), (tmp_path / "index.html").read_text()
    assert "up to date" in build(context, tmp_path, 2)

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("fluxscope.atlas.build.write_site", killed)
        build(context, tmp_path, 3)
    assert (tmp_path / "index.html").read_text() == before[1]
    assert (before[0] / "data" / "s0_table.js").is_file()
    assert len(list(tmp_path.iterdir())) == 3  # what the killed one left
    build(context, tmp_path, 3)
    assert folder_of(tmp_path).name in (tmp_path / "index.html").read_text()
    assert folder_of(tmp_path) != before[0]


def test_another_page_is_not_written_over(finished, tmp_path):
    (tmp_path / "index.html").write_text("<p>mine</p>")
    with pytest.raises(RunDirError, match="something else"):
        build(context_of(finished), tmp_path)
    assert (tmp_path / "index.html").read_text() == "<p>mine</p>"
