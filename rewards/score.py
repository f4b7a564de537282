"""The result of scoring one answer: a total, its named parts, and how the scoring itself went."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

MAX_PART = 2.0**127
"""Largest size of a part, about 1.7e38: float32 holds it, and averages of such numbers stay finite in float64."""

Status = Literal["ok", "error", "timeout", "memory", "died", "invalid"]
"""`ok`: the function returned finite numbers. `error`: it raised. `timeout`: killed after its time limit. `memory`: it ran
into its memory limit. `died`: its process ended. `invalid`: it returned something that is no finite number, or one beyond the bound."""


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


def bounded_score(total: float, parts: Mapping[str, float], max_abs: float) -> Score:
    """A usable score, or an `invalid` one where the total is above `max_abs` in size, or not finite, or a part above MAX_PART.

    Example:
        bounded_score(1e39, {"answer": 1e39}, 1e6).status == "invalid"
    """
    # Written so that NaN is refused too.
    if not abs(total) <= max_abs:
        reason = (
            f"the weighted sum must be at most reward.max_abs={max_abs:g} in size; got {total:g} from {dict(parts)}"
        )
    elif large := [name for name, value in parts.items() if not abs(value) <= MAX_PART]:
        reason = f"a part must be at most {MAX_PART:g} in size; got {parts[large[0]]:g} for {large[0]}"
    else:
        return Score(total=total, parts=parts)
    return Score(total=math.nan, status="invalid", detail=reason)
