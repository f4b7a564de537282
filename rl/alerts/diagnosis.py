"""What went wrong in a run, in the order in which it began: read from its folder, whether it is finished, cut short or dead."""

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samepath.rl.alerts.book import STOPPED, read_alerts, resumptions
from samepath.rl.alerts.rules import rules_of
from samepath.rl.alerts.watch import Watch, shown_again
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.run_folder import LOCK_FILE, recipe_of_run
from samepath.rl.run_state import METRICS_FILE, RunState
from samepath.rl.tracking.alert import Alert
from samepath.rl.tracking.jsonl import read_metrics

DIED = Alert(
    step=0,
    rule="died",
    event="begins",
    seen="the process ended without a word",
    cause="it was killed (SIGKILL, often because memory ran out), or the machine went down",
    advice="look at memory/driver_gib and memory/learner_gib in metrics.jsonl, and at the system's log",
)
FAILED = Alert(
    step=0,
    rule="failed",
    event="begins",
    seen="the run ended with an error that is not kept",
    cause="a defect, or a start that failed: its message went to the terminal",
    advice="go on with samepath resume, and read what it says",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that went wrong.

    Example:
        Finding(step=12, rule="no_spread", seen="in 3 steps in a row: no group had two different rewards", cause="…", advice="…")
    """

    step: int
    """Steps that were done when it began."""
    rule: str
    """Name of the alert; `stopped`, `died` and `failed` for how the run ended."""
    seen: str
    """What is seen, with its numbers."""
    cause: str
    """What it usually comes from; empty where the message says it."""
    advice: str
    """What to look at; likewise."""
    over_at: int | None = None
    """Step at which it was over; None if it holds to the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """How a run stands, and what went wrong."""

    run_dir: Path
    """Its folder."""
    status: str
    """`finished`, `running`, `interrupted`, `stopped`, `died` or `failed`."""
    steps_done: int
    """Steps that metrics.jsonl has."""
    steps_planned: int
    """As the recipe says."""
    findings: tuple[Finding, ...]
    """In the order in which they began."""
    notes: tuple[Alert, ...]
    """What was said once and is no finding, such as the first failure of a kind."""

    @property
    def healthy(self) -> bool:
        """True if nothing holds at the end."""
        return all(finding.over_at is not None for finding in self.findings)

    def plain(self) -> dict[str, Any]:
        """JSON data."""
        return {
            "run": str(self.run_dir),
            "status": self.status,
            "steps_done": self.steps_done,
            "steps_planned": self.steps_planned,
            "healthy": self.healthy,
            "findings": [
                {name: getattr(one, name) for name in ("step", "rule", "seen", "cause", "advice", "over_at")}
                for one in self.findings
            ],
            "notes": [note.plain() for note in self.notes],
        }

    def lines(self) -> Iterator[str]:
        """The same for people."""
        yield f"{self.run_dir}: {self.status} at step {self.steps_done} of {self.steps_planned}"
        for number, one in enumerate(self.findings, 1):
            over = "" if one.over_at is None else f" (over at step {one.over_at})"
            first = ", first" if number == 1 and len(self.findings) > 1 else ""
            yield f"{number}. step {one.step}{first}: {one.rule}{over}: {one.seen}"
            if one.cause:
                yield f"   usually: {one.cause}"
            if one.advice:
                yield f"   advice: {one.advice}"
        for note in self.notes:
            yield f"note, step {note.step}: {note.seen}"
        if not self.findings:
            yield "nothing went wrong"
        elif self.healthy:
            yield "nothing is wrong at the end"


def diagnose(run_dir: Path) -> Diagnosis:
    """Read a run's folder; writes nothing. The rules look at `metrics.jsonl` anew, with the thresholds of the run's recipe.

    Raises FileNotFoundError, RecipeError or RunStateError for a folder that is no run's.
    """
    recipe = recipe_of_run(run_dir)
    state, known = RunState.load(run_dir), read_alerts(run_dir)
    path = run_dir / METRICS_FILE
    steps = read_metrics(path) if path.is_file() else {}
    done = max((step for step, metrics in steps.items() if "reward/groups_no_spread" in metrics), default=0)
    status = status_of(run_dir, state, known)
    ended = [alert for alert in known if alert.rule == STOPPED]
    for how, alert in (("died", DIED), ("failed", FAILED)):
        if status == how:
            ended.append(
                Alert(step=done, rule=how, event="begins", seen=alert.seen, cause=alert.cause, advice=alert.advice)
            )
    return Diagnosis(
        run_dir=run_dir,
        status=status,
        steps_done=done,
        steps_planned=recipe.rl.steps,
        findings=tuple(_findings([*_seen_again(recipe, steps, known), *ended])),
        notes=tuple(alert for alert in known if alert.event == "note"),
    )


def _seen_again(recipe: Recipe, steps: Mapping[int, Mapping[str, float]], known: Sequence[Alert]) -> list[Alert]:
    return shown_again(Watch(rules_of(recipe)), steps, resumptions(known))


def _findings(alerts: Sequence[Alert]) -> list[Finding]:
    """Beginnings with their ends, earliest first; of one step those that ended the run last."""
    open_ones: dict[str, Alert] = {}
    found: list[Finding] = []

    def close(alert: Alert, over_at: int | None) -> None:
        found.append(
            Finding(
                step=alert.step,
                rule=alert.rule,
                seen=alert.seen,
                cause=alert.cause,
                advice=alert.advice,
                over_at=over_at,
            )
        )

    for alert in alerts:
        if alert.event == "begins":
            open_ones[alert.rule] = alert
        elif alert.event == "ends" and alert.rule in open_ones:
            close(open_ones.pop(alert.rule), alert.step)
    for alert in open_ones.values():
        close(alert, None)
    last = (STOPPED, "died", "failed")
    return sorted(found, key=lambda one: (one.step, one.rule in last))


def status_of(run_dir: Path, state: RunState, known: Sequence[Alert]) -> str:
    """How a run stands: see `Diagnosis.status`; `known` are its alerts."""
    if state.phase == "finished":
        return "finished"
    if _held(run_dir / LOCK_FILE):
        return "running"
    stops = [alert for alert in known if alert.rule == STOPPED]
    if stops and stops[-1].event == "begins":
        return "stopped"
    book = run_dir / "tracking.json"
    attempts = json.loads(book.read_text(encoding="utf-8"))["attempts"] if book.is_file() else []
    how = attempts[-1]["status"] if attempts else "RUNNING"
    return {"KILLED": "interrupted", "RUNNING": "died"}.get(how, "failed")


def _held(path: Path) -> bool:
    """Whether a process holds the run's lock."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
