"""Intervals worked by hand, and the events of a GPU, which are read once."""

from types import SimpleNamespace

import pytest
import torch

from samepath.model import collectives
from samepath.model.collectives import covered_s, measured, timed

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("intervals", "seconds"),
    [
        ([], 0.0),
        ([(0.0, 2.0), (1.0, 3.0), (5.0, 6.0)], 4.0),
        ([(5.0, 6.0), (0.0, 9.0), (1.0, 2.0)], 9.0),
        ([(1.0, 1.0), (2.0, 3.0), (3.0, 4.0)], 2.0),
    ],
)
def test_covered_counts_what_overlaps_once(intervals: list[tuple[float, float]], seconds: float) -> None:
    assert covered_s(intervals) == seconds


class Clock:
    """Seconds that stand still unless told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Now."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The host's clock of `collectives`."""
    one = Clock()
    monkeypatch.setattr(collectives, "time", SimpleNamespace(perf_counter=one))
    return one


def test_measured_takes_the_collectives_of_its_block_alone(clock: Clock) -> None:
    with timed(CPU):
        clock.now += 7
    with measured() as found:
        clock.now += 1
        with timed(CPU):
            clock.now += 2
        clock.now += 3
        with timed(CPU):
            clock.now += 4
    with timed(CPU):
        clock.now += 7
    assert (found.total_s, found.collective_s) == (10.0, 6.0)


def test_measured_forgets_a_block_that_fails(clock: Clock) -> None:
    with pytest.raises(RuntimeError), measured():
        raise RuntimeError
    assert collectives._open == []


def test_device_is_timed_by_events_on_the_host_s_clock_and_waited_for_once(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collective of the host lies within one of the device: what overlaps counts once, though two clocks tell it."""
    device_ms, waits = [5000.0], []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at_ms = device_ms[0]

        def synchronize(self) -> None:
            waits.append("event")

        def elapsed_time(self, other: "Event") -> float:
            return other.at_ms - self.at_ms

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append("device"))

    def passes(seconds: float) -> None:
        clock.now += seconds
        device_ms[0] += 1000 * seconds

    with measured() as found:
        passes(1)
        with timed(GPU):
            passes(2)
            with timed(CPU):
                passes(1)
        passes(3)
        with timed(GPU):
            passes(0.5)
        assert waits == []
        passes(0.5)
    assert waits == ["device", "event"]
    assert (found.total_s, found.collective_s) == (8.0, pytest.approx(3.5))
