"""One writer at a time: a lock on a folder, held by every command that writes there.

The lock is the operating system's (`flock` on `.fluxscope.lock`), so the death of its holder frees it,
however it died. The file says who holds it, for whoever is refused, and goes when the lock is given back.
Who holds the lock may take away what killed writers left beside their places: nobody else is writing there.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from fluxscope.errors import RunDirError
from fluxscope.files import explain_os_error, refuse_links
from fluxscope.progress import Reporter
from fluxscope.run.rundir import RunDir
from fluxscope.settings.config import Config

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = ".fluxscope.lock"
LEFTOVER = re.compile(r"\..+\.\d+\.tmp|.+\.[0-9a-f]{32}\.partial")
"""Names of half-written files: ours (`files.atomic_write`: .NAME.PID.tmp) and Zarr's (NAME.UUID.partial)."""

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What file systems answer that cannot lock, such as some mounts of Lustre."""


@contextmanager
def lock_run(config: Config, report: Reporter) -> Iterator[None]:
    """Hold the settings' output folder, and clear it of what killed writers left.

    Raises:
        RunDirError: another process holds it, and the error names it; or a link in it leads out of it.
    """
    files = RunDir.of(config)
    with lock(files.root, report) as held:
        refuse_links(files.root, files.folders, deep=True)
        if held:
            sweep(files.root, files.folders)
        yield


@contextmanager
def lock_folders(folders: Iterable[Path], report: Reporter) -> Iterator[None]:
    """Hold several folders that hold nothing but our files, and clear them of leftovers.

    Raises:
        RunDirError: another process holds one of them, or something in one is a link that leads out of it.
    """
    with ExitStack() as locks:
        for folder in dict.fromkeys(folders):
            held = locks.enter_context(lock(folder, report))
            refuse_links(folder, [folder], deep=True)
            if held:
                sweep(folder, [folder])
        yield


@contextmanager
def lock(folder: Path, report: Reporter) -> Iterator[bool]:
    """Hold a folder, which is made where it is missing; a folder made and left empty goes again.

    Yields:
        whether it is held: false, with a warning, where the file system or the machine knows no such locks.

    Raises:
        RunDirError: another process holds it; the error names its pid, host, command and age.
        FluxscopeError: there is no right to write there.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    path = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _take(path)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise RunDirError(f"{path} is a link, not a lock", "Delete it.") from None
        if error.errno not in NO_LOCKS:
            raise explain_os_error(error, path) from error
        report.say(f"warning: {folder} cannot be locked: let no second process write there")
        path.unlink(missing_ok=True)
        yield False
        return
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)  # while it is held: who opened it meanwhile sees that it is gone
        os.close(descriptor)
        with suppress(OSError):
            for place in made:
                place.rmdir()


def _take(path: Path) -> int:
    """Lock the file and write down who holds it; returns the open file."""
    if fcntl is None:
        raise OSError(errno.ENOSYS, "no flock on this machine")
    while True:
        # A link in a folder that was received must not make us write elsewhere.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(path, descriptor):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(_who()).encode(), 0)
                return descriptor
        except BlockingIOError:
            holder = _read_holder(descriptor)
            os.close(descriptor)
            raise RunDirError(
                f"{path.parent} is in use by {holder}",
                "Wait for it to end, or choose another folder.",
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder removed it between our opening and our locking


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the open file is the one that lies at the path."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    ours = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def _who() -> dict[str, object]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:1000],
        "since": time.time(),
    }


def _read_holder(descriptor: int, patience: float = 0.5) -> str:
    """Who holds the lock, in words; a holder writes its name down a moment after it has locked."""
    end = time.monotonic() + patience
    while True:
        try:
            found = json.loads(os.pread(descriptor, 1 << 14, 0))
            age = max(0.0, time.time() - float(found["since"]))
            words = f"process {int(found['pid'])} on {found['host']}, for {_in_words(age)}: "
            words += str(found["command"])
            return "".join(letter if letter.isprintable() else "?" for letter in words)[:300]
        except (ValueError, KeyError, TypeError, OverflowError):
            if time.monotonic() > end:
                return "another process"
            time.sleep(0.02)


def _in_words(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def sweep(folder: Path, within: Iterable[Path]) -> None:
    """Take away half-written files that lie in the folder itself, or anywhere within the places inside it.

    Links are not followed, and places outside the folder are left alone.
    """
    root = folder.resolve()
    inside = [place for place in within if place.is_dir() and place.resolve().is_relative_to(root)]
    candidates = [*folder.iterdir(), *(path for place in inside for path in _walk(place))]
    for path in candidates:
        if not LEFTOVER.fullmatch(path.name) or path.is_symlink():
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sweep_beside(path: Path) -> None:
    """Take away what killed writers left of one file; whoever calls this is the only one who writes it."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if LEFTOVER.fullmatch(left.name) and not left.is_symlink() and left.is_file():
            left.unlink(missing_ok=True)


def _walk(place: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(place):
        yield from (Path(parent, name) for name in (*folders, *names))
