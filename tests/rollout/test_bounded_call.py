"""A call that hangs holds nobody up, and everything else is as if it had been called here."""

import threading
from collections.abc import Iterator

import pytest

from samepath.rollout.bounded_call import OverdueError, bounded, overdue


@pytest.fixture
def hanging() -> Iterator[threading.Event]:
    """What a hanging call waits for, until the test is over."""
    event = threading.Event()
    yield event
    event.set()


def test_bounded_gives_what_the_call_gives_or_raises() -> None:
    assert bounded("x", 5.0, lambda: 3) == 3
    with pytest.raises(KeyError, match="there"):
        bounded("x", 5.0, lambda: {}["there"])
    assert not overdue("x")


def test_bounded_leaves_a_call_behind_that_hangs_and_knows_of_it_until_it_ends(hanging: threading.Event) -> None:
    with pytest.raises(OverdueError, match="no answer for 0 s") as caught:
        bounded("x", 0.05, hanging.wait)
    assert overdue("x") == overdue() == [caught.value.thread]
    assert not overdue("y")
    hanging.set()
    caught.value.thread.join(10.0)
    assert not overdue()


def test_bounded_ends_the_wait_with_what_look_raises(hanging: threading.Event) -> None:
    looks = []

    def look() -> None:
        looks.append(1)
        if len(looks) == 2:
            raise RuntimeError("it is gone")

    with pytest.raises(RuntimeError, match="it is gone"):
        bounded("x", 60.0, hanging.wait, look)
    assert len(overdue("x")) == 1


def test_bounded_keeps_the_thread_that_stays_and_counts_it_not_as_hanging(hanging: threading.Event) -> None:
    thread = bounded("x", 5.0, threading.current_thread, stays_until=hanging)
    assert thread.is_alive()
    assert not overdue("x")
    hanging.set()
    thread.join(10.0)
    assert not thread.is_alive()
