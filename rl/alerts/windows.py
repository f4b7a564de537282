"""Means over steps: the first ones of a run, the last ones, and the best window so far."""

from collections import deque
from statistics import fmean

REWARD_STDS = 0.1
"""A reward has risen if it is so many of its own standard deviations above that of the first steps."""


class Beginning:
    """The mean of a run's first values, which the later ones are compared with."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=size)

    def add(self, value: float) -> None:
        """Take the next one."""
        if len(self._first) < self._size:
            self._first.append(value)
        self._last.append(value)

    @property
    def whole(self) -> bool:
        """Whether there are as many as a beginning has."""
        return len(self._first) == self._size

    @property
    def mean(self) -> float:
        """Of the first values. Raises statistics.StatisticsError without any."""
        return fmean(self._first)

    @property
    def last_mean(self) -> float:
        """Of as many last ones."""
        return fmean(self._last)


class RewardTrend:
    """Whether the reward has risen since the first steps."""

    def __init__(self, size: int) -> None:
        self._means, self._stds = Beginning(size), Beginning(size)

    def add(self, mean: float, std: float) -> None:
        """Take `reward/mean` and `reward/std` of a step."""
        self._means.add(mean)
        self._stds.add(std)

    @property
    def risen(self) -> bool:
        """True if the last steps earn clearly more than the first ones."""
        return self._means.last_mean > self._means.mean + REWARD_STDS * self._stds.mean

    def __str__(self) -> str:
        return f"reward/mean {self._means.mean:.3g} → {self._means.last_mean:.3g}"
