"""A sample of the cases of tests/fuzz: whatever is damaged, commands end well or say clearly why not."""

import random
import re

import pytest

from tests.conftest import in_own_process
from tests.fuzz.damage import changed, damaged


def test_a_sample_of_damaged_and_hostile_files():
    told = in_own_process("tests.fuzz", "--cases", "25", "--seed", "3", seconds=900)
    assert re.search(r"^25 cases, 0 faults$", told, re.MULTILINE)


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
