"""What the processes of a run hold over time: memory, open files and threads of its driver, and what they leave behind."""

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil

WARM_STEPS = 6
"""Steps of an attempt whose figures do not count: memory settles first."""
LEAST_LOOKS = 30
"""Looks at an attempt without which its slope says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The driver at one moment."""

    time_s: float
    step: int
    """Of the newest checkpoint."""
    memory_mib: float
    """Resident."""
    files: int
    """Open descriptors."""
    threads: int


@dataclass(slots=True)
class Watched:
    """One attempt: its driver, what was seen of it, and every process below it."""

    pid: int
    looks: list[Look] = field(default_factory=list)
    below: dict[int, psutil.Process] = field(default_factory=dict)


class Watch:
    """All attempts of a soak."""

    def __init__(self) -> None:
        self._attempts: list[Watched] = []
        self._left = 0
        self._peak_mib = 0.0

    def look(self, attempt: Watched, step: int) -> None:
        """Look at the driver and at what runs below it."""
        try:
            driver = psutil.Process(attempt.pid)
            below = driver.children(recursive=True)
            attempt.below |= {process.pid: process for process in below}
            memory_mib = driver.memory_info().rss / 2**20
            attempt.looks.append(
                Look(
                    time_s=time.monotonic(),
                    step=step,
                    memory_mib=memory_mib,
                    files=driver.num_fds(),
                    threads=driver.num_threads(),
                )
            )
        except psutil.Error:
            # It has ended.
            return
        self._peak_mib = max(self._peak_mib, memory_mib)

    def ended(self, attempt: Watched, limit_s: float) -> None:
        """Wait until everything below the driver is gone; what is not after `limit_s` is counted and killed."""
        self._attempts.append(attempt)
        _, left = psutil.wait_procs(list(attempt.below.values()), timeout=limit_s)
        self._left += len(left)
        for process in left:
            process.kill()

    def report(self) -> dict[str, Any]:
        """Slopes of the longest attempt, which shows most of what grows, and what was left behind."""
        longest = max(self._attempts, key=lambda attempt: len(attempt.looks))
        first, last = (longest.looks[0].step, longest.looks[-1].step) if longest.looks else (0, 0)
        # Behind the last checkpoint the driver may have been ending already.
        looks = [look for look in longest.looks if first + WARM_STEPS <= look.step < last]
        slopes = {} if len(looks) < LEAST_LOOKS else _slopes(looks)
        return {
            "processes left": self._left,
            "driver's peak memory, MiB": round(self._peak_mib, 1),
            "longest attempt": {"looks": len(looks), "steps": looks[-1].step - looks[0].step if looks else 0, **slopes},
        }


def _slopes(looks: list[Look]) -> dict[str, Any]:
    """Least squares over time, a minute, and the first and last values."""
    minutes = np.array([look.time_s for look in looks]) / 60
    found: dict[str, Any] = {"minutes": round(float(minutes[-1] - minutes[0]), 1)}
    for name in ("memory_mib", "files", "threads"):
        values = np.array([getattr(look, name) for look in looks], float)
        slope = float(np.polyfit(minutes - minutes[0], values, 1)[0])
        found[name] = {
            "first": round(float(values[0]), 1),
            "last": round(float(values[-1]), 1),
            "a minute": round(slope, 3),
        }
    return found
