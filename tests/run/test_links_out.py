"""Links in a received folder that lead out of it are not read, written or deleted through."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fluxscope.errors import RunDirError
from fluxscope.files import load_npz, refuse_links, save_npz
from fluxscope.progress import Reporter
from fluxscope.run.lock import lock_folders, lock_run
from fluxscope.run.rundir import RunDir
from fluxscope.settings.config import make_config
from fluxscope.steps.pipeline import parse_pipeline_steps, run_pipeline
from tests.conftest import SMALL, run_steps

QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Steps 1 to 6. Read its folder, don't write."""
    config = make_config(out_dir=str(tmp_path_factory.mktemp("links") / "run"), **SMALL)
    run_steps(config, "1-6")
    return config


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole.out_dir, tmp_path / "run")
    return replace(whole, out_dir=str(tmp_path / "run"))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def replaced_by_link(path: Path, elsewhere: Path) -> None:
    """Move a file or folder out of the run, and leave a link to it in its place."""
    elsewhere.mkdir()
    shutil.move(path, elsewhere / path.name)
    path.symlink_to(elsewhere / path.name)


def one_of_its_files(folder: Path) -> Path:
    return sorted(path for path in folder.rglob("*") if path.is_file())[0]


PLACES = {
    "images": lambda files: files.images,
    "a picture": lambda files: one_of_its_files(files.images),
    "codes": lambda files: files.codes,
    "a chunk of codes": lambda files: one_of_its_files(files.codes),
    "S": lambda files: files.s_matrix,
    "manifest": lambda files: files.manifest,
    "embeddings": lambda files: files.clip_embeddings,
    "prompts' embeddings": lambda files: files.prompt_embeddings,
    "overlays": lambda files: files.overlays,
    "a feature's overlays": lambda files: one_of_its_files(files.overlays).parent,
    "selection": lambda files: files.selected_features,
    "step log": lambda files: files.step_log,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("force", [False, True])
def test_a_run_with_a_link_out_of_it_is_refused_and_nothing_there_changes(copy, tmp_path, place, force):
    files = RunDir.of(copy)
    path, elsewhere = PLACES[place](files), tmp_path / "elsewhere"
    replaced_by_link(path, elsewhere)
    before = bytes_of(elsewhere)
    with pytest.raises(RunDirError, match="link (that )?leads out of") as caught:
        run_pipeline(copy, QUIET, parse_pipeline_steps("1-6"), force=force)
    assert str(path) in caught.value.message
    assert bytes_of(elsewhere) == before


def test_links_that_stay_inside_and_a_folder_that_is_one_are_fine(copy, tmp_path):
    files = RunDir.of(copy)
    picture = one_of_its_files(files.images)
    shutil.move(picture, files.images / "kept.png")
    picture.symlink_to("kept.png")
    linked = tmp_path / "linked"
    linked.symlink_to(files.root)
    with lock_run(replace(copy, out_dir=str(linked)), QUIET):
        pass


def test_circles_and_dangling_links_are_told(tmp_path):
    for name, target in (("circle", "circle"), ("nowhere", "../nothing")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).symlink_to(target)
        with pytest.raises(RunDirError, match="leads out of"), lock_folders([folder], QUIET):
            pass


def test_a_link_on_the_way_counts(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "steering").symlink_to(tmp_path / "out")
    with pytest.raises(RunDirError, match="steering is a link"):
        refuse_links(tmp_path / "run", [tmp_path / "run" / "steering" / "feature_3"])


def test_archives_of_arrays_hold_what_was_put_in_and_bombs_do_not_unfold(tmp_path):
    path = tmp_path / "a.npz"
    save_npz(path, words=np.array(["a", "bc"]), numbers=np.arange(6).reshape(2, 3))
    found = load_npz(path)
    assert found["words"].tolist() == ["a", "bc"] and found["numbers"].tolist() == [[0, 1, 2], [3, 4, 5]]
    np.savez_compressed(path, numbers=np.zeros(10**7))
    assert os.path.getsize(path) < 10**5
    with pytest.raises(Exception, match="it is compressed"):
        load_npz(path)
