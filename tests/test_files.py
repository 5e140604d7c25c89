import errno
import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from fluxscope import files
from fluxscope.errors import CheckpointError, FluxscopeError


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError), files.atomic_write(path) as file:
        file.write(b"half of the ne")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_is_a_clear_error_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(FluxscopeError, match="no space left") as caught, files.atomic_write(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "finished work is kept" in caught.value.hint
    assert path.read_text() == "old"


def test_a_really_full_device_is_a_clear_error():
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")
    with pytest.raises(FluxscopeError, match="no space left"):
        files.append_jsonl("/dev/full", {"a": 1})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), np.float32("nan")])
def test_json_is_strict(tmp_path, bad):
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a.json", {"x": bad})
    assert os.listdir(tmp_path) == []


def test_numpy_values_become_plain_json(tmp_path):
    files.write_json(tmp_path / "a.json", {"x": np.float32(0.5), "y": np.arange(3), "z": tmp_path})
    assert files.read_json(tmp_path / "a.json") == {"x": 0.5, "y": [0, 1, 2], "z": str(tmp_path)}


def test_a_last_line_cut_short_is_no_record(tmp_path):
    path = tmp_path / "a.jsonl"
    files.append_jsonl(path, [{"a": 1}, {"a": 2}])
    with path.open("ab") as file:
        file.write(b'{"a": 3')
    assert files.read_jsonl(path) == [{"a": 1}, {"a": 2}]


def test_arrays_of_objects_are_refused(tmp_path):
    with pytest.raises(ValueError, match="[Oo]bject arrays"):
        files.save_npy(tmp_path / "a.npy", np.array([{}]))
    np.save(tmp_path / "b.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(FluxscopeError, match="cannot be read"):
        files.load_npy(tmp_path / "b.npy")


def test_same_pixels_give_the_same_bytes(tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8))
    for name in ("a.png", "b.png"):
        files.save_image(tmp_path / name, picture)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


class _Burglar:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (self.target, "w"))


def test_a_hostile_checkpoint_is_refused_and_nothing_runs(tmp_path):
    booty = tmp_path / "written_by_the_checkpoint"
    torch.save({"model_state_dict": _Burglar(str(booty))}, tmp_path / "zip.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps({"model_state_dict": _Burglar(str(booty))}))
    for name in ("zip.pt", "bare.pt"):
        with pytest.raises(CheckpointError, match="more than tensors"):
            files.read_torch_checkpoint(tmp_path / name)
    assert not booty.exists()


@pytest.mark.parametrize("keep", [0, 10, 0.5, -1])
def test_a_checkpoint_cut_short_is_a_clear_error(tmp_path, keep):
    path = tmp_path / "a.pt"
    torch.save({"x": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        files.read_torch_checkpoint(path)


def npy_with(shape: str, descr: str = "'<f4'", data: bytes = b"") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize(
    "content",
    [
        npy_with("(1000000000000,)"),  # four terabytes, of which none is there
        npy_with("(2, 3)", data=bytes(20)),
        npy_with("(2, 3)", data=bytes(28)),
        npy_with("(-1, 3)", data=bytes(12)),
        npy_with("(2,)", "'|O'", bytes(16)),
        npy_with("(2,)", "[('a', '<f4')]", bytes(8)),
        npy_with("('x',)"),
        npy_with("(9223372036854775807, 9223372036854775807)"),
        b"\x93NUMPY\x07\x00",
        b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 60000,
        b"",
        b"PK\x03\x04",
    ],
)
def test_an_array_that_is_not_as_long_as_it_says_is_refused_unread(tmp_path, content, mmap):
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    with pytest.raises(FluxscopeError, match=r"a\.npy cannot be read"):
        files.load_npy(path, mmap)


def test_arrays_come_back_as_they_were_saved(tmp_path):
    for array in (np.arange(6.0).reshape(2, 3), np.asfortranarray(np.eye(3)), np.zeros((0, 4)), np.array(5)):
        files.save_npy(tmp_path / "a.npy", array)
        for mmap in (False, True):
            if array.size:
                assert (files.load_npy(tmp_path / "a.npy", mmap) == array).all()
        assert files.load_npy(tmp_path / "a.npy").shape == array.shape
