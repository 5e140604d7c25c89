"""Errors that users can mend: one line of what went wrong, one line of what to do.

Anything else that is raised is a mistake of ours and keeps its traceback.
"""

from __future__ import annotations

import unicodedata

LONGEST_TEXT = 200
"""Characters of a text from a file that are shown."""

LONGEST_LINE = 1000
"""Characters of a whole message, our own words and paths included."""

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
