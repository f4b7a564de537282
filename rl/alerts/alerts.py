"""The alerts of one run: rules over its steps, notes of what fails first, kept by the tracker and said once."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from samepath.rl.alerts.book import RESUMED, STOPPED, read_alerts, resumptions
from samepath.rl.alerts.first_failures import failures
from samepath.rl.alerts.rule import Metrics
from samepath.rl.alerts.rules import rules_of
from samepath.rl.alerts.watch import Watch, shown_again
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.run_state import METRICS_FILE
from samepath.rl.tracking.alert import Alert
from samepath.rl.tracking.jsonl import read_metrics
from samepath.rl.tracking.tracker import Tracker
from samepath.rollout.types import Group

MAX_MESSAGE_CHARS = 4000


class Alerts:
    """What the loop tells of its steps and rollouts, and what comes of it. Every method returns what is to be said, a line each."""

    def __init__(self, recipe: Recipe, tracker: Tracker) -> None:
        self._recipe, self._tracker = recipe, tracker
        self._watch = Watch(rules_of(recipe))
        self._noted: set[tuple[str, str]] = set()
        self._step = 0

    @property
    def holding(self) -> Mapping[str, int]:
        """Rules that hold now, and the step at which each began."""
        return self._watch.holding

    def go_on(self, run_dir: Path, first_step: int) -> list[str]:
        """Take up a run behind `first_step`: what was said before is not said again; what a kill kept from being written is."""
        known = read_alerts(run_dir)
        self._noted = {(alert.rule, alert.about) for alert in known if alert.event == "note"}
        path = run_dir / METRICS_FILE
        steps = read_metrics(path) if path.is_file() else {}
        done = {step: metrics for step, metrics in steps.items() if step <= first_step}
        again = shown_again(self._watch, done, resumptions(known))
        written = {(alert.step, alert.rule, alert.event) for alert in known}
        missing = [alert for alert in again if (alert.step, alert.rule, alert.event) not in written]
        self._watch.restart()
        self._step = first_step
        ended = [alert for alert in known if alert.rule == STOPPED]
        if ended and ended[-1].event == "begins":
            missing.append(
                Alert(step=first_step, rule=STOPPED, event="ends", seen=f"the run went on from step {first_step}")
            )
        if done or ended:
            missing.append(Alert(step=first_step, rule=RESUMED, event="note", seen=f"went on from step {first_step}"))
        return self._said(missing)

    def begin(self, num_train: int) -> list[str]:
        """The steps begin, over so many training rows."""
        if num_train != 1 or not self._recipe.alerts.one_row:
            return []
        note = Alert(
            step=self._step,
            rule="one_row",
            event="note",
            seen="there is one training row",
            cause="every group of every step answers the same prompt, so that eval/accuracy will say nothing of others",
            advice="give the task more rows",
        )
        return self._said(self._new([note]))

    def step(self, step: int, metrics: Metrics) -> list[str]:
        """The metrics of a step that is done, or a part of them."""
        self._step = step
        return self._said(self._watch.step(step, metrics))

    def failures(self, groups: Iterable[Group]) -> list[str]:
        """Groups with their scores, of the step under way or of an evaluation."""
        if not self._recipe.alerts.first_failure:
            return []
        return self._said(self._new(failures(groups, self._recipe.reward.parts, self._step + 1)))

    def stopped(self, error: BaseException) -> list[str]:
        """The run ends before its last step, by an error. Raises OSError if the disk is full."""
        message = f"{type(error).__name__}: {error}"[:MAX_MESSAGE_CHARS]
        return self._said([Alert(step=self._step, rule=STOPPED, event="begins", seen=message)])

    def _new(self, notes: Iterable[Alert]) -> Iterator[Alert]:
        """Those that were not noted before."""
        for note in notes:
            if (note.rule, note.about) not in self._noted:
                self._noted.add((note.rule, note.about))
                yield note

    def _said(self, alerts: Iterable[Alert]) -> list[str]:
        kept = list(alerts)
        if kept:
            self._tracker.log_alerts(kept, self.holding)
        return [alert.line() for alert in kept if alert.rule not in (RESUMED, STOPPED)]
