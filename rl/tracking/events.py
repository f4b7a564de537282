"""Events on their way to a tracking store: their form, what can go wrong, and the file where they wait."""

import itertools
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from samepath.model.durable_file import append_lines, replacing

logger = logging.getLogger("samepath.tracking")


class StoreUnavailableError(Exception):
    """The store did not take the event now and may take it later (connection refused, disk full, server error)."""


class EventRefusedError(Exception):
    """The store will never take this event (for example a value it considers invalid); sending it again is useless."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing to send, as plain data so that it can lie in a file.

    Example:
        Event(kind="metrics", time_ms=1767225600000, payload={"step": 3, "metrics": {"reward/mean": 0.5}})
    """

    kind: str
    """`start`, `metrics`, `rollouts`, `artifact`, `checkpoint`, `tags` or `finish`."""
    time_ms: int
    """Wall clock when it happened, milliseconds since 1970; kept when it is sent later."""
    payload: Mapping[str, Any]
    """JSON-able content."""


class EventStore(Protocol):
    """Where events go. Called from one thread at a time."""

    def send(self, event: Event) -> None:
        """Send one event; raises `StoreUnavailableError` or `EventRefusedError`. Sending one twice must do no harm."""

    def state(self) -> dict[str, Any]:
        """Return what a later process needs to go on sending (JSON-able), stored at the head of the queue file."""


class QueueFile:
    """Events on disk, oldest first: one JSON line each, after a first line with the store's state."""

    def __init__(self, path: Path, limit_bytes: int) -> None:
        """Count what an earlier process left; `limit_bytes` bounds the file's size."""
        self.path = path
        self.limit_bytes = limit_bytes
        self.num_events = 0
        if path.is_file():
            self.num_events = sum(1 for _ in self.lines())

    def append(self, event: Event, state: Mapping[str, Any]) -> bool:
        """Add one event; False if the file is full or cannot be written."""
        line = json.dumps({"kind": event.kind, "time_ms": event.time_ms, "payload": event.payload}) + "\n"
        try:
            size_bytes = self.path.stat().st_size if self.path.is_file() else 0
            if size_bytes + len(line) > self.limit_bytes:
                return False
            append_lines(self.path, line if size_bytes else _state_line(state) + line)
        except OSError as error:
            logger.debug("tracking queue file %s: %s", self.path, error)
            return False
        self.num_events += 1
        return True

    def read_state(self) -> dict[str, Any]:
        """Return the store's state as it was when the first event was stored.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file does not begin with a state.
        """
        with self.path.open(encoding="utf-8") as file:
            first = file.readline()
        entry = _parse(first)
        if entry is None or not isinstance(entry.get("state"), dict):
            raise ValueError(
                f'a tracking queue file begins with a line {{"state": …}}; got {first[:60]!r} in {self.path}. '
                "Give the file tracking-queue.jsonl of a run."
            )
        return dict(entry["state"])

    def lines(self) -> Iterator[str]:
        """Yield the events' lines, oldest first."""
        with self.path.open(encoding="utf-8", errors="replace") as file:
            file.readline()
            yield from file

    def forget_first(self, count: int, state: Mapping[str, Any]) -> None:
        """Remove the first `count` events, which were sent; an empty file goes away."""
        if count >= self.num_events:
            self.path.unlink(missing_ok=True)
            self.num_events = 0
            return
        with replacing(self.path) as file:
            file.write(_state_line(state).encode())
            file.writelines(line.encode() for line in itertools.islice(self.lines(), count, None))
        self.num_events -= count


def parse_event(line: str) -> Event | None:
    """Return the event of one line; None for a line cut short by a killed process."""
    entry = _parse(line)
    if entry is None or not {"kind", "time_ms", "payload"} <= entry.keys():
        return None
    return Event(kind=entry["kind"], time_ms=entry["time_ms"], payload=entry["payload"])


def _parse(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        return None
    return entry if isinstance(entry, dict) else None


def _state_line(state: Mapping[str, Any]) -> str:
    return json.dumps({"state": state}) + "\n"
