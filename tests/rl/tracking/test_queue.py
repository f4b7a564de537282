"""The queue between training and a store, against a store that is told when to answer."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from samepath.rl.tracking import queue as tracking_queue
from samepath.rl.tracking.events import Event, EventRefusedError, QueueFile, StoreUnavailableError, parse_event
from samepath.rl.tracking.queue import EventQueue, resend

FINISH = Event(kind="finish", time_ms=9, payload={"status": "FINISHED"})


def event(step: int) -> Event:
    return Event(kind="metrics", time_ms=step, payload={"step": step})


class Store:
    """Takes events while `answers`; refuses those in `refused`; waits for `gate` where one is given."""

    def __init__(self, *, answers: bool = True, gate: threading.Event | None = None) -> None:
        self.answers = answers
        self.gate = gate
        self.refused: set[int] = set()
        self.taken: list[Event] = []
        self.entered = threading.Event()

    def send(self, event: Event) -> None:
        self.entered.set()
        if self.gate is not None:
            assert self.gate.wait(20)
        if not self.answers:
            raise StoreUnavailableError("connection refused")
        if event.payload.get("step") in self.refused:
            raise EventRefusedError("bad value")
        self.taken.append(event)

    def state(self) -> dict[str, Any]:
        return {"run_id": "r1"}

    @property
    def steps(self) -> list[int]:
        return [taken.payload["step"] for taken in self.taken if taken.kind == "metrics"]


def start(store: Store, folder: Path, *, max_events: int = 100, limit_bytes: int = 10**6) -> EventQueue:
    return EventQueue(store, QueueFile(folder / "q.jsonl", limit_bytes), max_events=max_events, store_name="the store")


def test_queue_answering_store_gets_all_events_in_order(tmp_path: Path) -> None:
    store = Store()
    queue = start(store, tmp_path)
    assert all(queue.put(event(step)) for step in range(20))
    counts = queue.close(20, FINISH)
    assert store.steps == list(range(20))
    assert store.taken[-1] == FINISH
    assert (counts.sent, counts.dropped, counts.waiting) == (21, 0, 0)
    assert not (tmp_path / "q.jsonl").exists()


def test_queue_silent_store_keeps_everything_in_file_and_warns_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue = start(Store(answers=False), tmp_path)
    for step in range(5):
        queue.put(event(step))
    counts = queue.close(20, FINISH)
    assert (counts.sent, counts.dropped, counts.waiting) == (0, 0, 6)
    file = QueueFile(tmp_path / "q.jsonl", 10**6)
    assert file.read_state() == {"run_id": "r1"}
    assert [parse_event(line) for line in file.lines()] == [*map(event, range(5)), FINISH]
    assert sum("does not answer" in entry.message for entry in caplog.records) == 1


def test_queue_store_comes_back_events_are_sent_in_order_with_their_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking_queue, "FIRST_RETRY_S", 0.0)
    store = Store(answers=False)
    queue = start(store, tmp_path)
    queue.put(event(0))
    assert queue.first_handled.wait(20)
    store.answers = True
    for step in range(1, 4):
        queue.put(event(step))
    counts = queue.close(20, FINISH)
    assert store.steps == [0, 1, 2, 3]
    assert [taken.time_ms for taken in store.taken] == [0, 1, 2, 3, 9]
    assert counts.waiting == 0
    assert not (tmp_path / "q.jsonl").exists()


def test_queue_earlier_process_left_a_file_it_goes_first(tmp_path: Path) -> None:
    left = start(Store(answers=False), tmp_path)
    left.put(event(1))
    left.close(20, FINISH)
    with (tmp_path / "q.jsonl").open("a") as file:
        file.write('{"kind": "metrics", "ti')
    store = Store()
    queue = start(store, tmp_path)
    queue.put(event(2))
    queue.close(20, FINISH)
    assert store.steps == [1, 2]


def test_queue_full_memory_drops_and_counts_without_waiting(tmp_path: Path) -> None:
    gate = threading.Event()
    store = Store(gate=gate)
    queue = start(store, tmp_path, max_events=3)
    queue.put(event(0))
    assert store.entered.wait(20)
    assert [queue.put(event(step)) for step in range(1, 7)] == [True, True, True, False, False, False]
    gate.set()
    counts = queue.close(20, FINISH)
    assert (counts.sent, counts.dropped) == (5, 3)
    assert store.steps == [0, 1, 2, 3]


def test_queue_store_slower_than_the_run_loses_nothing_and_keeps_the_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Slow(Store):
        """Takes an event whenever it may."""

        def __init__(self) -> None:
            super().__init__()
            self.may = threading.Semaphore(0)

        def send(self, event: Event) -> None:
            self.entered.set()
            assert self.may.acquire(timeout=20)
            super().send(event)

    store = Slow()
    queue = start(store, tmp_path, max_events=6)
    queue.put(event(0))
    assert store.entered.wait(20)
    wanted = 1
    for _ in range(4):
        # One is in flight; half of what there is room for goes into the file as soon as that one is taken.
        for _ in range(3):
            assert queue.put(event(wanted))
            wanted += 1
        store.may.release()
        give_up_s = time.monotonic() + 20
        while not queue._memory.empty() and time.monotonic() < give_up_s:
            time.sleep(0.001)
    store.may.release(100)
    counts = queue.close(20, FINISH)
    assert store.steps == list(range(wanted))
    assert store.taken[-1] == FINISH
    assert (counts.sent, counts.dropped, counts.waiting) == (wanted + 1, 0, 0)
    assert not (tmp_path / "q.jsonl").exists()
    assert sum("slower than the run" in entry.message for entry in caplog.records) == 1


def test_queue_full_file_drops_and_counts(tmp_path: Path) -> None:
    queue = start(Store(answers=False), tmp_path, limit_bytes=200)
    for step in range(10):
        queue.put(event(step))
    counts = queue.close(20, FINISH)
    assert counts.dropped > 0
    assert counts.dropped + counts.waiting == 11
    assert (tmp_path / "q.jsonl").stat().st_size <= 250


def test_queue_refused_event_is_counted_and_not_tried_again(tmp_path: Path) -> None:
    store = Store()
    store.refused = {1}
    queue = start(store, tmp_path)
    for step in range(3):
        queue.put(event(step))
    counts = queue.close(20, FINISH)
    assert store.steps == [0, 2]
    assert (counts.sent, counts.refused, counts.waiting) == (3, 1, 0)


def test_close_hanging_store_returns_and_keeps_the_event_in_flight(tmp_path: Path) -> None:
    gate = threading.Event()
    store = Store(gate=gate)
    queue = start(store, tmp_path)
    queue.put(event(0))
    assert store.entered.wait(20)
    queue.put(event(1))
    counts = queue.close(0.05, FINISH)
    assert counts.waiting == 3
    gate.set()
    file = QueueFile(tmp_path / "q.jsonl", 10**6)
    assert [parse_event(line) for line in file.lines()] == [event(0), event(1), FINISH]


def test_put_after_close_is_refused(tmp_path: Path) -> None:
    queue = start(Store(), tmp_path)
    queue.close(20, FINISH)
    assert not queue.put(event(1))


def test_forget_first_keeps_the_rest_with_new_state(tmp_path: Path) -> None:
    file = QueueFile(tmp_path / "q.jsonl", 10**6)
    for step in range(4):
        file.append(event(step), {"run_id": ""})
    file.forget_first(3, {"run_id": "r2"})
    assert file.num_events == 1
    assert file.read_state() == {"run_id": "r2"}
    assert [parse_event(line) for line in file.lines()] == [event(3)]
    file.forget_first(1, {})
    assert not file.path.exists()


def test_read_state_other_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match=r"tracking-queue\.jsonl"):
        QueueFile(tmp_path / "x.jsonl", 10**6).read_state()


def test_resend_sends_in_order_and_counts_what_is_refused_or_cut_short(tmp_path: Path) -> None:
    file = QueueFile(tmp_path / "q.jsonl", 10**6)
    for step in range(3):
        file.append(event(step), {})
    with file.path.open("a") as open_file:
        open_file.write('{"kind": "metrics", "ti')
    store = Store()
    store.refused = {1}
    counts = resend(QueueFile(file.path, 10**6), store, store_name="the store")
    assert store.steps == [0, 2]
    assert (counts.sent, counts.refused, counts.waiting) == (2, 2, 0)
    assert not file.path.exists()


def test_resend_stops_where_the_store_stops_answering_and_keeps_the_rest(tmp_path: Path) -> None:
    class Tiring(Store):
        def send(self, event: Event) -> None:
            self.answers = event.payload["step"] != 2
            super().send(event)

    file = QueueFile(tmp_path / "q.jsonl", 10**6)
    for step in range(4):
        file.append(event(step), {"run_id": ""})
    store = Tiring()
    store.refused = {0}
    counts = resend(file, store, store_name="the store")
    assert store.steps == [1]
    assert (counts.sent, counts.refused, counts.waiting) == (1, 1, 2)
    assert [parse_event(line) for line in file.lines()] == [event(2), event(3)]
    assert file.read_state() == {"run_id": "r1"}


def test_resend_store_that_never_answers_is_left_after_the_bound(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue = start(Store(answers=False), tmp_path)
    assert queue.close(20, FINISH).waiting == 1
    assert "samepath replay" in caplog.text
    gate = threading.Event()
    counts = resend(QueueFile(tmp_path / "q.jsonl", 10**6), Store(gate=gate), "the store", timeout_s=0.05)
    gate.set()
    assert (counts.sent, counts.waiting) == (0, 1)
    assert "waited 0 s for it to take one event (finish)" in caplog.text
