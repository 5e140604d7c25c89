"""One writer at a time, with real second processes, and with holders that are killed."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fluxscope.commands.train_saes import train
from fluxscope.errors import RunDirError
from fluxscope.files import load_npy
from fluxscope.progress import Reporter
from fluxscope.run import lock as locking
from fluxscope.run.lock import NAME, lock, lock_folders, lock_run
from fluxscope.run.rundir import RunDir
from fluxscope.settings.config import make_config
from tests.commands.test_main import fluxscope
from tests.conftest import run_steps
from tests.steps.test_train_saes import QUICK, training

QUIET = Reporter(quiet=True)
HOLD = """
import sys, time
from pathlib import Path
from fluxscope.progress import Reporter
from fluxscope.run.lock import lock
with lock(Path(sys.argv[1]), Reporter(quiet=True)):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder `held`, and is killed at the end."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "held"), "a word\x1b[31m"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_at_once_and_told_who_holds_the_folder(tmp_path, holder):
    began = time.monotonic()
    with pytest.raises(RunDirError, match="is in use by process") as caught, lock(tmp_path / "held", QUIET):
        pass
    assert time.monotonic() - began < 5
    words = caught.value.message
    assert f"process {holder.pid} on {os.uname().nodename}, for " in words
    assert "a word?[31m" in words and "\x1b" not in words
    assert caught.value.hint


def test_the_death_of_its_holder_frees_a_lock_and_nothing_is_left(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lock(tmp_path / "held", QUIET) as held:
        assert held
        assert str(os.getpid()) in (tmp_path / "held" / NAME).read_text()
        with pytest.raises(RunDirError, match=str(os.getpid())), lock(tmp_path / "held", QUIET):
            pass
    assert list((tmp_path / "held").iterdir()) == []


def test_an_error_gives_the_lock_back_and_takes_an_empty_folder_away(tmp_path):
    with pytest.raises(ZeroDivisionError), lock(tmp_path / "not" / "there", QUIET):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_whoever_opened_a_lock_that_is_then_given_back_does_not_hold_another_file(tmp_path, monkeypatch):
    """Opened before its holder removed it, locked after: the file is no longer the folder's lock."""
    flock, path = locking.fcntl.flock, tmp_path / NAME

    def late(descriptor, how):
        monkeypatch.setattr(locking.fcntl, "flock", flock)
        path.unlink()
        flock(descriptor, how)

    monkeypatch.setattr(locking.fcntl, "flock", late)
    with lock(tmp_path, QUIET):
        assert path.is_file()
        with pytest.raises(RunDirError), lock(tmp_path, QUIET):
            pass


def test_a_lock_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / NAME).symlink_to(tmp_path / "mine.txt")
    with pytest.raises(RunDirError, match="is a link"), lock(tmp_path / "run", QUIET):
        pass
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_where_there_are_no_locks_it_says_so_and_goes_on(tmp_path, monkeypatch, capsys):
    def unknown(*_):
        raise OSError(errno.ENOSYS, "no locks here")

    monkeypatch.setattr(locking.fcntl, "flock", unknown)
    with lock(tmp_path / "run", Reporter()) as held:
        assert not held
    assert "cannot be locked" in capsys.readouterr().out


def test_leftovers_of_killed_writers_go_and_nothing_else(tmp_path):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    left = [
        run / ".manifest.jsonl.17.tmp",
        run / "images" / ".img_000032_p0016_r0_seed74.png.20248.tmp",
        run / "layer_05" / "overlays" / "feature_3" / ".image_000001_feature_3.png.1.tmp",
        run / "codes.zarr" / "double.15.ff" / "step_13" / "value" / "c" / f"0.{'0a' * 16}.partial",
        run / "codes.zarr" / "double.15.ff" / ".step_2.99.tmp" / "zarr.json",
    ]
    kept = [
        run / "images" / "img_000000_p0000_r0_seed42.png",
        run / "images" / ".notes.tmp",
        run / "images" / "a.12.tmp",
        run / "mine" / ".draft.12.tmp",  # no folder of a run
        elsewhere / ".draft.12.tmp",
    ]
    for path in (*left, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (run / "mine" / "there").symlink_to(elsewhere)
    config = make_config(out_dir=str(run))
    with lock_run(config, QUIET):
        assert not any(path.exists() for path in left)
        assert not left[-1].parent.exists()
        assert all(path.exists() for path in kept)
    with lock_folders([elsewhere], QUIET):
        assert not (elsewhere / ".draft.12.tmp").exists()


WRITING = {
    "run": [],
    "collect": [],
    "contact-sheet": [],
    "steer": ["--feature=3", "--strength=1", "--prompt=a circle"],
    "steer-bench": ["--feature=3", "--prompt=a circle"],
    "steering-sheet": [],
    "steps-profile": [],
    "site-map": [],
}


@pytest.mark.parametrize("command", WRITING)
def test_commands_that_write_are_refused_while_another_works_in_the_folder(tmp_path, command):
    folder = tmp_path / "run"
    with lock(folder, QUIET):
        result = fluxscope(command, *WRITING[command], f"--out-dir={folder}")
        assert result.exit_code == 1
        assert result.stderr.startswith(f"error: {folder} is in use by process {os.getpid()} on ")
        assert "\n  Wait for it" in result.stderr
        assert [path.name for path in folder.iterdir()] == [NAME]


@pytest.mark.parametrize("held", ["activations", "sae_training_layer15_t2_topk8_x2_1"])
def test_two_trainings_on_the_same_activations_or_saes_are_refused(tmp_path, model, held):
    with lock(tmp_path / held, QUIET), pytest.raises(RunDirError, match=f"{held} is in use"):
        train(make_config(**QUICK), model, training(tmp_path), QUIET, ["a circle"])
    assert not list(tmp_path.rglob("meta.json"))


def test_two_collections_a_moment_apart_leave_one_whole_run(tmp_path):
    """The second is refused while the first works; the first is killed, and a third ends what it began."""
    settings = {"max_prompts": 3, "num_inference_steps": 3, "target_step_number": 2, "batch_size": 2}
    folder: Path = tmp_path / "run"
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "fluxscope", "collect", f"--out-dir={folder}", *flags]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 120
        while not (folder / "manifest.jsonl").exists() and time.monotonic() < end:
            time.sleep(0.02)
        first.send_signal(signal.SIGSTOP)  # in the middle of its work
        second = subprocess.run(command, capture_output=True, text=True)
        assert second.returncode == 1
        assert f"process {first.pid} on" in second.stderr and "collect" in second.stderr
        assert "Traceback" not in second.stderr
    finally:
        first.kill()
        first.wait()
    run_steps(make_config(out_dir=str(folder), **settings), "1")
    files = RunDir.of(make_config(out_dir=str(folder), **settings))
    assert len(load_npy(files.s_matrix)) == 6
    assert files.manifest.read_text().count("\n") == 6
    assert not (folder / NAME).exists()
