"""Ctrl-C: a clear line and exit code 130 instead of a traceback, from the first import on.

Imports nothing, so that it can stand before everything else.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class Stopped(BaseException):
    """Ctrl-C, as a kind of its own: typer answers KeyboardInterrupt with other words and code 1."""


@contextmanager
def clear_stop() -> Iterator[None]:
    """While it is open, Ctrl-C unwinds what runs, says what becomes of it, and ends the program."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else the shell wants it ignored
        signal.signal(signal.SIGINT, _stop)
    try:
        yield
    except Stopped:
        print("\nStopped. Finished work is kept.\n  Run the same command again to go on.", file=sys.stderr)
        raise SystemExit(130) from None


def _stop(number: int, frame: object) -> NoReturn:
    raise Stopped
