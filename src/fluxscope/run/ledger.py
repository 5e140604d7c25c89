"""Records of finished features, kept while a step works: one that was stopped goes on after them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fluxscope.files import read_json, write_json


class Ledger:
    """A summary that grows feature by feature beside its place, and takes its place when all is done.

    Args:
        path: the summary.
        key: its list of records, each with a feature_id.
        head: what stands before the list: what the records were made with. Those made with anything else
            are not gone on with.
        features: the features asked for, in order; records of others are forgotten.
        anew: begin anew whatever is there.
    """

    def __init__(
        self, path: Path, key: str, head: dict[str, Any], features: Sequence[int], anew: bool = False
    ) -> None:
        self.path = path
        self.partial = path.with_suffix(".partial.json")
        self.key = key
        self.head = json.loads(json.dumps(head))
        self.features = tuple(features)
        self.failed: dict[int, str] = {}
        self._records: dict[int, list[dict[str, Any]]] = {}
        for old in (path, self.partial):
            if old.is_file() and not anew:
                self._read(read_json(old))

    def _read(self, summary: dict[str, Any]) -> None:
        if any(name not in summary or summary[name] != value for name, value in self.head.items()):
            return
        found: dict[int, list[dict[str, Any]]] = {}
        for record in summary.get(self.key, []):
            found.setdefault(record["feature_id"], []).append(record)
        self._records |= found

    @property
    def records(self) -> list[dict[str, Any]]:
        return [record for feature in self.features for record in self._records.get(feature, [])]

    @property
    def missing(self) -> list[int]:
        """The features that are still to do."""
        return [feature for feature in self.features if feature not in self._records]

    def add(self, feature: int, records: list[dict[str, Any]]) -> None:
        """Note a finished feature."""
        self._records[feature] = [{"feature_id": feature, **record} for record in records]
        write_json(self.partial, self._summary())

    def fail(self, feature: int, reason: str) -> None:
        """Note a feature that could not be done; it is tried again in the next run."""
        self.failed[feature] = reason

    def finish(self) -> None:
        """Write the summary in its place."""
        write_json(self.path, self._summary())
        self.partial.unlink(missing_ok=True)

    def _summary(self) -> dict[str, Any]:
        failed = [{"feature_id": feature, "error": reason} for feature, reason in self.failed.items()]
        return {**self.head, self.key: self.records, "failed": failed}
