"""How sure a mean is: Student's interval, and the exact test of signs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

CONFIDENCE = 0.95
SLICES = 2000
"""Of Simpson's rule, even."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean and where it may lie.

    Example:
        Interval(mean=0.62, low=0.55, high=0.69, count=5)
    """

    mean: float
    low: float
    """NaN, as `high`, where there is one value only: nothing says how far others would lie."""
    high: float
    count: int
    """Values."""


def interval(values: Sequence[float]) -> Interval:
    """Mean of independent values and its 95 % interval x̄ ± t·s/√n, t Student's with n − 1 degrees of freedom. Needs a value."""
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Interval(mean=mean, low=math.nan, high=math.nan, count=1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = student_t(count - 1) * deviation / math.sqrt(count)
    return Interval(mean=mean, low=mean - half, high=mean + half, count=count)


def welch(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Mean of the second minus that of the first, which are independent of it, and its 95 % interval (Welch's degrees of freedom)."""
    one, two = interval(first), interval(second)
    mean = two.mean - one.mean
    if min(one.count, two.count) == 1:
        return Interval(mean=mean, low=math.nan, high=math.nan, count=one.count + two.count)
    parts = [
        math.fsum((value - side.mean) ** 2 for value in values) / (side.count - 1) / side.count
        for side, values in ((one, first), (two, second))
    ]
    total = math.fsum(parts)
    if total == 0:
        return Interval(mean=mean, low=mean, high=mean, count=one.count + two.count)
    degrees = total**2 / math.fsum(part**2 / (side.count - 1) for part, side in zip(parts, (one, two), strict=True))
    half = student_t(degrees) * math.sqrt(total)
    return Interval(mean=mean, low=mean - half, high=mean + half, count=one.count + two.count)


@cache
def student_t(degrees: float, confidence: float = CONFIDENCE) -> float:
    """The t that a Student variable of so many degrees of freedom stays within, on both sides, with that probability; to 1e-6.

    By Simpson's rule on the density with t = √ν·tan θ, where it is cos^(ν−1) θ, and bisection for θ.
    """
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(math.pi)

    def within(angle: float) -> float:
        width = angle / SLICES
        heights: list[float] = [math.cos(place * width) ** (degrees - 1) for place in range(SLICES + 1)]
        inner = 4 * math.fsum(heights[1:-1:2]) + 2 * math.fsum(heights[2:-1:2])
        return float(2 * scale * (heights[0] + inner + heights[-1]) * width / 3)

    low, high = 0.0, math.pi / 2
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < confidence else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def sign_test(better: int, worse: int) -> float:
    """Two-sided exact probability of a split at least as uneven if either side were as likely (McNemar's exact test for right and wrong)."""
    count, least = better + worse, min(better, worse)
    tail = sum(math.comb(count, wins) for wins in range(least + 1))
    return float(min(1.0, 2 * tail / 2**count))
