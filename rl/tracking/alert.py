"""One thing that is said of a run, as it is kept: what was seen from which step on, its usual cause, and what to look at."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

AlertEvent = Literal["begins", "ends", "note"]
"""Something is wrong from here on; it no longer is; or it is said once and has no end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """A line of `alerts.jsonl`.

    Example:
        Alert(step=12, rule="no_spread", event="begins", seen="in 3 steps no group had two different rewards",
              cause="the reward is constant", advice="look at rollouts/")
    """

    step: int
    """Steps that were done when it was seen; 0 before the first."""
    rule: str
    """Name of the rule, which is also its switch in the recipe."""
    event: AlertEvent
    """Whether it begins or ends here."""
    seen: str
    """What is seen, with its numbers."""
    cause: str = ""
    """What it usually comes from."""
    advice: str = ""
    """Which setting or file to look at."""
    about: str = ""
    """What tells two notes of a rule apart: the metric of the failure."""

    def plain(self) -> dict[str, Any]:
        """The line as JSON data; what is empty is left out."""
        return {name: value for name, value in asdict(self).items() if value != ""}

    def line(self) -> str:
        """The same for people, in one line."""
        if self.event == "ends":
            return f"over: {self.rule}: {self.seen}"
        name = "" if self.event == "note" else f"{self.rule}: "
        rest = "".join(f". {text[:1].upper()}{text[1:]}" for text in (self.cause, self.advice) if text)
        return f"warning: {name}{self.seen}{rest}"


def alert_of(entry: Mapping[str, Any]) -> Alert:
    """An alert from its line's data. Raises KeyError for one that is none."""
    return Alert(
        step=int(entry["step"]),
        rule=str(entry["rule"]),
        event=entry["event"],
        seen=str(entry["seen"]),
        cause=str(entry.get("cause", "")),
        advice=str(entry.get("advice", "")),
        about=str(entry.get("about", "")),
    )
