"""`report.html` of a run: whether it is healthy, in one file that needs no server, written again as the run goes."""

import errno
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from samepath.rl.alerts.book import read_alerts
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.report.drawing import MOST_POINTS
from samepath.rl.report.panel import DrawnPanel
from samepath.rl.report.progress import format_duration, format_number
from samepath.rl.report.report_panels import TEXT_SECTIONS, Steps, drawn_sections
from samepath.rl.report.template import write_page
from samepath.rl.run_state import METRICS_FILE, RunState
from samepath.rl.tracking.jsonl import FULL, read_metrics

logger = logging.getLogger("samepath.report")

REPORT_FILE = "report.html"
FIRST_PAGE_S = 1.0
"""What a page is taken to cost before one was written, seconds."""


def write_report(recipe: Recipe, state: RunState) -> Path:
    """Write the page from the run's `metrics.jsonl`, whole or not at all; returns it. Raises OSError."""
    path = recipe.run_dir / METRICS_FILE
    by_step = read_metrics(path) if path.is_file() else {}
    mask = recipe.rl.objective.off_policy_mask
    sections = drawn_sections(by_step, mask.delta if mask.enabled else None)
    done = _done(by_step)
    return _written(recipe.run_dir, done, recipe.rl.steps, _tiles(recipe, state, by_step, done), sections)


def write_text_report(run_dir: Path, steps: int, seconds: float) -> Path:
    """The same of a run on text, of so many planned steps, that has taken so long."""
    path = run_dir / METRICS_FILE
    by_step = read_metrics(path) if path.is_file() else {}
    done = _done(by_step)
    return _written(
        run_dir,
        done,
        steps,
        _text_tiles(by_step, f"{done} of {steps}", seconds),
        drawn_sections(by_step, None, TEXT_SECTIONS),
    )


def _text_tiles(by_step: Steps, steps: str, seconds: float) -> Iterator[tuple[str, str]]:
    yield "steps", steps
    for title, name in (
        ("recall", "sparse/recall"),
        ("perplexity above all keys", "sparse/excess"),
        ("indexer's loss", "text/indexer_kl"),
    ):
        found = [values[name] for values in by_step.values() if math.isfinite(values.get(name, math.nan))]
        if found:
            yield title, f"{found[0]:.3f} → {found[-1]:.3f}"
    yield "time", format_duration(seconds)


def _written(
    run_dir: Path,
    done: int,
    steps: int,
    tiles: Iterator[tuple[str, str]],
    sections: Iterator[tuple[str, list[DrawnPanel]]],
) -> Path:
    out = run_dir / REPORT_FILE
    values = {
        "title": run_dir.name,
        "state": "Finished" if done >= steps else f"Step {done} of {steps}",
        "written": datetime.now(UTC).isoformat(" ", "seconds"),
        "thinned": math.ceil(done / MOST_POINTS) if done > MOST_POINTS else 0,
        "tiles": [{"name": name, "value": value} for name, value in tiles],
        "alerts": read_alerts(run_dir),
        "sections": [{"title": title, "panels": panels} for title, panels in sections],
    }
    write_page(out, "report.html", values)
    return out


@dataclass(slots=True, kw_only=True)
class LiveReport:
    """Keeps the page up to date in a small share of the run's time: a page that takes t seconds has t/share seconds to itself."""

    recipe: Recipe
    state: RunState
    started: float
    """When the run began, by the clock."""
    clock: Callable[[], float] = time.monotonic
    """Seconds."""
    spent_s: float = field(default=0.0, init=False)
    """What all pages together took."""
    _next_s: float = field(default=math.inf, init=False)

    def __post_init__(self) -> None:
        if share := self.recipe.tracking.report_share:
            self._next_s = self.started + FIRST_PAGE_S / share

    def after(self) -> None:
        """Write the page if its time has come. A disk that is full ends the run (OSError); another error ends the pages, with a warning."""
        share, began = self.recipe.tracking.report_share, self.clock()
        if began < self._next_s:
            return
        try:
            write_report(self.recipe, self.state)
        except OSError as error:
            if error.errno in (*FULL, errno.EIO):
                raise
            logger.warning("%s is not kept up to date: %s", REPORT_FILE, error)
            self._next_s = math.inf
            return
        ended = self.clock()
        self.spent_s += ended - began
        self._next_s = began + (ended - began) / share


def _done(by_step: Steps) -> int:
    return max(
        (step for step, values in by_step.items() if "reward/mean" in values or "time/step_s" in values), default=0
    )


def _tiles(recipe: Recipe, state: RunState, by_step: Steps, done: int) -> Iterator[tuple[str, str]]:
    """(name, value) of what is looked at first."""
    yield "steps", f"{done} of {recipe.rl.steps}"
    accuracies = [
        values["eval/accuracy"] for values in by_step.values() if math.isfinite(values.get("eval/accuracy", math.nan))
    ]
    if accuracies:
        yield "held-out accuracy", f"{accuracies[0]:.3f} → {accuracies[-1]:.3f}"
    if state.best is not None:
        yield "best checkpoint", f"{state.best.accuracy:.3f} at step {state.best.step}"
    last = by_step.get(done, {})
    for title, name in (("reward", "reward/mean"), ("KL to the reference", "kl/reference_unbiased")):
        if name in last:
            yield title, format_number(last[name])
    if done:
        yield "alerts that hold", ", ".join(state.alerts) or "none"
        yield "largest gap at lag 0", format_number(state.gap_at_lag_0)
        yield "failures", f"{sum(state.counters.values()):.0f}"
        yield "time", format_duration(state.seconds)
