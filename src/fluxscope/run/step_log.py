"""step_log.json: what each piece of work was made from and what it made. `freshness` says what follows.

The file lies at the root of the output folder, one for all its layers. It is ours alone: without it, or where
it cannot be understood, work counts as never done. It also remembers the hashes of files that were read,
with their sizes and times of change, so that a large file is read once.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from fluxscope.errors import FluxscopeError, MachineError, machine_fault
from fluxscope.files import read_json, write_text

Key = dict[str, Any]
"""What a piece of work was made from: JSON values by the names of settings and files."""

FORMAT = 2
SETTLED = 2 * 10**9
"""Nanoseconds after which a second change of a file must show in its time of change, on any file system."""


@dataclass(frozen=True)
class Entry:
    """What the log keeps of a piece of work.

    Attributes:
        key: what it was made from.
        made: the hash of each file or folder that it made, by its path relative to the output folder.
        finished: False from its beginning to its end.
        result: what it found out, where that is needed to put a whole together of its parts.
    """

    key: Key
    made: dict[str, str]
    finished: bool
    seconds: float = 0.0
    result: Any = None

    @classmethod
    def from_json(cls, value: Any) -> Entry | None:
        """The record, or None for what is none."""
        if not isinstance(value, dict) or value.keys() != cls.__dataclass_fields__.keys():
            return None
        made, finished = value["made"], value["finished"]
        if not isinstance(value["key"], dict) or not isinstance(made, dict) or not isinstance(finished, bool):
            return None
        if not all(isinstance(digest, str) for digest in made.values()):
            return None
        if any(PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts for path in made):
            return None
        return cls(**value)


@dataclass
class StepLog:
    """The log of one output folder.

    Attributes:
        records: by the name of the work.
        seen: size, time of change in nanoseconds and hash of each file that was read.
    """

    path: Path
    records: dict[str, Entry] = field(default_factory=dict)
    seen: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    _learnt: bool = False

    @classmethod
    def open(cls, path: Path) -> StepLog:
        """Read the log; what cannot be understood is as if it were not there.

        Raises:
            MachineError: it is there and may not be read.
        """
        found: Any = None
        try:
            found = read_json(path)
        except MachineError:  # all would be made anew, over what is there
            raise
        except FluxscopeError:
            pass
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            return cls(path)
        work, seen = (found.get(name) for name in ("work", "seen"))
        log = cls(path)
        for name, value in work.items() if isinstance(work, dict) else ():
            record = Entry.from_json(value)
            if record:
                log.records[name] = record
        for name, value in seen.items() if isinstance(seen, dict) else ():
            match value:
                case [int(size), int(changed), str(digest)]:
                    log.seen[name] = size, changed, digest
        return log

    @property
    def root(self) -> Path:
        return self.path.parent

    # --- records ---
    def get(self, name: str) -> Entry | None:
        return self.records.get(name)

    def parts_of(self, name: str) -> dict[str, Entry]:
        """The records of the parts of a piece of work, by their full names."""
        return {part: record for part, record in self.records.items() if part.startswith(f"{name}/")}

    def put(self, records: dict[str, Entry]) -> None:
        """Write down some records."""
        self.records |= {name: Entry(**as_json(asdict(record))) for name, record in records.items()}
        self.save()

    def forget(self, names: Iterable[str]) -> None:
        """Take away the records of these names."""
        gone = [name for name in names if self.records.pop(name, None)]
        if gone:
            self.save()

    def save(self) -> None:
        """Write the log, one line a piece of work."""
        listed = {path for record in self.records.values() for path in record.made}
        self.seen = {name: entry for name, entry in self.seen.items() if self._is_there(name, listed)}
        work = ",\n".join(f"{_line(name)}: {_line(asdict(r))}" for name, r in self.records.items())
        seen = ",\n".join(f"{_line(name)}: {_line(entry)}" for name, entry in self.seen.items())
        write_text(self.path, f'{{"format": {FORMAT},\n"work": {{\n{work}\n}},\n"seen": {{\n{seen}\n}}}}\n')
        self._learnt = False

    def save_hashes(self) -> None:
        """Write the log if files were read since; in a folder that cannot be written to, do without."""
        if self._learnt and self.path.is_file():
            with suppress(FluxscopeError, OSError):
                self.save()

    def _is_there(self, name: str, listed: set[str]) -> bool:
        return name in listed or (self.root / name).is_file()

    # --- files ---
    def digest(self, path: Path | str) -> str | None:
        """The hash of a file's contents, or of the names and contents in a folder; None where nothing is.

        Args:
            path: relative to the output folder, or absolute.
        """
        path = self.root / path
        if path.is_dir():
            inside = (file for file in sorted(path.rglob("*")) if file.is_file())
            names = ((file.relative_to(path).as_posix(), file) for file in inside)
            return combined((name, self.digest(file)) for name, file in names if not _is_temporary(name))
        try:
            status = path.stat()
            before, name = time.time_ns(), self._name(path)
            size, changed, digest = self.seen.get(name, (-1, -1, ""))
            if (size, changed) == (status.st_size, status.st_mtime_ns):
                return digest
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:  # a file without rights is not a file that was changed
            if fault := machine_fault(error, path, "read"):
                raise fault from error
            return None
        if status.st_mtime_ns < before - SETTLED:
            self.seen[name], self._learnt = (status.st_size, status.st_mtime_ns, digest), True
        else:
            self.seen.pop(name, None)
        return digest

    def digests(self, paths: Iterable[Path]) -> dict[str, str]:
        """The hashes of what lies in the output folder, by relative path; the log itself is left out."""
        found = {}
        for path in sorted(set(paths) - {self.path}):
            digest = self.digest(path.absolute())
            if digest is not None and path.absolute().is_relative_to(self.root.absolute()):
                found[self._name(path)] = digest
        return found

    def remove_files(self, paths: Iterable[str], listed_by: set[str]) -> None:
        """Remove files inside the output folder, unless the records of other names list them too."""
        others = (record for name, record in self.records.items() if name not in listed_by)
        kept = {path for record in others for path in record.made}
        for name in sorted(set(paths) - kept):
            path = self._inside(name)
            if path is None:
                continue
            path.unlink(missing_ok=True)
            with suppress(OSError):  # a folder that holds more stays
                path.parent.rmdir()

    def _inside(self, name: str) -> Path | None:
        """The file of that name in the output folder; None for a folder, and for what lies outside."""
        given = PurePosixPath(name)
        path = self.root / given
        if given.is_absolute() or ".." in given.parts or path.is_dir() or path == self.path:
            return None
        return path if path.parent.resolve().is_relative_to(self.root.resolve()) else None

    def _name(self, path: Path) -> str:
        """Relative to the output folder where it lies inside, else absolute."""
        path, root = path.absolute(), self.root.absolute()
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def combined(digests: Iterable[tuple[str, str | None]]) -> str:
    """One hash of several named ones."""
    lines = "".join(f"{name}\0{digest}\n" for name, digest in sorted(digests, key=lambda pair: pair[0]))
    return hashlib.sha256(lines.encode()).hexdigest()


def as_json(value: Any) -> Any:
    """The value as JSON keeps it: tuples are lists."""
    return json.loads(json.dumps(value, allow_nan=False))


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _is_temporary(name: str) -> bool:
    return PurePosixPath(name).name.startswith(".") or name.endswith(".partial")
