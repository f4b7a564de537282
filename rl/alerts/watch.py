"""Rules over the steps of a run: when each begins to hold, and when it no longer does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from samepath.rl.alerts.rule import Metrics, Rule
from samepath.rl.tracking.alert import Alert


@dataclass(slots=True)
class _Standing:
    """Of one rule."""

    seen_steps: int = 0
    """Steps in a row in which it was seen."""
    calm_steps: int = 0
    """Steps in a row in which it was not."""
    since: int | None = None
    """Step at which it began; None while it does not hold."""


class Watch:
    """Shows each step to every rule. A function of the metrics alone, so that a run that goes on shows it the steps that are done again."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = tuple(rules)
        self._standing = {rule.name: _Standing() for rule in self._rules}

    @property
    def holding(self) -> dict[str, int]:
        """Rules that hold now, and the step at which each began."""
        return {name: one.since for name, one in self._standing.items() if one.since is not None}

    def step(self, step: int, metrics: Metrics) -> list[Alert]:
        """What begins or ends with the metrics of a step; steps come in their order, and one may come in parts."""
        said = []
        for rule in self._rules:
            seen = rule.look(step, metrics)
            if seen is not None and (alert := _changed(rule, self._standing[rule.name], step, seen)):
                said.append(alert)
        return said

    def restart(self) -> None:
        """Another process goes on with the run."""
        for rule in self._rules:
            rule.restart()


def _changed(rule: Rule, standing: _Standing, step: int, seen: str) -> Alert | None:
    """Take what a rule sees; what begins or ends by it."""
    standing.seen_steps = standing.seen_steps + 1 if seen else 0
    standing.calm_steps = 0 if seen else standing.calm_steps + 1
    if standing.since is None and standing.seen_steps >= rule.steps:
        standing.since = step
        often = f"in {rule.steps} steps in a row: {seen}" if rule.steps > 1 else seen
        return Alert(step=step, rule=rule.name, event="begins", seen=often, cause=rule.cause, advice=rule.advice)
    if standing.since is not None and standing.calm_steps >= rule.steps:
        began, standing.since = standing.since, None
        return Alert(
            step=step, rule=rule.name, event="ends", seen=f"no longer seen at step {step}, it began at step {began}"
        )
    return None


def shown_again(watch: Watch, steps: Mapping[int, Metrics], resumed_at: Sequence[int] = ()) -> list[Alert]:
    """Show a watch the steps that are done; another process went on behind each of `resumed_at`."""
    said = []
    for step, metrics in steps.items():
        said += watch.step(step, metrics)
        if step in resumed_at:
            watch.restart()
    return said
