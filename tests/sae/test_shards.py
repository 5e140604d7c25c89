"""Activations on disk: resumable, exact, refused when they don't fit; and batches from them."""

from pathlib import Path

import pytest
import torch

from fluxscope.errors import FluxscopeError, MissingInputError
from fluxscope.sae.data import ByImage
from fluxscope.sae.shards import ActivationStore, planned_bytes, require_space

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
    store.finish()
    again = ActivationStore(tmp_path)
    assert again.n_images == 8
    asked = [7, 0, 3, 3]
    expected = pictures(8).to(again.dtype)[asked]
    assert torch.equal(again.read(asked), expected)
    stored = sum(path.stat().st_size for path in tmp_path.glob("shard_*.npy"))
    assert planned_bytes(8, T, D, dtype) <= stored < planned_bytes(8, T, D, dtype) + 3 * 200


def test_an_interrupted_run_goes_on_at_the_last_whole_shard(tmp_path: Path) -> None:
    store = ActivationStore.create(tmp_path, D, T, images_per_shard=3)
    store.append(pictures(5))
    again = ActivationStore.create(tmp_path, D, T, images_per_shard=3)
    assert again.n_images == 3
    again.append(pictures(5, first=again.n_images))
    again.finish()
    assert again.n_images == 8
    assert torch.equal(again.read(range(8)), pictures(8).bfloat16())


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
