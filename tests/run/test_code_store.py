import json
import shutil
from unittest import mock

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import LocalStore

from fluxscope.errors import MissingInputError, RunDirError
from fluxscope.progress import Reporter
from fluxscope.run import by_feature, codes
from fluxscope.run.by_feature import QUANTILES
from fluxscope.run.codes import CodeStore
from fluxscope.run.lock import lock_folders
from fluxscope.run.rundir import RunDir
from fluxscope.run.steering import strength_units
from fluxscope.sae.codes import SparseCodes

TOKENS, FEATURES = 4, 9


def random_codes(seed: int, images: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    dense = rng.random((images * TOKENS, FEATURES), dtype=np.float32)
    return torch.from_numpy(dense * (dense > 0.7))


@settings(max_examples=15, deadline=None)
@given(batches=st.lists(st.integers(0, 3), min_size=1, max_size=4), seed=st.integers(0, 100))
def test_what_is_appended_is_read_back(tmp_path_factory, batches, seed):
    store = CodeStore.create(tmp_path_factory.mktemp("codes"), "double.15.ff", 13, TOKENS, FEATURES)
    parts = [random_codes(seed + i, images) for i, images in enumerate(batches)]
    for part in parts:
        store.append(SparseCodes.from_dense(part))
    whole = torch.cat(parts)
    assert store.n_images == sum(batches)
    for i in range(store.n_images):
        torch.testing.assert_close(
            store.image(i).to_dense(), whole[i * TOKENS : (i + 1) * TOKENS], rtol=0, atol=0
        )
    read = [codes.to_dense() for _, codes in store.blocks(2)]
    if read:
        torch.testing.assert_close(torch.cat(read), whole, rtol=0, atol=0)


def test_rows_of_an_unfinished_batch_are_taken_away(tmp_path):
    store = CodeStore.create(tmp_path, "double.15.ff", 13, TOKENS, FEATURES)
    kept, lost = random_codes(0, 2), random_codes(1, 3)
    store.append(SparseCodes.from_dense(kept))
    store.append(SparseCodes.from_dense(lost))
    # A writer killed between entries and row pointers leaves entries that no row owns.
    store._feature.write(len(store._feature), np.zeros(5, np.int32))
    store.truncate(2)
    again = CodeStore.create(tmp_path, "double.15.ff", 13, TOKENS, FEATURES)
    assert again.n_images == 2
    assert len(again._feature) == len(again._value) == again.nnz
    torch.testing.assert_close(again.images(0, 2).to_dense(), kept, rtol=0, atol=0)


def test_a_manifest_longer_than_the_store_is_an_error(tmp_path):
    store = CodeStore.create(tmp_path, "double.15.ff", 13, TOKENS, FEATURES)
    with pytest.raises(RunDirError, match="codes of 0 images, but the manifest lists 3"):
        store.truncate(3)


def test_other_widths_are_refused(tmp_path):
    CodeStore.create(tmp_path, "double.15.ff", 13, TOKENS, FEATURES)
    with pytest.raises(RunDirError, match="not 4 x 10"):
        CodeStore.create(tmp_path, "double.15.ff", 13, TOKENS, FEATURES + 1)


def test_missing_codes_and_images_are_named(tmp_path):
    with pytest.raises(MissingInputError, match="no codes of double.5.ff at step 3"):
        CodeStore(tmp_path, "double.5.ff", 3)
    store = CodeStore.create(tmp_path, "double.5.ff", 3, TOKENS, FEATURES)
    with pytest.raises(MissingInputError, match="image 0 is not among the 0"):
        store.image(0)


def stored(root, batches=(3, 2), seed=0, nothing=()):
    """A store of random codes, and the same codes dense: (images * TOKENS, FEATURES)."""
    store = CodeStore.create(root, "double.15.ff", 13, TOKENS, FEATURES)
    parts = [random_codes(seed + i, images) for i, images in enumerate(batches)]
    for part in parts:
        part[:, list(nothing)] = 0
        store.append(SparseCodes.from_dense(part))
    return store, torch.cat(parts)


def test_other_tools_list_the_hierarchy_with_what_each_group_is(tmp_path):
    stored(tmp_path / "codes.zarr")
    CodeStore.create(tmp_path / "codes.zarr", "single.1", 2, 20, 7).write_index()
    root = zarr.open_group(tmp_path / "codes.zarr", mode="r")
    assert root.attrs["format_version"] == 2
    assert {name for name, _ in root.groups()} == {"double.15.ff", "single.1"}
    members = {name for name, _ in root.members(max_depth=None)}
    assert {f"double.15.ff/step_13/{name}" for name in ("indptr", "feature", "value")} <= members
    assert {f"single.1/step_2/by_feature/{name}" for name in ("indptr", "row", "value")} <= members
    step = root["single.1/step_2"]
    assert dict(step.attrs) == {
        **{"site": "single.1", "step": 2, "format_version": 2},
        **{"n_tokens": 20, "n_features": 7},
    }


def test_a_store_of_the_first_version_is_read_and_gone_on_with(tmp_path):
    """No groups above it, no site, step or version in its attributes, no chunks of zeros alone."""
    store, dense = stored(tmp_path)
    for place in (tmp_path, store.path.parent):
        (place / "zarr.json").unlink()
    said = json.loads((store.path / "zarr.json").read_text())
    said["attributes"] = {"n_tokens": TOKENS, "n_features": FEATURES}
    (store.path / "zarr.json").write_text(json.dumps(said))
    old = CodeStore(tmp_path, "double.15.ff", 13)
    torch.testing.assert_close(old.images(0, 5).to_dense(), dense, rtol=0, atol=0)
    assert not (tmp_path / "zarr.json").exists()
    more = random_codes(9, 1)
    going_on = CodeStore.create(tmp_path, "double.15.ff", 13, TOKENS, FEATURES)
    going_on.truncate(5)
    going_on.append(SparseCodes.from_dense(more))
    again = CodeStore(tmp_path, "double.15.ff", 13)
    torch.testing.assert_close(again.images(0, 6).to_dense(), torch.cat([dense, more]), rtol=0, atol=0)
    assert sorted(name for name, _ in zarr.open_group(tmp_path, mode="r").groups()) == ["double.15.ff"]


def test_a_first_version_s_pointers_of_silent_images_may_lack(tmp_path):
    store, _ = stored(tmp_path, nothing=range(FEATURES))
    (store.path / "indptr" / "c" / "0").unlink()
    assert CodeStore(tmp_path, "double.15.ff", 13).images(0, 5).l0() == 0


def test_codes_of_feature_0_alone_are_told_from_a_lost_chunk(tmp_path):
    store, dense = stored(tmp_path, nothing=range(1, FEATURES))
    read = CodeStore(tmp_path, "double.15.ff", 13).images(0, 5)
    torch.testing.assert_close(read.to_dense(), dense, rtol=0, atol=0)
    (store.path / "feature" / "c" / "0").unlink()
    with pytest.raises(RunDirError, match=r"feature/c/0 is missing"):
        CodeStore(tmp_path, "double.15.ff", 13)


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def put(name, place, value):
    def change(path):
        array = zarr.open_array(path / name, mode="r+")
        array[place] = value

    return change


def shorten(path):
    zarr.open_array(path / "value", mode="r+").resize((3,))


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (lambda path: (path / "indptr/c/0").unlink(), "indptr/c/0 is missing"),
        (lambda path: (path / "feature/c/0").unlink(), "feature/c/0 is missing"),
        (lambda path: (path / "value/c/0").unlink(), "value/c/0 is missing"),
        (lambda path: cut(path / "indptr/c/0"), "indptr/c/0 cannot be read"),
        (lambda path: cut(path / "feature/c/0"), "feature/c/0 cannot be read"),
        (lambda path: cut(path / "value/c/0"), "value/c/0 cannot be read"),
        (lambda path: (path / "value/c/0").write_bytes(b""), "value/c/0 cannot be read"),
        (lambda path: (path / "zarr.json").write_text(""), "step_13/zarr.json cannot be read"),
        (lambda path: (path / "zarr.json").write_text("[]"), "step_13/zarr.json cannot be read"),
        (lambda path: (path / "value/zarr.json").write_text(""), "value/zarr.json cannot be read"),
        (lambda path: (path / "value/zarr.json").write_text("{}"), "value/zarr.json"),
        (lambda path: (path / "indptr/zarr.json").unlink(), "indptr"),
        (put("indptr", 4, 10**9), "indptr does not ascend"),
        (put("indptr", 0, -1), "indptr does not ascend"),
        (put("indptr", -1, 10**9), "indptr ends at entry 1000000000"),
        (put("feature", 2, FEATURES), "feature lists no features in images 0 to 4"),
        (put("feature", 2, -1), "feature lists no features"),
        (put("feature", slice(0, 12), 3), "feature lists no features"),
        (put("value", 1, np.nan), "value holds codes that are none"),
        (put("value", 1, np.inf), "value holds codes that are none"),
        (put("value", 1, 0.0), "value holds codes that are none"),
        (put("value", 1, -2.0), "value holds codes that are none"),
        (shorten, "indptr ends at entry"),
    ],
)
def test_a_damaged_store_is_named_with_a_remedy_and_never_read_as_zeros(tmp_path, harm, named):
    store, _ = stored(tmp_path / "run" / "codes.zarr")
    harm(store.path)
    with pytest.raises(RunDirError, match=named) as caught:
        CodeStore(tmp_path / "run" / "codes.zarr", "double.15.ff", 13).images(0, 5)
    assert caught.value.hint.endswith(f"fluxscope collect --force --out-dir {tmp_path / 'run'}")
    assert "\n" not in caught.value.message


def test_a_lost_chunk_is_found_by_who_goes_on_with_the_store(tmp_path):
    store, _ = stored(tmp_path)
    (store.path / "value" / "c" / "0").unlink()
    with pytest.raises(RunDirError, match="value/c/0 is missing"):
        CodeStore.create(tmp_path, "double.15.ff", 13, TOKENS, FEATURES).truncate(5)


def scanned(store, feature):
    """A feature's codes as they were found before there was an index."""
    found = [np.zeros(0, np.float32)]
    found += [codes.value[codes.feature == feature].numpy() for _, codes in store.blocks()]
    return np.concatenate(found)


@settings(max_examples=25, deadline=None)
@given(
    batches=st.lists(st.integers(0, 3), min_size=1, max_size=3),
    seed=st.integers(0, 100),
    silent=st.sets(st.integers(0, FEATURES - 1)),
    memory=st.integers(1, 40),
    chunk=st.integers(1, 30),
)
def test_one_feature_is_found_with_and_without_an_index(
    tmp_path_factory, batches, seed, silent, memory, chunk
):
    root = tmp_path_factory.mktemp("codes")
    store, dense = stored(root, batches, seed, silent)
    everything = range(FEATURES)
    before = store.columns(everything), store.feature_quantiles(everything)
    with (
        mock.patch.object(by_feature, "ENTRIES_IN_MEMORY", memory),
        mock.patch.object(by_feature, "ENTRIES_PER_CHUNK", chunk),
        mock.patch.object(codes, "ENTRIES_PER_BLOCK", memory),
    ):
        store.write_index()
    again = CodeStore(root, "double.15.ff", 13)
    assert again.is_indexed
    for feature in everything:
        rows = dense[:, feature].nonzero().flatten().numpy()
        for found in (before[0][feature], again.column(feature)):
            np.testing.assert_array_equal(found[0], rows)
            np.testing.assert_array_equal(found[1], dense[rows, feature].numpy())
        values = scanned(again, feature)
        for quantiles in (before[1][feature], again.feature_quantiles([feature])[0]):
            if len(values):
                expected = [np.float32(np.percentile(values, q)) for q in QUANTILES]
                np.testing.assert_array_equal(quantiles, expected)
            else:
                assert np.isnan(quantiles).all()
    assert not list(root.rglob("*.tmp")) and not list(root.rglob("spill"))


def test_an_index_never_is_of_other_codes(tmp_path):
    store, dense = stored(tmp_path)
    store.write_index()
    written = (store.path / "by_feature" / "value" / "c" / "0").stat().st_mtime_ns
    store.truncate(5)  # nothing to take away
    store.write_index()
    assert (store.path / "by_feature" / "value" / "c" / "0").stat().st_mtime_ns == written
    store.truncate(3)
    assert not store.is_indexed
    store.write_index()
    assert len(store.column(2)[0]) == int((dense[: 3 * TOKENS, 2] > 0).sum())
    store.append(SparseCodes.from_dense(random_codes(5, 1)))
    assert not store.is_indexed
    store.write_index()
    assert store.column(2)[0].max() >= 3 * TOKENS


def test_a_writer_killed_in_the_middle_leaves_no_index(tmp_path, monkeypatch):
    store, _ = stored(tmp_path)
    expected = store.column(3)
    monkeypatch.setattr(by_feature, "_write_sorted", mock.Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.write_index()
    assert not store.is_indexed
    np.testing.assert_array_equal(store.column(3)[1], expected[1])
    with lock_folders([tmp_path], Reporter(quiet=True)):
        assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (lambda path: (path / "value/c/0").unlink(), "value/c/0 is missing"),
        (lambda path: cut(path / "row/c/0"), "row/c/0 cannot be read"),
        (put("row", slice(0, 90), 7), "rows out of order"),
        (put("value", slice(0, 90), -1.0), "codes that are none"),
        (put("indptr", 1, 10**6), "does not ascend"),
        (shorten, "value holds 3 entries"),
    ],
)
def test_a_damaged_index_is_named_and_works_again_once_it_is_deleted(tmp_path, harm, named):
    store, dense = stored(tmp_path)
    store.write_index()
    harm(store.path / "by_feature")
    with pytest.raises(RunDirError, match=named) as caught:
        store.column(0)
    assert caught.value.hint.startswith(f"Delete the folder {store.path / 'by_feature'}:")
    shutil.rmtree(store.path / "by_feature")
    np.testing.assert_array_equal(store.column(0)[1], dense[:, 0][dense[:, 0] > 0].numpy())


def test_one_feature_of_a_large_run_costs_few_bytes(tmp_path, monkeypatch):
    tokens, features, images, k = 64, 2048, 100, 16
    rng = np.random.default_rng(0)
    store = CodeStore.create(tmp_path, "double.15.ff", 13, tokens, features)
    indptr = np.arange(0, tokens * images * k + 1, k)
    feature = np.sort(rng.integers(0, features // k, (tokens * images, k)) * k + np.arange(k), axis=1)
    value = rng.random(feature.size, dtype=np.float32) + 0.1
    store.append(SparseCodes.from_numpy(indptr, feature.reshape(-1), value, features))
    monkeypatch.setattr(by_feature, "ENTRIES_PER_CHUNK", 2048)
    store.write_index()
    read = []
    get = LocalStore.get

    async def counting(self, key, *rest, **named):
        found = await get(self, key, *rest, **named)
        read.append(len(found) if found else 0)
        return found

    monkeypatch.setattr(LocalStore, "get", counting)
    rows, values = CodeStore(tmp_path, "double.15.ff", 13).column(77)
    assert len(rows) == int((feature == 77).sum()) > 0
    monkeypatch.setattr(LocalStore, "get", get)
    whole = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert sum(read) < whole / 20
    np.testing.assert_array_equal(values, value[feature.reshape(-1) == 77])


def test_the_unit_of_strength_is_the_number_it_was_before_there_was_an_index(finished):
    config = finished
    store = CodeStore(RunDir.of(config).codes, config.site, config.target_step_index)
    assert store.is_indexed
    features = [*range(0, store.n_features, 5), -1, store.n_features]
    units = strength_units(config, store, features)
    assert list(units) == features[:-2]
    values = {feature: scanned(store, feature) for feature in units}
    assert units == {f: float(np.percentile(v, 99.0)) if len(v) else 0.0 for f, v in values.items()}
    assert min(units.values()) == 0 < max(units.values())
