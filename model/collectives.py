"""How long this process was in collectives: calls that exchange numbers with the other processes of its group.

Waiting for a process that comes late counts: that is most of what is to be known. Calls of CPUs are timed by the host's clock, those of GPUs by events on
the stream that they run on, which the host reads once at the end: no call is waited for because it is timed.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

Interval = tuple[float, float]
"""When something began and ended, seconds of the host's clock."""


@dataclass(slots=True)
class CollectiveTime:
    """What `measured` found, once its block has ended."""

    total_s: float = 0.0
    """Seconds that the block took, until the GPU had done what it was given."""
    collective_s: float = 0.0
    """Those of them in which at least one collective was under way."""
    _host: list[Interval] = field(default_factory=list)
    _device: list[tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)

    def _finish(self, begun_s: float) -> None:
        intervals = list(self._host)
        if self._device:
            last = _event()
            torch.cuda.synchronize()
            last.record()
            last.synchronize()
            now_s = time.perf_counter()
            # Events tell milliseconds between two of them: the last one, whose moment the host knows, puts all on its clock.
            intervals += [
                (now_s - begun.elapsed_time(last) / 1e3, now_s - ended.elapsed_time(last) / 1e3)
                for begun, ended in self._device
            ]
        self.total_s = time.perf_counter() - begun_s
        self.collective_s = covered_s(intervals)


_open: list[CollectiveTime] = []
"""The block that is measured. A process has one, as it has one group: a backward pass on a GPU exchanges from a thread of its own."""


@contextmanager
def measured() -> Iterator[CollectiveTime]:
    """Measure the collectives of a block. A GPU is waited for at its end if it had any."""
    found, begun_s = CollectiveTime(), time.perf_counter()
    _open.append(found)
    try:
        yield found
    finally:
        _open.remove(found)
    found._finish(begun_s)


@contextmanager
def timed(device: torch.device) -> Iterator[None]:
    """Note one collective on tensors of this device for whoever measures; must hold that call and nothing else."""
    if not _open:
        yield
        return
    found = _open[-1]
    if device.type == "cuda":
        begun, ended = _event(), _event()
        begun.record()
        yield
        ended.record()
        found._device.append((begun, ended))
        return
    begun_s = time.perf_counter()
    yield
    found._host.append((begun_s, time.perf_counter()))


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def covered_s(intervals: Sequence[Interval]) -> float:
    """Seconds that lie in at least one interval.

    Example: of (0, 2), (1, 3) and (5, 6) it is 4.
    """
    total_s, until_s = 0.0, float("-inf")
    for begun_s, ended_s in sorted(intervals):
        total_s += max(0.0, ended_s - max(begun_s, until_s))
        until_s = max(until_s, ended_s)
    return total_s
