"""What one check of a recipe found."""

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["ok", "not checked", "obstacle", "wrong"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check.

    Example:
        Finding(name="task", outcome="not checked", detail="dataset openai/gsm8k is not in the hub's cache, …")
    """

    name: str
    """What was looked at."""
    outcome: Outcome
    """`wrong`: the recipe must change. `obstacle`: the recipe is right, but this version or this machine cannot run it."""
    detail: str
    """What was found, and what to do."""
