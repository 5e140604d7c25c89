"""A sample of the kills of kills.py: whatever is killed, and wherever, ends with the bytes of a whole run."""

import re

from tests.conftest import in_own_process
from tests.kills import JOBS, contents, difference


def test_every_job_killed_and_run_again_ends_with_the_same_bytes():
    told = in_own_process("tests.kills", "--each", "1", "--seed", "1", seconds=600)
    assert f"{len(JOBS)} kills of" in told and ", 0 faults" in told
    operations = dict(re.findall(r"([a-z-]+) ([0-9]+)(?:,| file operations)", told))
    assert operations.keys() == JOBS.keys()
    assert all(int(count) >= 10 for count in operations.values())  # so many files and folders are written


def test_what_is_wrong_is_told(tmp_path):
    """A run that ends with other bytes, leaves something behind or lacks something does not pass."""
    for folder in ("whole", "again"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "run_log.json").write_text('{"seed": 1, "seconds": 12}')
        (tmp_path / folder / "S.npy").write_bytes(b"same")
    whole = contents(tmp_path / "whole")
    (tmp_path / "again" / "run_log.json").write_text('{"seed": 1, "seconds": 7}')
    assert difference(whole, contents(tmp_path / "again")) == ""  # only a time
    (tmp_path / "again" / "S.npy").write_bytes(b"othr")
    (tmp_path / "again" / "stray.txt").write_text("")
    (tmp_path / "again" / "run_log.json").unlink()
    words = difference(whole, contents(tmp_path / "again"))
    assert words == "S.npy has other bytes, run_log.json is missing, stray.txt is left over"
