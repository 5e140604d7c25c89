"""The features of a step that steers, each a piece of work of its own: a stopped step goes on after them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fluxscope.errors import FluxscopeError
from fluxscope.files import write_json
from fluxscope.run.freshness import Work
from fluxscope.run.step_log import Key

Make = Callable[[], list[dict[str, Any]]]
"""Does what is to be done for a feature, and returns its records."""


class Ledger:
    """What was made for each feature, and what is still to do.

    Args:
        work: the step's.
        own: by the features asked for, in order, what their keys hold in place of the whole step's entries.

    Attributes:
        missing: the features that are still to do.
    """

    def __init__(self, work: Work, own: Mapping[int, Key]) -> None:
        self._parts = {
            feature: work.part(f"feature {feature}", work.but(**key)) for feature, key in own.items()
        }
        self.missing = [feature for feature, part in self._parts.items() if not part.is_fresh]

    def do(self, feature: int, make: Make) -> None:
        """Do one feature. One that cannot be done is noted with the reason, until something else is given.

        Raises:
            FluxscopeError: the machine is at fault, such as a full disk, and not the feature.
        """
        part = self._parts[feature]
        with part.doing():
            try:
                part.result = {"records": [{"feature_id": feature, **record} for record in make()]}
            except FluxscopeError as error:
                if isinstance(error.__cause__, OSError):
                    raise
                part.result = {"error": error.message}
        self.missing.remove(feature)

    def fail(self, feature: int, reason: str) -> None:
        """Note that a feature cannot be done."""

        def refuse() -> list[dict[str, Any]]:
            raise FluxscopeError(reason)

        self.do(feature, refuse)

    @property
    def records(self) -> list[dict[str, Any]]:
        """Those of all features that are done, in order."""
        return [record for result in self._results().values() for record in result.get("records", [])]

    @property
    def failed(self) -> dict[int, str]:
        """Why features could not be done."""
        return {feature: result["error"] for feature, result in self._results().items() if "error" in result}

    def _results(self) -> dict[int, dict[str, Any]]:
        done = {f: part.record for f, part in self._parts.items() if f not in self.missing}
        return {f: record.result for f, record in done.items() if record and isinstance(record.result, dict)}

    def write(self, path: Path, key: str, head: dict[str, Any]) -> None:
        """Write the step's summary: what stands before the records, the records, and what failed."""
        failed = [{"feature_id": feature, "error": reason} for feature, reason in self.failed.items()]
        write_json(path, {**head, key: self.records, "failed": failed})
