"""Records of finished features, kept in a step's own summary: a step that was stopped goes on after them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fluxscope.files import read_json, write_json


class Ledger:
    """A summary that grows feature by feature and is a whole, valid file all the time.

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
        self.key = key
        self.head = json.loads(json.dumps(head))
        self.features = tuple(features)
        self.failed: dict[int, str] = {}
        self._records: dict[int, list[dict[str, Any]]] = {}
        if path.is_file() and not anew:
            old = read_json(path)
            if all(name in old and old[name] == value for name, value in self.head.items()):
                for record in old.get(key, []):
                    self._records.setdefault(record["feature_id"], []).append(record)

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
        self.write()

    def fail(self, feature: int, reason: str) -> None:
        """Note a feature that could not be done; it is tried again in the next run."""
        self.failed[feature] = reason
        self.write()

    def write(self) -> None:
        failed = [{"feature_id": feature, "error": reason} for feature, reason in self.failed.items()]
        write_json(self.path, {**self.head, self.key: self.records, "failed": failed})
