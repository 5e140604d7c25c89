"""When the machine is at fault, and not what was given: two clear lines, and finished work kept."""

import errno
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fluxscope import files
from fluxscope.commands.flags import clear_errors
from fluxscope.errors import (
    FluxscopeError,
    MachineError,
    MissingInputError,
    OutOfMemory,
    clear_memory_errors,
    machine_fault,
)
from fluxscope.files import sync_folder
from fluxscope.measures import clip
from fluxscope.models.families import family_of
from fluxscope.models.families.family import check_weights
from fluxscope.models.model import open_model
from fluxscope.run.activations import ActivationStore
from fluxscope.run.codes import CodeStore
from fluxscope.run.freshness import Work
from fluxscope.run.ledger import Ledger
from fluxscope.run.steering_records import OfFeature
from fluxscope.run.step_log import StepLog
from fluxscope.sae import formats
from fluxscope.sae.codes import SparseCodes
from fluxscope.sae.data import InMemory
from fluxscope.sae.jobs import Job, train_jobs
from fluxscope.sae.topk import TopK
from fluxscope.sae.train_config import TrainConfig
from fluxscope.shapes.shipped import CLIP_SHAPES, FLUX_SHAPES, resolve, shipped_sae

CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
CUDNN = "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"
CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"


@contextmanager
def limit(what: int, soft: int):
    """Lower a limit of this process, and put it back."""
    before, hard = resource.getrlimit(what)
    resource.setrlimit(what, (soft, hard))
    try:
        yield
    finally:
        resource.setrlimit(what, (before, hard))


def no_open_files():
    """No further file can be opened: 0, 1 and 2 are taken."""
    return limit(resource.RLIMIT_NOFILE, 3)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "x"), "no space left on the disk while writing here"),
        (OSError(errno.EDQUOT, "x"), "no space left on the disk while writing here"),
        (OSError(errno.EFBIG, "x"), "here grew larger than the disk or a limit of the system"),
        (OSError(errno.ENAMETOOLONG, "x"), "the name here is too long"),
        (OSError(errno.EISDIR, "x"), "here is a folder where a file belongs"),
        (OSError(errno.ELOOP, "x"), "here is a link that leads in a circle"),
        (OSError(errno.EACCES, "x"), "no right to read here"),
        (OSError(errno.EROFS, "x"), "no right to read here"),
        (OSError(errno.EMFILE, "x"), "too many files are open: here cannot be opened"),
        (OSError(errno.EIO, "x"), "the disk failed"),
        (OSError(errno.ENOMEM, "x"), "out of memory while"),
        (MemoryError(), "out of memory while"),
        (RuntimeError(CPU), "out of memory while"),
        (torch.OutOfMemoryError("x"), "CUDA out of memory while"),
        (RuntimeError(CUBLAS), "CUDA out of memory while"),
        (RuntimeError(CUDNN), "CUDA out of memory while"),
        (Exception("Too many open files (os error 24)"), "too many files are open"),
    ],
)
def test_the_machines_faults_are_told_apart_and_found_behind_other_errors(error, said):
    found = machine_fault(error, "here", "read")
    assert found is not None and found.message.startswith(said) and found.hint
    hiding = RuntimeError("unexpected pos 64 vs 0")
    hiding.__context__ = ValueError("x")
    hiding.__context__.__cause__ = error
    assert machine_fault(hiding, "here", "read").message == found.message


@pytest.mark.parametrize(
    "error",
    [
        *(OSError(errno.ENOENT, "x"), OSError("no number"), ValueError("x"), RuntimeError("another")),
        FluxscopeError("a file named 'out of memory' (os error 24)"),
    ],
)
def test_other_errors_are_no_faults_of_the_machine(error):
    assert machine_fault(error, "here") is None
    error.__context__ = error  # a circle of errors is walked once
    assert machine_fault(error, "here") is None


def test_the_cpu_allocators_own_error_is_known():
    with pytest.raises(OutOfMemory, match="^out of memory while dreaming$"), clear_memory_errors("dreaming"):
        torch.empty(10**16)


# --- writing ---


def test_a_full_disk_behind_torchs_own_error_is_told_and_leaves_nothing(tmp_path):
    path = tmp_path / "state.pt"
    files.write_text(path, "old")
    with (
        limit(resource.RLIMIT_FSIZE, 4000),
        pytest.raises(MachineError, match="grew larger"),
        files.atomic_write(path) as file,
    ):
        torch.save({"x": torch.zeros(10_000)}, file)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["state.pt"]


def test_a_renamed_file_is_on_the_disk_under_its_new_name(tmp_path, monkeypatch):
    done = []

    def fsync(descriptor):
        done.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))

    def replace(self, target):
        done.append(("rename", Path(target).name))
        os.rename(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    files.write_text(tmp_path / "a.txt", "new")
    assert done[0][0] == "sync" and done[0][1].startswith(".a.txt.")
    assert done[1:] == [("rename", "a.txt"), ("sync", tmp_path.name)]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EBADF])
def test_a_file_system_that_cannot_sync_folders_is_no_error(number, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(number, "x")))
    before = len(os.listdir("/proc/self/fd"))
    sync_folder(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before
    sync_folder(tmp_path / "nowhere")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_folder_that_the_disk_could_not_keep_is_an_error(number, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(number, "x")))
    with pytest.raises(OSError, match="x"):
        sync_folder(tmp_path)


def trained(folder: Path) -> list[str]:
    """Train one small SAE; returns the lines of its log."""
    x = torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
    config = TrainConfig(TopK(4), hidden_dim=256, steps=6, batch_size=64, log_every=1)
    train_jobs(InMemory(x, 64, 0), [Job(folder, config, {})], [x[:64]], save_every=2)
    return (folder / "log.jsonl").read_text().splitlines()


def test_a_disk_that_fills_while_training_is_told_and_training_goes_on(tmp_path):
    whole = trained(tmp_path / "whole")
    with limit(resource.RLIMIT_FSIZE, 50_000), pytest.raises(MachineError, match="state.pt grew larger"):
        trained(tmp_path / "stopped")
    assert not [name for name in os.listdir(tmp_path / "stopped") if name.endswith(".tmp")]
    assert trained(tmp_path / "stopped") == whole
    best = [files.read_torch_checkpoint(tmp_path / name / "sae_best.pt") for name in ("whole", "stopped")]
    for name, tensor in best[0]["model_state_dict"].items():
        assert torch.equal(tensor, best[1]["model_state_dict"][name])


# --- reading: what cannot be read is not taken for damaged ---


def make_everything(folder: Path) -> None:
    files.write_json(folder / "a.json", {"a": 1})
    files.save_npy(folder / "a.npy", np.zeros(3))
    files.save_image(folder / "a.png", Image.new("RGB", (8, 8)))
    torch.save({"x": torch.zeros(3)}, folder / "a.pt")
    (folder / "model").mkdir()
    save_file({"x": torch.zeros(3)}, folder / "model" / "a.safetensors")
    store = ActivationStore.create(folder / "raw", 4, 2)
    store.append(torch.zeros(1, 2, 4))
    codes = CodeStore.create(folder / "codes.zarr", "double.15.ff", 13, 2, 8)
    codes.append(SparseCodes.from_dense(torch.ones(2, 8)))
    StepLog(folder / "step_log.json").save()


READERS = {
    "json": lambda folder: files.read_json(folder / "a.json"),
    "npy": lambda folder: files.load_npy(folder / "a.npy"),
    "picture": lambda folder: clip.open_picture(folder / "a.png"),
    "checkpoint": lambda folder: files.read_torch_checkpoint(folder / "a.pt"),
    "model": lambda folder: check_weights(folder / "model"),
    "activations": lambda folder: ActivationStore(folder / "raw").read([0]),
    "codes": lambda folder: CodeStore(folder / "codes.zarr", "double.15.ff", 13).image(0),
    "log": lambda folder: StepLog.open(folder / "step_log.json"),
    "digest": lambda folder: StepLog(folder / "step_log.json").digest(folder / "a.npy"),
    "sae": lambda folder: formats.load(shipped_sae(15)),
}


@pytest.mark.parametrize("what", READERS)
def test_few_file_descriptors_are_not_taken_for_damage(what, tmp_path, capsys):
    make_everything(tmp_path)
    READERS[what](tmp_path)  # imports what it imports, and shows that all is well
    with no_open_files(), pytest.raises(SystemExit), clear_errors():
        READERS[what](tmp_path)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: too many files are open: ")
    assert "ulimit -n" in second and "elete" not in second


@pytest.mark.parametrize("what", ["json", "npy", "picture", "checkpoint", "log", "digest", "activations"])
def test_what_may_not_be_read_is_not_taken_for_damage(what, tmp_path, monkeypatch):
    make_everything(tmp_path)
    READERS[what](tmp_path)
    refuse = os.open

    def no_right(path, *rest, **more):
        if str(path).startswith(str(tmp_path)):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return refuse(path, *rest, **more)

    def opened(path, *rest, **more):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("io.open", opened)
    monkeypatch.setattr("builtins.open", opened)
    with pytest.raises(MachineError, match="no right to read") as told:
        READERS[what](tmp_path)
    assert "elete" not in told.value.hint


# --- memory ---


def fail(error: BaseException):
    def call(*arguments, **named):
        raise error

    return call


EXHAUSTED = [MemoryError(), torch.OutOfMemoryError("x"), RuntimeError(CUBLAS), RuntimeError(CPU)]


@pytest.mark.parametrize("error", EXHAUSTED, ids=repr)
def test_memory_that_runs_out_while_loading_an_sae_is_told(error, monkeypatch):
    for place in ("torch.load", "torch.nn.Module.to"):
        with monkeypatch.context() as patched:
            patched.setattr(place, fail(error))
            with pytest.raises(OutOfMemory, match="out of memory while"):
                formats.load(shipped_sae(15))


@pytest.mark.parametrize("error", EXHAUSTED, ids=repr)
def test_memory_that_runs_out_while_loading_or_moving_a_model_is_told(error, monkeypatch):
    from transformers import CLIPModel

    family, pipeline = family_of(FLUX_SHAPES)
    kind = family.pipeline_class(pipeline)
    held = open_model(FLUX_SHAPES, "cpu", "float32")
    with monkeypatch.context() as patched:
        patched.setattr(kind, "from_pretrained", fail(error))
        with pytest.raises(OutOfMemory, match="out of memory while .*model"):
            _ = held.pipe
        with pytest.raises(OutOfMemory):
            held.encode(["a large red circle"])
    monkeypatch.setattr(kind, "to", fail(error))
    with pytest.raises(OutOfMemory, match="out of memory while embedding prompts"):
        held.encode(["a large red circle"])
    monkeypatch.setattr(CLIPModel, "from_pretrained", fail(error))
    with pytest.raises(OutOfMemory):
        clip.load_clip(resolve(CLIP_SHAPES))


@pytest.mark.parametrize("error", EXHAUSTED, ids=repr)
def test_memory_that_runs_out_while_encoding_is_told(error, monkeypatch):
    from fluxscope.models.sites import parse_site
    from fluxscope.run.recorders import Recorder

    sae, _ = formats.load(shipped_sae(15))
    monkeypatch.setattr("fluxscope.run.recorders.encode_sparse", fail(error))
    recorder = Recorder(parse_site("double.15.ff"), sae, {}, 0)
    with pytest.raises(OutOfMemory, match="out of memory while encoding activations with an SAE"):
        recorder.keep(torch.zeros(1, 2, sae.input_dim), 2)
    assert recorder.seen == 0


# --- a step that steers, and the command line ---


def ledger(folder: Path) -> Ledger[OfFeature]:
    work = Work(StepLog.open(folder / "step_log.json"), "steer", {"features": 2}, False)
    return Ledger(work, {feature: {"features": None} for feature in (5, 6)}, OfFeature)


@pytest.mark.parametrize(
    "error",
    [
        *(MachineError("no space left"), OutOfMemory("making pictures", cuda=True), KeyboardInterrupt()),
        *(OSError(errno.ENOSPC, "x"), torch.OutOfMemoryError("x"), MemoryError()),
    ],
    ids=repr,
)
def test_the_machines_fault_ends_a_steering_step_and_is_no_features_fault(error, tmp_path):
    first = ledger(tmp_path)
    first.do(6, lambda: [OfFeature(feature_id=6)])
    with pytest.raises(type(error)) as raised:
        first.do(5, fail(error))
    assert raised.value is error
    again = ledger(tmp_path)
    assert again.missing == [5] and again.failed == {} and [r.feature_id for r in again.records] == [6]


def test_a_features_own_fault_is_noted(tmp_path):
    first = ledger(tmp_path)
    first.do(5, fail(MissingInputError("it is active nowhere")))
    assert ledger(tmp_path).failed == {5: "it is active nowhere"} and ledger(tmp_path).missing == [6]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory while doing this"),
        (torch.OutOfMemoryError("x"), "CUDA out of memory while doing this"),
        (RuntimeError(CUBLAS), "CUDA out of memory while doing this"),
        (OSError(errno.EMFILE, "x", "there"), "too many files are open: there cannot be opened"),
        (PermissionError(errno.EACCES, "x", "there"), "no right to use there"),
        (OSError(errno.ENOSPC, "x"), "no space left on the disk while writing the output"),
    ],
)
def test_whatever_command_meets_them_says_two_lines(error, said, capsys):
    with pytest.raises(SystemExit) as left, clear_errors():
        raise error
    lines = capsys.readouterr().err.splitlines()
    assert left.value.code == 1 and lines[0] == f"error: {said}" and len(lines) == 2


def test_our_own_mistakes_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), clear_errors():
        _ = 1 / 0
