"""Errors that users can mend: one line of what went wrong, one line of what to do.

Anything else that is raised is a mistake of ours and keeps its traceback.
"""


class FluxscopeError(Exception):
    """A mistake that the user can mend.

    Args:
        message: what is wrong, one line, naming the file, setting or number.
        hint: what to do about it, one line.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(FluxscopeError):
    """A setting is unknown, of the wrong type or out of range."""


class CheckpointError(FluxscopeError):
    """A checkpoint or weights file is missing, damaged, hostile, or does not fit."""


class MissingInputError(FluxscopeError):
    """A step's input is not there yet, or holds nothing."""


class RunDirError(FluxscopeError):
    """The output folder belongs to other settings, or its files do not fit together."""
