"""Writing that never leaves half a file, and reading that never runs code.

Every file of a run is written beside its place, flushed to the disk, and renamed over it: after a crash
one finds the old file or the new one. JSON is strict: NaN and Infinity are refused where they arise.
"""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from fluxscope.errors import CheckpointError, FluxscopeError, damaged_checkpoint, machine_fault
from fluxscope.pickles import check_torch_file, more_than_tensors

if TYPE_CHECKING:
    from PIL.Image import Image


@contextmanager
def atomic_write(path: Path | str) -> Iterator[IO[bytes]]:
    """Open a binary file that appears at `path`, whole, when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        note_written(path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise explain_os_error(error, path) from error
    except RuntimeError as error:  # torch.save hides the disk's error behind one of its own
        temporary.unlink(missing_ok=True)
        if fault := machine_fault(error, path):
            raise fault from error
        raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


_WATCHERS: list[set[Path]] = []


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to the disk: without it a renamed file may have its old name after a
    power failure.

    Where the system cannot do so, as Windows and some network file systems, nothing is done.

    Raises:
        OSError: the disk is full or failed.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def written_files() -> Iterator[set[Path]]:
    """The files that are written while the block lasts, but for those of a block inside it."""
    written: set[Path] = set()
    _WATCHERS.append(written)
    try:
        yield written
    finally:
        _WATCHERS[:] = [each for each in _WATCHERS if each is not written]


def note_written(path: Path | str) -> None:
    """Tell the innermost `written_files` of a file; only what `atomic_write` does not write need be told."""
    if _WATCHERS:
        _WATCHERS[-1].add(Path(path))


def explain_os_error(error: OSError, path: Path | str) -> FluxscopeError | OSError:
    """The clear form of an error that a disk or its rights cause; other errors come back as they are."""
    return machine_fault(error, path) or error


def write_bytes(path: Path | str, data: bytes) -> None:
    with atomic_write(path) as file:
        file.write(data)


def write_text(path: Path | str, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path | str, value: Any) -> None:
    """Write strict JSON, indented. NumPy scalars and arrays are written as numbers and lists.

    Raises:
        ValueError: for NaN or Infinity, which JSON does not have.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def inside(root: Path, name: str) -> Path:
    """The path of `name` under `root`, where it lies inside, links followed.

    Raises:
        ValueError: it doesn't; the error says why.
    """
    windows = PureWindowsPath(name)
    if not name or "\0" in name:
        raise ValueError("which names no file")
    if PurePosixPath(name).is_absolute() or windows.drive or windows.root or ".." in windows.parts:
        raise ValueError(f"which is no path inside {root}")
    path = root / name
    try:
        within = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # a circle of links
        within = False
    if not within:
        raise ValueError(f"which a link leads out of {root}")
    return path


def read_json(path: Path | str) -> Any:
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FluxscopeError(f"{path} is not there", "Run the step that makes it.") from None
    except OSError as error:
        told = FluxscopeError(f"{path} cannot be read ({error.strerror})", "See to its rights.")
        raise machine_fault(error, path, "read") or told from None
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, thousands of digits or brackets
        raise FluxscopeError(f"{path} is not valid JSON ({error})", "Delete it and make it again.") from None


def append_jsonl(path: Path | str, records: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
    """Append one record, or several, one line each, flushed to the disk before returning."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [records] if isinstance(records, Mapping) else records
    text = "".join(json.dumps(r, ensure_ascii=False, allow_nan=False, default=_plain) + "\n" for r in rows)
    try:
        with path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise explain_os_error(error, path) from error


def read_jsonl(path: Path | str) -> list[dict[str, Any]]:
    """Read one record a line. A last line without its end, left by a killed writer, is not a record."""
    return [record for _, record in numbered_jsonl(path)]


def numbered_jsonl(path: Path | str) -> Iterator[tuple[int, Any]]:
    """The records of `read_jsonl`, each with its line, counted from 1."""
    for number, line in enumerate(Path(path).read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError):
            raise FluxscopeError(
                f"line {number} of {path} is not valid JSON", "Restore the file, or start in a new folder."
            ) from None


def save_npy(path: Path | str, array: np.ndarray) -> None:
    with atomic_write(path) as file:
        np.save(file, array, allow_pickle=False)


def save_npz(path: Path | str, **arrays: Any) -> None:
    with atomic_write(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


def load_npy(path: Path | str, mmap: bool = False) -> np.ndarray:
    """Read an array, optionally as a read-only memory map.

    Raises:
        FluxscopeError: the file is missing, cut short, or holds pickled objects.
    """
    path = Path(path)
    try:
        array: np.ndarray = np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
        return array
    except FileNotFoundError:
        raise FluxscopeError(f"{path} is not there", "Run the step that makes it.") from None
    except (ValueError, EOFError, OSError) as error:
        told = FluxscopeError(f"{path} cannot be read ({error})", "Delete it and make it again.")
        raise machine_fault(error, path, "read") or told from None


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, without its bytes twice where links work."""
    beside = target.with_name(f".{target.name}.tmp")
    if target.exists() and target.samefile(source):
        note_written(target)
        return  # renaming one name of a file over another does nothing, and would leave `beside`
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside.unlink(missing_ok=True)
        try:
            os.link(source, beside)
        except OSError:
            shutil.copyfile(source, beside)
        beside.replace(target)
        note_written(target)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise explain_os_error(error, target) from error


def save_image(path: Path | str, image: Image) -> None:
    """Write a picture as PNG: the same pixels give the same bytes."""
    with atomic_write(path) as file:
        image.save(file, format="PNG", compress_level=4)


def read_torch_checkpoint(path: Path | str, skip_line: bool = False) -> dict[str, Any]:
    """Read a torch checkpoint without ever running what it holds.

    Only tensors and plain containers are accepted (`weights_only=True`); a pickle that names any other
    callable is refused before anything of it runs, and one that would grow while it is read before it does.

    Args:
        skip_line: the checkpoint begins after the file's first line.

    Raises:
        CheckpointError: the file is missing, cut short, not a checkpoint, or would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint not found: {path}", "Check the path in the settings.")
    try:
        with path.open("rb") as file:
            source = io.BytesIO(file.read().partition(b"\n")[2]) if skip_line else file
            check_torch_file(source, path)
            checkpoint = _load_torch(source, path)
    except OSError as error:
        told = CheckpointError(f"{path} cannot be read ({error.strerror})", "See to its rights.")
        raise machine_fault(error, path, "read") or told from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path} holds no dictionary", "It is not a checkpoint of an SAE.")
    return checkpoint


def _load_torch(source: IO[bytes], path: Path) -> Any:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch has to say of a stranger's file
            return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if any(word in str(error) for word in ("Unsupported", "GLOBAL", "WeightsUnpickler")):
            raise more_than_tensors(path) from None
        raise damaged_checkpoint(path) from None
    except Exception as error:  # there is no list of what a malformed file may raise
        raise machine_fault(error, path, "read") or damaged_checkpoint(path) from error
