"""A sample of the cases of tests/fuzz: whatever is damaged, commands end well or say clearly why not."""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.damage import changed, damaged

ROOT = Path(__file__).parents[1]


def test_a_sample_of_damaged_and_hostile_files():
    """In a process of its own: this one has threads, which the forks of the harness would wait for."""
    command = [sys.executable, "-m", "tests.fuzz", "--cases", "25", "--seed", "3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^25 cases, 0 faults$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("name", ["a.json", "a.npy", "a.png", "a.safetensors", "a.pt", "c"])
def test_every_way_of_damage_is_repeatable_and_damages(tmp_path, name, monkeypatch):
    monkeypatch.setenv("FUZZ_PLACE", str(tmp_path))
    content = b'{"a": [1, 2, {"b": "words"}], "c": 0.5}' if name == "a.json" else bytes(range(200)) * 3
    found = {}
    for seed in range(60):
        outcomes = []
        for _ in range(2):
            folder = tmp_path / f"{seed}"
            folder.mkdir(exist_ok=True)
            path = folder / name
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
            path.write_bytes(content)
            words = damaged(path, random.Random(seed))
            outcomes.append((words, path.read_bytes() if path.is_file() else None))
        assert outcomes[0] == outcomes[1]
        found[seed] = outcomes[0][1]
    assert sum(each != content for each in found.values()) > 50  # a cut at the very end changes nothing


def test_a_changed_value_differs_in_one_place():
    value = {"a": [1, 2, {"b": "words"}], "c": 0.5}
    for seed in range(100):
        new, words = changed(value, random.Random(seed))
        assert words and (new != value or "now" in words)
        assert value == {"a": [1, 2, {"b": "words"}], "c": 0.5}, "the original stays"
