"""When an alert begins, and when it is over: once each, however long it holds."""

from samepath.rl.alerts.rule import Metrics, Rule
from samepath.rl.alerts.watch import Watch, shown_again


def rule(steps: int) -> Rule:
    """Sees whatever `x` is above 0."""

    def look(step: int, metrics: Metrics) -> str | None:
        return None if "x" not in metrics else "x is high" if metrics["x"] > 0 else ""

    return Rule(name="high", look=look, steps=steps, cause="c", advice="a")


def events(steps: int, *values: float | None) -> list[tuple[int, str]]:
    watch = Watch([rule(steps)])
    return [
        (alert.step, alert.event)
        for step, value in enumerate(values, 1)
        for alert in watch.step(step, {} if value is None else {"x": value})
    ]


def test_alert_is_said_once_when_it_begins_and_once_when_it_is_over() -> None:
    assert events(1, 0, 1, 1, 1, 0, 0, 1) == [(2, "begins"), (5, "ends"), (7, "begins")]


def test_alert_of_several_steps_begins_and_ends_after_so_many_in_a_row() -> None:
    assert events(2, 1, 0, 1, 1, 1, 0, 1, 0, 0, 0) == [(4, "begins"), (9, "ends")]


def test_steps_that_say_nothing_change_nothing() -> None:
    assert events(2, 1, None, 1, None, 0, None, 0) == [(3, "begins"), (7, "ends")]


def test_watch_says_what_holds_and_since_when() -> None:
    watch = Watch([rule(1)])
    assert watch.holding == {}
    watch.step(4, {"x": 1.0})
    watch.step(5, {"x": 1.0})
    assert watch.holding == {"high": 4}
    watch.step(6, {"x": 0.0})
    assert watch.holding == {}


def test_steps_that_are_shown_again_leave_a_watch_as_it_was() -> None:
    first, second = Watch([rule(3)]), Watch([rule(3)])
    steps = {step: {"x": float(step > 2)} for step in range(1, 5)}
    assert shown_again(first, steps) == []
    for step, metrics in steps.items():
        second.step(step, metrics)
    assert first.step(5, {"x": 1.0}) == second.step(5, {"x": 1.0}) != []
