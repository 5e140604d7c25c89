"""Telling the user how far long work is: a bar on a terminal, plain lines elsewhere, nothing when quiet.

The libraries' own bars and warnings are kept off the terminal (`files/quiet.py`); what matters we say.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from fluxscope.errors import LONGEST_LINE, LONGEST_TEXT, clean


def tell(text: str, error: bool = False) -> None:
    """Print one line: the one place where text reaches the terminal.

    Whatever it quotes of files, the line is cleaned of what a terminal would obey, and cut.
    """
    print(clean(text, LONGEST_LINE), file=sys.stderr if error else sys.stdout, flush=True)


def tell_table(rows: Sequence[tuple[str, str]], indent: str = "", longest: int = LONGEST_TEXT) -> None:
    """Print labels and values in two columns, each cleaned and cut on its own."""
    shown = [(clean(label), clean(value, longest)) for label, value in rows]
    width = max((len(label) for label, _ in shown), default=0)
    for label, value in shown:
        tell(f"{indent}{label:<{width}}  {value}")


class Advance(Protocol):
    """Call it with the number of items that have just been finished."""

    def __call__(self, items: int = 1) -> None: ...


@dataclass(frozen=True)
class Reporter:
    """Where messages and progress go.

    Attributes:
        quiet: say nothing but errors.
        seconds_between_lines: how often a plain line tells the progress, where there is no terminal.
    """

    quiet: bool = False
    seconds_between_lines: float = 10.0

    def say(self, text: str) -> None:
        """One line for the user, cleaned of what a file might have put into it."""
        if not self.quiet:
            tell(text)

    @contextmanager
    def progress(self, what: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        """Show how far `total` items of work are, with a rate and the time left.

        Args:
            done: items already finished in an earlier run; they do not count in the rate.
        """
        if self.quiet:
            yield lambda items=1: None
        elif sys.stdout.isatty():
            with _bar(what, total, unit, done) as advance:
                yield advance
        else:
            yield _Lines(what, total, unit, done, self.seconds_between_lines)


@contextmanager
def _bar(what: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    from rich import progress as rich

    columns = (
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TextColumn("{task.fields[rate]}"),
        rich.TimeRemainingColumn(),
    )
    start = time.monotonic()
    with rich.Progress(*columns) as bar:
        task = bar.add_task(clean(what), total=total, completed=done, rate="")
        fresh = 0

        def advance(items: int = 1) -> None:
            nonlocal fresh
            fresh += items
            rate = fresh / max(time.monotonic() - start, 1e-9)
            bar.update(task, advance=items, rate=f"{rate:.3g} {unit}/s")

        yield advance


@dataclass
class _Lines:
    """Progress as plain lines, one every so often and one at the end."""

    what: str
    total: int
    unit: str
    done: int
    seconds_between: float
    started: float = field(default_factory=time.monotonic)
    fresh: int = 0
    told: float = field(default_factory=time.monotonic)

    def __call__(self, items: int = 1) -> None:
        self.fresh += items
        now = time.monotonic()
        finished = self.done + self.fresh >= self.total
        if not finished and now - self.told < self.seconds_between:
            return
        self.told = now
        rate = self.fresh / max(now - self.started, 1e-9)
        left = (self.total - self.done - self.fresh) / max(rate, 1e-9)
        tail = "" if finished else f", {left:.0f} s left"
        tell(f"{self.what}: {self.done + self.fresh}/{self.total}, {rate:.3g} {self.unit}/s{tail}")


def quiet_imports() -> None:
    """Call before transformers is imported: without torchvision it prints warnings that mean nothing here."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
