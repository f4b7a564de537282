"""The result of scoring one answer: a total, its named parts, and how the scoring itself went."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Status = Literal["ok", "error", "timeout", "memory", "died", "invalid"]
"""`ok`: the function returned finite numbers. `error`: it raised. `timeout`: killed after its time limit. `memory`: it ran
into its memory limit. `died`: its process ended. `invalid`: it returned something that is no finite number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Reward of one answer.

    Example:
        Score(total=0.9, parts={"answer": 1.0, "length": -0.1}, status="ok")
        Score(total=float("nan"), parts={}, status="timeout", detail="answer: no result within 5.0 s")
    """

    total: float
    """Weighted sum of the parts; NaN unless status is `ok`, so that a failed reward can never pass for a zero."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Unweighted value of each named part."""
    status: Status = "ok"
    """How the scoring went."""
    detail: str = ""
    """For people: the exception or limit behind a status other than `ok`."""
