"""When the machine is at fault: a full disk, lost rights, no memory, no more open files.

Such an error ends what is being done, with its true reason. It must not be taken for the fault of a file (and
end in the advice to delete it), of a feature or of a setting, whatever a library has wrapped around it.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fluxscope.errors import FluxscopeError, MachineError, OutOfMemory

MEMORY = (
    *("_ALLOC_FAILED", "ALLOCATION_FAILED"),  # cuBLAS, cuDNN and others
    *("out of memory", "not enough memory", "can't allocate memory", "Cannot allocate memory"),
)
"""How libraries below us say that memory ran out, in errors of no kind of their own."""

IN_RUST = re.compile(r"\(os error (\d+)\)")
"""How safetensors and tokenizers, which are written in Rust, end the words of an error of the system."""

IN_WORDS = {"write": "writing", "read": "reading", "use": "using"}
"""What can be tried with a file, and its name while it lasts."""

ON_THE_GPU = ("CUDA", "CUBLAS", "CUDNN", "HIP ")


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error, by its kind or its words, says that memory ran out."""
    if isinstance(error, MemoryError | OutOfMemory) or type(error).__name__ == "OutOfMemoryError":
        return True
    if _number(error) == errno.ENOMEM:
        return True
    return not isinstance(error, FluxscopeError) and any(words in str(error) for words in MEMORY)


@contextmanager
def clear_memory_errors(doing: str) -> Iterator[None]:
    """Turn running out of memory into an error that says while doing what, and what helps.

    Raises:
        OutOfMemory: memory ran out in the block.
    """
    try:
        yield
    except OutOfMemory:
        raise
    except Exception as error:
        if not any(map(ran_out_of_memory, _chain(error))):
            raise
        raise out_of_memory(error, doing) from error


def machine_fault(error: BaseException, path: object, doing: str = "write") -> MachineError | None:
    """What was the machine's fault in an error, or in one that it hides; None where nothing was.

    Args:
        path: the file or folder at hand.
        doing: what was tried with it: "write", "read" or "use".
    """
    for each in _chain(error):
        if isinstance(each, MachineError):
            return each
        if ran_out_of_memory(each):
            return out_of_memory(each, f"{IN_WORDS[doing]} {path}")
        if found := _explained(_number(each), path, doing):
            return found
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it was raised from, or while handling."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def out_of_memory(error: BaseException, doing: str) -> OutOfMemory:
    """The clear form of an error that says that memory ran out."""
    named = type(error).__name__ == "OutOfMemoryError"
    return OutOfMemory(doing, cuda=named or any(words in str(error) for words in ON_THE_GPU))


def _number(error: BaseException) -> int | None:
    """The system's number of an error, where it has one."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    said = None if isinstance(error, FluxscopeError) else IN_RUST.search(str(error))
    return int(said[1]) if said else None


def _explained(number: int | None, path: object, doing: str) -> MachineError | None:
    match number:
        case errno.ENOSPC | errno.EDQUOT:
            return MachineError(
                f"no space left on the disk while writing {path}",
                "Free some space and run the same command again: finished work is kept.",
            )
        case errno.EFBIG:
            return MachineError(
                f"{path} grew larger than the disk or a limit of the system lets a file be",
                "Raise the limit (ulimit -f) or choose another disk, and run the same command again: "
                "finished work is kept.",
            )
        case errno.EACCES | errno.EROFS | errno.EPERM:
            hint = "Choose another folder with --out-dir." if doing == "write" else "See to its rights."
            return MachineError(f"no right to {doing} {path}", hint)
        case errno.EMFILE | errno.ENFILE:
            return MachineError(
                f"too many files are open: {path} cannot be opened",
                "Raise the limit (ulimit -n 4096) and run the same command again: finished work is kept.",
            )
        case errno.EIO | errno.ESTALE:
            return MachineError(
                f"the disk failed ({os.strerror(number)}) with {path}",
                "See to the disk or the network that it is on, and run the same command again.",
            )
    return None


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
