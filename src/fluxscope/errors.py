"""Errors that users can mend: one line of what went wrong, one line of what to do.

Anything else that is raised is a mistake of ours and keeps its traceback. Where the machine is at fault (a
full disk, lost rights, no memory, no more open files), that ends what is being done, with its true reason: it
must not be taken for the fault of a file (and end in the advice to delete it), of a feature or of a setting,
whatever a library has wrapped around it.
"""

from __future__ import annotations

import errno
import os
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST_TEXT = 200
"""Characters of a text from a file that are shown."""

LONGEST_LINE = 1000
"""Characters of a whole message, our own words and paths included."""

TOKEN_COUNT_REMEDY = (
    "Height and width must be those that the picture was made with, and divisible by 16: "
    "n_image_tokens = height/16 x width/16."
)
"""What to do where the words "Token count doesn't match grid" stand."""

JOINERS = "\u200c\u200d"
"""Unseen characters that scripts and emoji need inside words."""


def clean(text: str, longest: int = LONGEST_TEXT) -> str:
    """Text from a file, fit for a terminal: control and bidirectional characters made visible, and cut.

    An escape sequence could recolour, overwrite or fake what stands on the screen; so could a line feed.
    """
    if len(text) > longest:
        text = text[: longest - 3] + "..."
    return "".join(map(_visible, text))


def _visible(letter: str) -> str:
    unseen = unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") and letter not in JOINERS
    return letter.encode("unicode_escape").decode("ascii") if unseen else letter


def brief(value: object) -> str:
    """A value as messages show it: one short line, nothing in it that a terminal would obey."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a whole number of {value.bit_length()} bits"
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


class FluxscopeError(Exception):
    """A mistake that the user can mend.

    Args:
        message: what is wrong, one line, naming the file, setting or number.
        hint: what to do about it, one line.
        redo: the steps to run, with their flags, where that is what helps: "select", "collect --force", or
            "collect, clip-embed". Who knows the run completes the hint by the whole command
            (`run.inputs.name_command`).

    Both texts are cleaned: they often quote what a file says.
    """

    def __init__(self, message: str, hint: str = "", redo: str = "") -> None:
        self.message = clean(message, LONGEST_LINE)
        self.hint = clean(hint, LONGEST_LINE)
        self.redo = redo
        super().__init__(self.message)


class ConfigError(FluxscopeError):
    """A setting is unknown, of the wrong type or out of range."""


class CheckpointError(FluxscopeError):
    """A checkpoint or weights file is missing, damaged, hostile, or does not fit."""


class MissingInputError(FluxscopeError):
    """A step's input is not there yet, or holds nothing."""


class RunDirError(FluxscopeError):
    """The output folder belongs to other settings, or its files do not fit together."""


class RecordError(RunDirError):
    """A JSON file of the run holds something else than its records."""


class MachineError(FluxscopeError):
    """The machine is at fault: a full disk, lost rights, no memory. What is finished is kept."""


class OutOfMemory(MachineError):
    """Memory ran out; what is finished is kept.

    Args:
        doing: what was being done, such as "loading the model".
        cuda: whether it was a GPU's memory.
    """

    def __init__(self, doing: str, cuda: bool) -> None:
        super().__init__(
            f"{'CUDA out of memory' if cuda else 'out of memory'} while {doing}",
            "Lower batch_size, height and width, reps_per_prompt or the number of prompts, or choose a "
            "lighter placement (placement offload; dtype bfloat16; sae_device and clip_device cpu). "
            "fluxscope doctor tells what a run needs. Finished work is kept.",
        )


def damaged_checkpoint(path: Path) -> CheckpointError:
    """The error of a checkpoint that is there and cannot be read as one."""
    size = path.stat().st_size
    return CheckpointError(f"{path} is damaged or cut short ({size} bytes)", "Copy or download it again.")


def no_checkpoint(path: object) -> CheckpointError:
    """The error of an SAE's checkpoint that is not there."""
    return CheckpointError(
        f"SAE checkpoint not found: {path}",
        "Set layer5_sae_path / layer15_sae_path, or saes, to where it is.",
    )


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
        case errno.ENAMETOOLONG:
            return MachineError(f"the name {clean(str(path))} is too long", "Give a shorter one.")
        case errno.EISDIR | errno.ENOTDIR:
            return MachineError(
                f"{path} is a folder where a file belongs, or lies in a file", "Move it away."
            )
        case errno.ELOOP:
            return MachineError(f"{path} is a link that leads in a circle", "Delete it.")
        case errno.EIO | errno.ESTALE:
            return MachineError(
                f"the disk failed ({os.strerror(number)}) with {path}",
                "See to the disk or the network that it is on, and run the same command again.",
            )
    return None
