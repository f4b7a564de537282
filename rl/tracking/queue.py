"""A bounded queue with one worker thread between training and a tracking store that may be slow, failing or out of reach.

Training only ever puts an event into memory. The worker sends events in order; when the store does not answer, or is slower than the run, they
go to a file beside the run, and are sent from there, oldest first, when it answers again. Nothing here knows MLflow.
"""

import logging
import queue
import threading
import time
from dataclasses import dataclass

from samepath.rl.tracking.events import (
    Event,
    EventRefusedError,
    EventStore,
    QueueFile,
    StoreUnavailableError,
    parse_event,
)
from samepath.rollout.bounded_call import OverdueError, bounded

logger = logging.getLogger("samepath.tracking")

FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 60.0
RESEND_TIMEOUT_S = 60.0
"""Longest wait of `resend` for one event; MLflow's own limit on a request is shorter, but an event takes several."""
IDLE_POLL_S = 0.2
"""How often an idle worker looks whether it shall end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueCounts:
    """What became of the events so far."""

    sent: int
    """Taken by the store."""
    dropped: int
    """Lost because the queue in memory, or the queue file, was full."""
    refused: int
    """Refused by the store for good."""
    waiting: int
    """In memory or in the queue file."""


class EventQueue:
    """Sends events from one daemon thread; `put` never waits and never raises."""

    def __init__(self, store: EventStore, file: QueueFile, *, max_events: int, store_name: str) -> None:
        """Start the thread. `max_events` bounds memory; `store_name` is for messages."""
        self._store = store
        self._file = file
        self._store_name = store_name
        self._memory: queue.Queue[Event] = queue.Queue(maxsize=max_events)
        self._many = max(1, max_events // 2)
        self._spilling = False
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._abandoned = threading.Event()
        self._in_flight: Event | None = None
        self._sent = self._dropped = self._refused = 0
        self._retry_wait_s = FIRST_RETRY_S
        self._next_try_s = 0.0
        self._said: set[str] = set()
        self.first_handled = threading.Event()
        """Set once the first event was sent, refused, or put into the queue file."""
        self._thread = threading.Thread(target=self._work, name="samepath-tracking", daemon=True)
        self._thread.start()

    def put(self, event: Event) -> bool:
        """Queue one event; False, and counted, where the queue is full or closed."""
        if self._closing.is_set():
            return False
        try:
            self._memory.put_nowait(event)
        except queue.Full:
            self._drop(event)
            return False
        return True

    @property
    def counts(self) -> QueueCounts:
        """What became of the events so far."""
        with self._lock:
            waiting = self._memory.qsize() + self._file.num_events + (self._in_flight is not None)
            return QueueCounts(sent=self._sent, dropped=self._dropped, refused=self._refused, waiting=waiting)

    def close(self, timeout_s: float, last_event: Event) -> QueueCounts:
        """Queue the last event and try to send everything, for at most `timeout_s`; the rest goes to the queue file."""
        deadline = time.monotonic() + timeout_s
        try:
            self._memory.put(last_event, timeout=timeout_s)
            left = []
        except queue.Full:
            left = [last_event]
        self._closing.set()
        self._thread.join(max(deadline - time.monotonic(), 0.0))
        with self._lock:
            self._abandoned.set()
            # The event being sent may or may not have arrived: kept as well, since sending twice does no harm.
            kept = [self._in_flight] if self._in_flight is not None else []
            self._in_flight = None
        while not self._memory.empty():
            kept.append(self._memory.get_nowait())
        for event in kept + left:
            self._keep(event)
        if self._file.num_events:
            self._warn_once(
                "left",
                f"{self._file.num_events} tracking events could not be sent within {timeout_s:.0f} s; they wait in {self._file.path}, and the "
                f"store may show the run as running. Send them with `samepath replay {self._file.path.parent}`.",
            )
        return self.counts

    def _work(self) -> None:
        while not self._abandoned.is_set():
            self._look_how_many()
            if self._file.num_events and not self._spilling and time.monotonic() >= self._next_try_s:
                self._send_file()
            try:
                event = self._memory.get(timeout=IDLE_POLL_S)
            except queue.Empty:
                if self._closing.is_set():
                    break
                continue
            with self._lock:
                self._in_flight = event
            handled = self._file.num_events == 0 and not self._spilling and self._try(event)
            with self._lock:
                if self._abandoned.is_set():
                    return
                self._in_flight = None
            if not handled:
                self._keep(event)
            self.first_handled.set()
        if self._file.num_events:
            self._send_file()

    def _look_how_many(self) -> None:
        """From half of its room on memory is emptied into the file: the store is slower than the run."""
        waiting = self._memory.qsize()
        if waiting >= self._many and not self._spilling:
            self._spilling = True
            self._warn_once(
                "slow",
                f"{self._store_name} is slower than the run; what it has not taken yet waits in {self._file.path}",
            )
        self._spilling = self._spilling and waiting > 0

    def _send_file(self) -> None:
        """Send the queue file from its head; keep the rest at the first failure, and where memory fills meanwhile."""
        done = 0
        for line in self._file.lines():
            event = parse_event(line)
            if self._abandoned.is_set() or not (event is None or self._try(event)):
                break
            done += 1
            if self._memory.qsize() >= self._many:
                break
        with self._lock:
            if self._abandoned.is_set() or done == 0:
                return
            self._file.forget_first(done, self._store.state())
        if self._file.num_events == 0:
            self._warn_once("back", f"{self._store_name} answers; {done} waiting tracking events were sent")

    def _try(self, event: Event) -> bool:
        """Send one event; False if it has to wait. A refused one is counted and done with."""
        try:
            self._store.send(event)
        except EventRefusedError as error:
            self._refused += 1
            self._warn_once("refused", f"{self._store_name} refused a tracking event ({event.kind}): {error}")
            return True
        except StoreUnavailableError as error:
            self._next_try_s = time.monotonic() + self._retry_wait_s
            self._retry_wait_s = min(2 * self._retry_wait_s, LONGEST_RETRY_S)
            self._warn_once(
                "away",
                f"{self._store_name} does not answer; training goes on and tracking events wait in "
                f"{self._file.path}: {error}",
            )
            return False
        self._sent += 1
        self._retry_wait_s = FIRST_RETRY_S
        return True

    def _keep(self, event: Event) -> None:
        with self._lock:
            stored = self._file.append(event, self._store.state())
        if not stored:
            self._drop(event)

    def _drop(self, event: Event) -> None:
        with self._lock:
            self._dropped += 1
        self._warn_once("dropped", f"the tracking queue is full; events are dropped and counted, first: {event.kind}")

    def _warn_once(self, topic: str, message: str) -> None:
        if topic not in self._said:
            self._said.add(topic)
            logger.warning(message)


def resend(file: QueueFile, store: EventStore, store_name: str, timeout_s: float = RESEND_TIMEOUT_S) -> QueueCounts:
    """Send what waits in a queue file, oldest first, up to the first time that the store does not answer; the rest stays in the file.

    One event may take `timeout_s`; the thread that waits longer is left behind.
    """
    sent = refused = 0
    for line in file.lines():
        event = parse_event(line)
        try:
            if event is None:
                raise EventRefusedError("the line is cut short")
            _send_within(store, event, timeout_s)
        except EventRefusedError as error:
            refused += 1
            logger.warning("not sent: %s", error)
            continue
        except StoreUnavailableError as error:
            logger.warning("%s does not answer: %s", store_name, error)
            break
        sent += 1
    if sent + refused:
        file.forget_first(sent + refused, store.state())
    return QueueCounts(sent=sent, dropped=0, refused=refused, waiting=file.num_events)


def _send_within(store: EventStore, event: Event, timeout_s: float) -> None:
    """Send one event, so that a store that neither answers nor fails holds nobody up for ever."""
    try:
        bounded("tracking-store", timeout_s, lambda: store.send(event))
    except OverdueError as error:
        raise StoreUnavailableError(f"waited {timeout_s:.0f} s for it to take one event ({event.kind})") from error
