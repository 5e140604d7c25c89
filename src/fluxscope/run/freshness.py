"""What is up to date: one rule for skipping, resuming, refusing and removing what no longer belongs.

A piece of work is a step, or a part of one: a feature that is steered, the pictures of a collection. Its key
holds what its results depend on: the values of settings and the contents of files. step_log.json keeps the
key that each piece was made from, and every file that it made, with its hash. A piece of work is up to date
when its key is as recorded and so is every one of its files, of its parts too; otherwise it is done anew,
part by part. What the old record lists and the new one does not is removed; no other file ever is.

Work is marked as begun before it writes anything, and recorded when everything is there. The log is written
whole: killed at any moment, one finds work that is finished, or work that is not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fluxscope.files import written_files
from fluxscope.run.step_log import Entry, Key, StepLog, as_json


def differences(old: Key, new: Key) -> Iterator[tuple[str, Any, Any]]:
    """Every entry in which two keys differ: its name, the old value, the new one."""
    for name in {**new, **old}:
        if old.get(name) != new.get(name):
            yield name, old.get(name), new.get(name)


@dataclass
class Work:
    """One piece of work and its place in the log.

    Attributes:
        name: "analyze", "layer_05/steer", or for a part "layer_05/steer/feature 12".
        key: what its results depend on.
        anew: done even where it is up to date.
        result: what the record keeps beside the files; set it while the work is done.
        seconds: how long it took.
        products: files and folders that it makes without `fluxscope.files`, or over several runs.
    """

    log: StepLog
    name: str
    key: Key
    anew: bool = False
    result: Any = None
    seconds: float = 0.0
    products: list[Path] = field(default_factory=list)
    _parts: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.key = as_json(self.key)

    def but(self, **own: Any) -> Key:
        """Its key with other values for these entries; None takes one out."""
        merged = {**self.key, **own}
        return {name: value for name, value in merged.items() if value is not None}

    def part(self, name: str, key: Key) -> Work:
        """A part of this work, with a key of its own."""
        whole = f"{self.name}/{name}"
        self._parts.add(whole)
        return Work(self.log, whole, key, self.anew)

    @property
    def record(self) -> Entry | None:
        """What the log says of it."""
        return self.log.get(self.name)

    @property
    def was_finished(self) -> bool:
        return self.record is not None and self.record.finished

    @property
    def is_fresh(self) -> bool:
        return not self.reason

    @property
    def reason(self) -> str:
        """Why it is to be done, in a few words; empty where it is up to date."""
        record = self.record
        if self.anew:
            return "asked for"
        if record is None or not record.finished:
            return "not finished yet"
        for name, _, _ in differences(record.key, self.key):
            return f"other {name.replace('_', ' ')}"
        if any(not part.finished for part in self.log.parts_of(self.name).values()):
            return "not finished yet"
        damaged = self.damaged()
        return f"{damaged[0]} is missing or changed" if damaged else ""

    def damaged(self) -> list[str]:
        """The paths of its files, and its parts', that are missing or not as they were made."""
        records = [self.record, *self.log.parts_of(self.name).values()]
        made = {path: digest for record in records if record for path, digest in record.made.items()}
        return [path for path, digest in made.items() if self.log.digest(path) != digest]

    @contextmanager
    def doing(self) -> Iterator[None]:
        """While the block lasts the work counts as begun; at its end it is recorded with all that it made.

        After an error it counts as not finished, unless nothing was done yet: then all is as before.
        """
        before = {name: record for name, record in self._records().items() if record}
        if before:
            self.begin()
        begun = self._records()
        began = time.monotonic()
        with written_files() as written:
            try:
                yield
            except BaseException:
                if before and not written and not self.products and self._records() == begun:
                    self.log.put(before)
                raise
        self.products += written
        self.seconds = round(time.monotonic() - began, 3)
        self.finish()

    def begin(self) -> None:
        """Note what it is made from, and that it is not finished. Its old files stay listed till the end."""
        record = self.record
        begun = {self.name: Entry(self.key, record.made if record else {}, finished=False)}
        if self.anew:
            parts = self.log.parts_of(self.name)
            begun |= {name: replace(part, finished=False) for name, part in parts.items()}
        self.log.put(begun)

    def finish(self) -> None:
        """Record all its products, and remove those of before that are no longer among them.

        Parts that it no longer has are forgotten, and their files go too.
        """
        old = self.record.made if self.record else {}
        made = self.log.digests(self.products)
        gone = {name: p for name, p in self.log.parts_of(self.name).items() if name not in self._parts}
        listed = {*old, *(path for part in gone.values() for path in part.made)}
        self.log.remove_files(listed - made.keys(), listed_by={self.name, *gone})
        self.log.forget(gone)
        self.log.put({self.name: Entry(self.key, made, True, self.seconds, self.result)})

    def _records(self) -> dict[str, Entry | None]:
        """Its record and those of its parts."""
        return {self.name: self.record, **self.log.parts_of(self.name)}
