"""Writing that never leaves half a file, in folders that nothing leads out of.

Every file of a run is written beside its place, flushed to the disk, and renamed over it: after a crash
one finds the old file or the new one.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, TYPE_CHECKING

from fluxscope.errors import FluxscopeError, RunDirError, machine_fault

if TYPE_CHECKING:
    from PIL.Image import Image

_WATCHERS: list[set[Path]] = []


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
    if not _stays(path, root.resolve()):
        raise ValueError(f"which a link leads out of {root}")
    return path


def _stays(path: Path, home: Path) -> bool:
    """Whether a path lies within a folder, links followed; one that leads in a circle does not."""
    try:
        return path.resolve().is_relative_to(home)
    except (OSError, RuntimeError):
        return False


def refuse_links(root: Path, places: Iterable[Path], deep: bool = False) -> None:
    """Raise where one of these places under a folder, or a folder on the way to it, is a link out of it.

    Args:
        deep: look at everything in those places that are folders, too.

    Raises:
        RunDirError: reading there would read, and writing write, what is not of this folder.
    """
    home = root.resolve()

    def look(path: Path) -> None:
        if path.is_symlink() and not _stays(path, home):
            raise RunDirError(
                f"{path} is a link that leads out of {root}",
                "Put what it leads to in its place. The whole output folder may be a link.",
            )

    for place in places:
        for parent in (*reversed(place.relative_to(root).parents), place.relative_to(root)):
            if parent.parts:
                look(root / parent)
        if deep:
            for folder, folders, names in os.walk(place):
                for name in (*folders, *names):
                    look(Path(folder, name))
