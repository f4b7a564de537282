"""What a person sees while a run goes on: a live line on a terminal, plain lines everywhere else."""

import math
import time
from collections.abc import Callable, Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

HEADLINES = {
    "reward": "reward/mean",
    "KL": "kl/reference_unbiased",
    "entropy": "policy/entropy",
    "gap": "policy/gap_at_lag_0",
    "length": "rollout/length_mean",
    "truncated": "rollout/truncated",
    "accuracy": "eval/accuracy",
    "loss": "text/loss",
    "indexer KL": "text/indexer_kl",
    "tokens/s": "rollout/tokens_per_s",
    "text tokens/s": "text/tokens_per_s",
}
"""What is shown of a step, and the metric it comes from."""


class ProgressDisplay:
    """Shows step, phase and headline numbers; a context manager.

    Example:
        with ProgressDisplay(total_steps=30) as display:
            display.phase("sampling")
            display.update(1, {"reward/mean": 0.4, "rollout/tokens_per_s": 910.0})
    """

    def __init__(
        self,
        *,
        total_steps: int,
        done_steps: int = 0,
        every: int = 1,
        mark: str = "",
        console: Console | None = None,
    ) -> None:
        """`done_steps` were done before a resume; without a terminal one line is printed every `every` steps. `mark` stands on every line.

        Raises:
            ValueError: `every` is below 1.
        """
        if every < 1:
            raise ValueError(
                f"every must be at least 1 step between two lines; got {every}. Give 1 for a line every step."
            )
        self._total_steps = total_steps
        self._done_steps = done_steps
        self._every = every
        self._mark = f"{mark}  " if mark else ""
        self._on_phase: Callable[[str], None] | None = None
        self._console = console if console is not None else Console()
        self._values: dict[str, float] = {}
        self._started_s = time.monotonic()
        self._progress: Progress | None = None
        self._task = TaskID(0)

    @property
    def is_live(self) -> bool:
        """True if there is a terminal to draw on."""
        return self._console.is_terminal

    def __enter__(self) -> "ProgressDisplay":
        self._started_s = time.monotonic()
        if self.is_live:
            columns = (
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[headline]}"),
                TimeRemainingColumn(compact=True),
                TextColumn("[dim]{task.fields[phase]}"),
            )
            self._progress = Progress(*columns, console=self._console, speed_estimate_period=600)
            self._progress.start()
            self._task = self._progress.add_task(
                "", total=self._total_steps, completed=self._done_steps, headline=self._mark, phase="starting"
            )
        else:
            steps = "every step" if self._every == 1 else f"every {self._every} steps"
            self._print(f"no terminal: one line {steps}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def start_clock(self) -> None:
        """Forget the time of the set-up, so that the time left is judged by the steps alone."""
        self._started_s = time.monotonic()
        if self._progress is not None:
            self._progress.reset(self._task, completed=self._done_steps)

    def tell(self, on_phase: Callable[[str], None]) -> None:
        """Have `on_phase` called with the name of every phase, once it is shown."""
        self._on_phase = on_phase

    def phase(self, name: str) -> None:
        """Name what is going on: sampling, scoring, learning, syncing, evaluating."""
        if self._progress is not None:
            self._progress.update(self._task, phase=name)
        if self._on_phase is not None:
            self._on_phase(name)

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show that `step` steps are done; numbers a step does not have keep their last value."""
        for label, name in HEADLINES.items():
            if name in metrics:
                self._values[label] = metrics[name]
        if self._progress is not None:
            self._progress.update(self._task, completed=step, headline=self._headline("  "))
        elif step % self._every == 0 or step >= self._total_steps:
            self._print(f"step {step}/{self._total_steps}  {self._headline('  ')}  left {self._time_left(step)}")

    def message(self, text: str) -> None:
        """Print a line above the live display."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _headline(self, separator: str) -> str:
        return self._mark + separator.join(f"{label} {format_number(value)}" for label, value in self._values.items())

    def _time_left(self, step: int) -> str:
        done = step - self._done_steps
        if done <= 0:
            return "?"
        left_s = (time.monotonic() - self._started_s) / done * max(self._total_steps - step, 0)
        return format_duration(left_s)

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def format_number(value: float) -> str:
    """Return a number in about four characters that a person reads at a glance.

    Example:
        format_number(0.53124) == "0.531"; format_number(1234.5) == "1,234"; format_number(0.00002) == "2.00e-05"
    """
    if not math.isfinite(value):
        return "–"
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2e}" if abs(value) < 1e-3 else f"{value:.3g}"


def format_duration(seconds: float) -> str:
    """Return hours, minutes and seconds as `1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def summary_table(summary: Mapping[str, object], *, title: str = "Summary", console: Console | None = None) -> None:
    """Print names and values as a table; numbers are shortened, the rest stands as it is."""
    table = Table(title=title, show_header=False)
    table.add_column("name", style="dim", no_wrap=True)
    table.add_column("value", overflow="fold")
    for name, value in summary.items():
        table.add_row(_plain(name), _plain(format_number(value) if isinstance(value, float) else str(value)))
    (console if console is not None else Console()).print(table)


def _plain(text: str) -> str:
    """Keep square brackets from being read as styles."""
    return text.replace("[", "\\[")
