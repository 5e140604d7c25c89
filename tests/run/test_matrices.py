"""S and CLIP's embeddings, damaged in ways that still load, are refused; the hint's command mends them."""

import dataclasses
import shutil

import numpy as np
import pytest

from fluxscope.errors import RunDirError
from fluxscope.files import load_npy, save_npy
from fluxscope.run import matrices
from fluxscope.run.matrices import load_embeddings, load_s, load_tiles
from fluxscope.run.rundir import RunDir
from tests.conftest import run_steps


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished.out_dir, tmp_path / "run")
    return dataclasses.replace(finished, out_dir=str(tmp_path / "run"))


def with_entry(value):
    def damage(matrix):
        matrix[-1].reshape(-1)[-1] = value
        return matrix

    return damage


DAMAGE = {
    "NaN": with_entry(np.nan),
    "infinity": with_entry(-np.inf),
    "whole numbers": lambda matrix: matrix.astype(np.int64),
    "words": lambda matrix: matrix.astype("U8"),
    "complex": lambda matrix: matrix.astype(np.complex64),
    "flat": lambda matrix: matrix.reshape(-1),
    "a further axis": lambda matrix: matrix[None],
    "nothing": lambda matrix: matrix[:0],
    "no columns": lambda matrix: matrix[:, :0],
    "a row less": lambda matrix: matrix[1:],
    "a row more": lambda matrix: np.concatenate([matrix, matrix[:1]]),
}
PLACES = {
    "s_matrix": (lambda files, n: load_s(files, n), "collect"),
    "clip_embeddings": (load_embeddings, "clip-embed"),
    "clip_tiles": (load_tiles, "clip-embed"),
}


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_what_is_no_matrix_of_the_pictures_is_told_with_the_step_that_makes_it(
    copy, name, damage, monkeypatch
):
    monkeypatch.setattr(matrices, "AT_ONCE", 5000)  # several looks, the last of a part
    files = RunDir.of(copy)
    path, (load, redo) = getattr(files, name), PLACES[name]
    good = load_npy(path)
    np.testing.assert_array_equal(load(files, len(good)), good)
    save_npy(path, damage(good.copy()))
    with pytest.raises(RunDirError, match=path.name) as told:
        load(files, len(good))
    assert told.value.redo == redo


@pytest.mark.parametrize(("name", "reader", "maker"), [("s_matrix", "2", "1"), ("clip_embeddings", "4", "3")])
def test_a_step_refuses_them_and_the_step_of_the_hint_makes_them_anew(copy, name, reader, maker):
    path = getattr(RunDir.of(copy), name)
    good = path.read_bytes()
    save_npy(path, with_entry(np.nan)(load_npy(path)))
    with pytest.raises(RunDirError, match="holds NaN or infinity"):
        run_steps(copy, reader)
    run_steps(copy, maker)
    assert path.read_bytes() == good
    run_steps(copy, reader)
