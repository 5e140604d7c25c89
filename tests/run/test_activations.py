"""Activations on disk: resumable, exact, refused when they don't fit; and batches from them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from fluxscope.errors import FluxscopeError, MissingInputError, RunDirError
from fluxscope.files import load_npy, save_npy
from fluxscope.models.spec import PictureSpec
from fluxscope.run.activations import ActivationStore, identity_of, planned_bytes, require_space
from fluxscope.sae.data import ByImage

T, D = 4, 6


def pictures(n: int, first: int = 0) -> torch.Tensor:
    """Picture i holds i x 100 + token, so that every number tells where it comes from."""
    number = torch.arange(first, first + n)[:, None, None] * 100.0
    return number + torch.arange(T)[None, :, None] + torch.arange(D) / 10


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_what_was_written_is_read(tmp_path: Path, dtype: str) -> None:
    store = ActivationStore.create(tmp_path, D, T, dtype, images_per_shard=3)
    for first in range(0, 8, 2):
        store.append(pictures(2, first))
    again = ActivationStore(tmp_path)
    assert again.n_images == 8
    asked = [7, 0, 3, 3]
    expected = pictures(8).to(again.dtype)[asked]
    assert torch.equal(again.read(asked), expected)
    stored = sum(path.stat().st_size for path in tmp_path.glob("shard_*.npy"))
    assert planned_bytes(8, T, D, dtype) <= stored < planned_bytes(8, T, D, dtype) + 3 * 200


@pytest.mark.parametrize("batches", [(5, 3), (2, 2, 4), (8,), (3, 5)])
def test_pictures_are_on_the_disk_at_once_and_the_shards_do_not_depend_on_the_batches(
    tmp_path: Path, batches: tuple[int, ...]
) -> None:
    first = 0
    for size in batches:
        store = ActivationStore.create(tmp_path, D, T, images_per_shard=3)
        assert store.n_images == first
        store.append(pictures(size, first))
        first += size
    again = ActivationStore(tmp_path)
    assert again.n_images == 8
    assert torch.equal(again.read(range(8)), pictures(8).bfloat16())
    assert [len(load_npy(path)) for path in sorted(tmp_path.glob("shard_*.npy"))] == [3, 3, 2]


@pytest.mark.parametrize("kept", [0, 2, 3, 4, 6, 7, 9])
def test_a_store_is_cut_back_to_any_number_of_pictures(tmp_path: Path, kept: int) -> None:
    store = ActivationStore.create(tmp_path, D, T, images_per_shard=3)
    store.append(pictures(7))
    store.truncate(kept)
    left = min(kept, 7)
    assert store.n_images == ActivationStore(tmp_path).n_images == left
    store.append(pictures(9 - left, left))
    assert torch.equal(ActivationStore(tmp_path).read(range(9)), pictures(9).bfloat16())


def test_numbers_beyond_float16_stay_what_they_are(tmp_path: Path) -> None:
    store = ActivationStore.create(tmp_path, D, T)
    store.append(torch.full((1, T, D), 131072.0))
    assert torch.equal(ActivationStore(tmp_path).read([0]), torch.full((1, T, D), 131072.0).bfloat16())


def test_a_picture_that_is_not_there_is_named(tmp_path: Path) -> None:
    store = ActivationStore.create(tmp_path, D, T)
    store.append(pictures(2))
    with pytest.raises(MissingInputError, match="picture 2 is not among the 2"):
        store.read([0, 2])


def change_meta(folder: Path, **values: object) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | values))


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (lambda folder: (folder / "shard_000001.npy").unlink(), "shard_000001.npy is missing"),
        (lambda folder: (folder / "shard_000001.npy").write_bytes(b""), "shard_000001.npy is damaged"),
        (
            lambda folder: (folder / "shard_000002.npy").write_bytes(
                (folder / "shard_000002.npy").read_bytes()[:-1]
            ),
            "shard_000002.npy is damaged or cut short",
        ),
        (lambda folder: save_npy(folder / "shard_000000.npy", np.zeros((2, T, D), "uint16")), "2 pictures"),
        (lambda folder: save_npy(folder / "shard_000000.npy", np.zeros((3, T, D + 1), "uint16")), "shape"),
        (lambda folder: save_npy(folder / "shard_000000.npy", np.zeros((3, T, D), "float16")), "float16"),
        (lambda folder: (folder / "meta.json").write_text("[]"), "meta.json does not say"),
        (lambda folder: change_meta(folder, dtype="int8"), "meta.json does not say"),
        (lambda folder: change_meta(folder, width="6"), "meta.json does not say"),
        (lambda folder: change_meta(folder, images_per_shard=0), "meta.json does not say"),
    ],
)
def test_a_damaged_store_is_named_with_a_remedy(tmp_path: Path, harm, named: str) -> None:
    folder = tmp_path / "activations"
    ActivationStore.create(folder, D, T, images_per_shard=3).append(pictures(8))
    harm(folder)
    with pytest.raises(RunDirError, match=named) as caught:
        ActivationStore(folder)
    assert f"Delete the folder {folder}" in caught.value.hint


def test_float16_of_an_earlier_version_is_refused_and_shown(tmp_path: Path) -> None:
    old = tmp_path / "activations.zarr" / "single.1" / "step_13"
    zarr.create_array(old, shape=(2, T, D), dtype="float16")
    place = tmp_path / "activations" / "single.1" / "step_13"
    for open_it in (lambda: ActivationStore(place), lambda: ActivationStore.create(place, D, T)):
        with pytest.raises(RunDirError, match=r"activations.zarr/single.1/step_13 holds .* in float16"):
            open_it()
    assert not place.exists()


SAID = ("model", torch.bfloat16, PictureSpec(128, 256, 20, 3.5), 20, ["a circle", "a square"], [42, 43])


@pytest.mark.parametrize(
    ("place", "other", "named"),
    [
        (0, "another", "model_id"),
        (1, torch.float32, "model_dtype"),
        (2, PictureSpec(256, 128, 20, 3.5), "picture_size"),
        (2, PictureSpec(128, 256, 21, 3.5), "num_inference_steps"),
        (2, PictureSpec(128, 256, 20, 2.0), "guidance_scale"),
        (3, 21, "max_sequence_length"),
        (4, ["a circle", "a star"], "prompts_sha256"),
        (5, [42, 44], "seeds_sha256"),
        (5, [42], "n_images, seeds_sha256"),
    ],
)
def test_activations_of_other_pictures_are_refused(tmp_path: Path, place: int, other, named: str) -> None:
    ActivationStore.create(tmp_path, D, T, extra=identity_of(*SAID))
    assert ActivationStore.create(tmp_path, D, T, extra=identity_of(*SAID)).n_images == 0
    changed = [*SAID]
    changed[place] = other
    with pytest.raises(RunDirError, match=rf"other settings \({named} differ\)"):
        ActivationStore.create(tmp_path, D, T, extra=identity_of(*changed))


def test_other_settings_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no activations"):
        ActivationStore(tmp_path)
    ActivationStore.create(tmp_path, D, T, extra={"site": "double.15.ff"})
    with pytest.raises(FluxscopeError, match=r"\(site differ\)"):
        ActivationStore.create(tmp_path, D, T, extra={"site": "double.5.ff"})


def test_a_full_disk_is_told_beforehand(tmp_path: Path) -> None:
    require_space(tmp_path / "not" / "there", 1000)
    with pytest.raises(FluxscopeError, match="GiB left"):
        require_space(tmp_path / "not" / "there", 2**60)


def test_an_epoch_sees_every_token_once_and_mixes_pictures() -> None:
    source = ByImage(lambda images: pictures(20)[list(images)], range(20), 8, seed=0, buffer_images=10)
    batches = [source.batch(step) for step in range(10)]
    seen = torch.cat(batches)[:, 0]
    assert sorted(seen.tolist()) == sorted(pictures(20)[..., 0].flatten().tolist())
    assert all(len({int(value) // 100 for value in batch[:, 0]}) > 2 for batch in batches)
    assert not torch.equal(torch.cat([source.batch(step) for step in range(10, 20)])[:, 0], seen)


def test_any_step_can_be_asked_for_at_once() -> None:
    def source() -> ByImage:
        return ByImage(lambda images: pictures(23)[list(images)], range(23), 8, seed=3, buffer_images=5)

    straight = source()
    in_order = [straight.batch(step) for step in range(40)]
    for step in (37, 4, 19):
        assert torch.equal(source().batch(step), in_order[step])


def test_bad_tokens_are_left_out_and_counted() -> None:
    data = pictures(100)
    data[7, 2, 0] = torch.nan
    source = ByImage(lambda images: data[list(images)], range(100), 50, seed=0, buffer_images=100)
    assert source.bad_rows == 1
    assert all(torch.isfinite(source.batch(step)).all() for step in range(16))
    data[:2] = torch.inf
    with pytest.raises(FluxscopeError, match="9 of 400"):
        ByImage(lambda images: data[list(images)], range(100), 50, seed=0, buffer_images=100)
