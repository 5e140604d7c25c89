"""A sample of the kills of kills.py: whatever is killed, and wherever, ends with the bytes of a whole run."""

import random

import pytest

from tests.kills import JOBS, Kills


@pytest.fixture(scope="module")
def kills(tmp_path_factory):
    return Kills(tmp_path_factory.mktemp("kills") / "runs")


@pytest.mark.parametrize("name", JOBS)
def test_a_job_killed_and_run_again_ends_with_the_same_bytes(kills, name):
    job = next(job for job in kills.jobs if job.name == name)
    count = kills.operations(job)
    assert count >= 10  # so many files and folders at least are written
    operation = random.Random(name).randint(2, count)
    assert kills.fault(job, operation) == "", operation


def test_what_is_wrong_is_told(kills):
    """A job whose result is another, or that leaves something behind, does not pass."""
    job = next(job for job in kills.jobs if job.name == "analyze")
    changed = type(job)(job.name, spoil, job.before, job.after)
    words = kills.fault(changed, 1)
    assert "run/alive_features.npy has other bytes" in words and "run/stray.txt is left over" in words


def spoil(folder):
    JOBS["analyze"](folder)
    (folder / "run" / "alive_features.npy").write_bytes(b"")
    (folder / "run" / "stray.txt").write_text("")
