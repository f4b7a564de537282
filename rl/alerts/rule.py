"""What a rule is: a name, what it looks at, and what its finding usually comes from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Metrics = Mapping[str, float]
Look = Callable[[int, Metrics], str | None]
"""Gets a step's number (1 for the first) and its metrics, in the order of steps; returns what is seen with its numbers, "" where all is well, and None
where these metrics say nothing about it."""


def _nothing() -> None:
    """Nothing changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule over a run's step metrics.

    Example:
        Rule(name="truncated", steps=1, look=lambda step, metrics: "", cause="the limit is too low", advice="raise sampling.max_new_tokens")
    """

    name: str
    """Also its switch in `alerts` of the recipe."""
    look: Look
    """Called once a step. May remember steps: a run that goes on shows it all steps again."""
    cause: str
    """What it usually comes from, in a sentence without its full stop."""
    advice: str
    """Which settings or files to look at, likewise."""
    steps: int = 1
    """In so many steps in a row it must be seen to begin, and not be seen to end."""
    restart: Callable[[], None] = _nothing
    """Called where another process goes on with the run."""
