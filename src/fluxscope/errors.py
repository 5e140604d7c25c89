"""Errors that users can mend: one line of what went wrong, one line of what to do.

Anything else that is raised is a mistake of ours and keeps its traceback.
"""

from __future__ import annotations

import unicodedata
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


class FluxscopeError(Exception):
    """A mistake that the user can mend.

    Args:
        message: what is wrong, one line, naming the file, setting or number.
        hint: what to do about it, one line.

    Both are cleaned: they often quote what a file says.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        self.message = clean(message, LONGEST_LINE)
        self.hint = clean(hint, LONGEST_LINE)
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
            "lighter placement (dtype bfloat16; sae_device and clip_device cpu). fluxscope doctor tells what "
            "a run needs. Finished work is kept.",
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
