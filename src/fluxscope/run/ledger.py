"""The features of a step that steers, each a piece of work of its own: a stopped step goes on after them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

from fluxscope.errors import FluxscopeError, MachineError, RecordError
from fluxscope.files import write_json
from fluxscope.run.freshness import Work
from fluxscope.run.steering_records import OfFeature
from fluxscope.run.step_log import Key
from fluxscope.run.strict_json import Place, plain

Kind = TypeVar("Kind", bound=OfFeature)


class Ledger(Generic[Kind]):
    """What was made for each feature, and what is still to do.

    Args:
        work: the step's.
        own: by the features asked for, in order, what their keys hold in place of the whole step's entries.
        kind: what is recorded of a feature. What the log holds instead counts as not done.
    """

    def __init__(self, work: Work, own: Mapping[int, Key], kind: type[Kind]) -> None:
        self.kind = kind
        self._parts = {
            feature: work.part(f"feature {feature}", work.but(**key)) for feature, key in own.items()
        }
        self._done: dict[int, list[Kind] | str] = {}
        for feature, part in self._parts.items():
            if part.is_fresh:
                with suppress(RecordError):
                    self._done[feature] = self._read(part)

    def _read(self, part: Work) -> list[Kind] | str:
        """The records that the log keeps of a feature, or why there are none."""
        result = part.record.result if part.record else None
        place = Place(part.log.path, part.log.root, key=part.name)
        if not isinstance(result, dict):
            place.refuse("has no result")
        if "error" in result:
            return str(result["error"])
        records = result.get("records")
        if not isinstance(records, list):
            place.refuse("has no records")
        return [self.kind.from_json(value, place.at(i)) for i, value in enumerate(records)]

    @property
    def missing(self) -> list[int]:
        """The features that are still to do."""
        return [feature for feature in self._parts if feature not in self._done]

    def do(self, feature: int, make: Callable[[], Sequence[Kind]]) -> None:
        """Do one feature. One that cannot be done is noted with the reason, until something else is given.

        Raises:
            MachineError: a full disk, lost rights or memory that ran out are no fault of the feature.
        """
        part = self._parts[feature]
        with part.doing():
            try:
                done: list[Kind] | str = list(make())
                part.result = {"records": plain(done)}
            except MachineError:
                raise
            except FluxscopeError as error:
                done = error.message
                part.result = {"error": error.message}
        self._done[feature] = done

    def fail(self, feature: int, reason: str) -> None:
        """Note that a feature cannot be done."""

        def refuse() -> list[Kind]:
            raise FluxscopeError(reason)

        self.do(feature, refuse)

    @property
    def records(self) -> list[Kind]:
        """Those of all features that are done, in order."""
        found = (self._done.get(feature, []) for feature in self._parts)
        return [record for done in found if not isinstance(done, str) for record in done]

    @property
    def failed(self) -> dict[int, str]:
        """Why features could not be done."""
        found = ((feature, self._done.get(feature)) for feature in self._parts)
        return {feature: reason for feature, reason in found if isinstance(reason, str)}

    def write(self, path: Path, key: str, head: dict[str, Any]) -> None:
        """Write the step's summary: what stands before the records, the records, and what failed."""
        failed = [{"feature_id": feature, "error": reason} for feature, reason in self.failed.items()]
        write_json(path, {**plain(head), key: plain(self.records), "failed": failed})
