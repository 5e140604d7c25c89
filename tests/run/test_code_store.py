import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxscope.errors import MissingInputError, RunDirError
from fluxscope.run.codes import CodeStore
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
    store._array("feature").append(np.zeros(5, np.int32))
    store.truncate(2)
    again = CodeStore.create(tmp_path, "double.15.ff", 13, TOKENS, FEATURES)
    assert again.n_images == 2
    assert again._array("feature").shape == again._array("value").shape == (again.nnz,)
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
