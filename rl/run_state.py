"""What must survive an interruption beside the learner's checkpoints, in the run's folder as `run.json`."""

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from samepath.model.json_file import write_json

STATE_FILE = "run.json"
RECIPE_FILE = "recipe.yaml"
"""The resolved recipe of a run, in its folder."""
TEXT_RECIPE_FILE = "text-recipe.yaml"
"""The same of a run on text: what is made for runs with rewards does not take it for one."""
METRICS_FILE = "metrics.jsonl"
MARKS_BEYOND = 2
"""Marks kept beside those of `checkpoint.keep` checkpoints: of one that is being written, and of one that could not be removed."""

Phase = Literal["cold start", "evaluation", "training", "finished"]
"""What a run is doing: making its reference, measuring it, training, or nothing any more."""


class RunStateError(ValueError):
    """`run.json` does not say how a run stands."""


LATER_FIELDS = {"best", "alerts"}
"""Fields of `run.json` that runs of older versions did not write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The best held-out accuracy that a run has a checkpoint of.

    Example:
        Best(step=40, accuracy=0.71)
    """

    step: int
    """0 is the reference."""
    accuracy: float
    """`eval/accuracy`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """How the totals stood when the checkpoint of a step was made: going on from there counts nothing twice.

    Example:
        Mark(metrics_bytes=5120, gap_at_lag_0=0.0, counters={"reward/status.timeout": 2.0}, best=Best(step=0, accuracy=0.2))
    """

    metrics_bytes: int
    """Size of `metrics.jsonl`."""
    gap_at_lag_0: float
    """See RunState."""
    counters: dict[str, float]
    """See RunState."""
    best: Best | None = None
    """See RunState; this checkpoint may be it."""


@dataclass(slots=True, kw_only=True)
class RunState:
    """How a run stands."""

    run_id: str = ""
    """MLflow run id."""
    recipe_dir: str = "."
    """Folder that the recipe's paths are relative to."""
    phase: Phase = "cold start"
    """What is going on, or was when the run ended."""
    accuracy_before: float = math.nan
    """Held-out accuracy after the cold start; NaN before it is known, and if no response had a usable reward."""
    sets_before: dict[str, float] = field(default_factory=dict)
    """The same of each named evaluation set."""
    gap_at_lag_0: float = 0.0
    """Largest sampler/learner gap at equal weights so far, nats."""
    seconds: float = 0.0
    """Wall time spent, interruptions left out; steps that were done twice count twice."""
    peak_bytes: float = 0.0
    """Largest sum of the processes' peak memory."""
    gpu_peak_bytes: float = 0.0
    """Largest memory that tensors of one process held on its GPU, 0 on the CPU."""
    counters: dict[str, float] = field(default_factory=dict)
    """Totals of failures over the run."""
    best: Best | None = None
    """The best evaluation whose checkpoint is whole; None before the first, and without `checkpoint.keep_best`."""
    alerts: dict[str, int] = field(default_factory=dict)
    """Alerts that hold now, and the step at which each began."""
    marks: dict[int, Mark] = field(default_factory=dict)
    """Step of a checkpoint that is whole → how the totals stood there; 0 is the reference."""
    begun: dict[int, Mark] = field(default_factory=dict)
    """The same of one that is being written: it may be whole by now, or never be."""

    def mark(self, run_dir: Path, step: int, keep: int) -> None:
        """Remember how everything stands at `step`, whose checkpoint is whole; `keep` checkpoints are kept."""
        self.begin(run_dir, step, self.best)
        self.whole(step, keep)

    def begin(self, run_dir: Path, step: int, best: Best | None) -> None:
        """Remember how everything stands at `step`, whose checkpoint is about to be written; `best` is the best so far, this one among them."""
        self.begun[step] = Mark(
            metrics_bytes=metrics_bytes(run_dir),
            gap_at_lag_0=self.gap_at_lag_0,
            counters=dict(self.counters),
            best=best,
        )

    def whole(self, step: int, keep: int) -> None:
        """Count the checkpoint of `step` among those that are whole."""
        self.marks[step] = self.begun.pop(step)
        for old in sorted(self.marks)[1 : -(keep + MARKS_BEYOND)]:
            if self.best is None or old != self.best.step:
                del self.marks[old]

    def rewind(self, step: int) -> None:
        """Set the totals to what they were at `step`. Raises RunStateError if that is not known."""
        known = self.marks | self.begun
        if step not in known:
            raise RunStateError(
                f"{STATE_FILE} must say how the run stood at step {step}; it does for {sorted(known)}. Resume from one of these "
                "with --step."
            )
        mark = known[step]
        self.gap_at_lag_0, self.counters, self.best = mark.gap_at_lag_0, dict(mark.counters), mark.best
        self.marks, self.begun = {one: value for one, value in known.items() if one <= step}, {}

    def save(self, run_dir: Path) -> None:
        """Write `run.json`, whole or not at all."""
        write_json(run_dir / STATE_FILE, asdict(self))

    @classmethod
    def load(cls, run_dir: Path) -> "RunState":
        """Read `run.json`. Raises RunStateError."""
        path = run_dir / STATE_FILE
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise RunStateError(
                f"{run_dir} has no {STATE_FILE}: no run was started there. Start one with `samepath run`."
            ) from error
        except ValueError as error:
            raise RunStateError(
                f"{path} must be JSON; it is damaged ({error}). Start the run again under another name."
            ) from error
        names = {entry.name for entry in fields(cls)}
        if not isinstance(data, dict) or not names - LATER_FIELDS <= set(data) <= names:
            raise RunStateError(
                f"{path} was not written by this version of samepath: resume it with the version in {run_dir / 'tracking.json'}."
            )
        if data["accuracy_before"] is None:
            data["accuracy_before"] = math.nan
        data["sets_before"] = {
            name: math.nan if value is None else value for name, value in data["sets_before"].items()
        }
        for name in ("marks", "begun"):
            data[name] = {
                int(step): Mark(**{**mark, "best": _best(mark.get("best"))}) for step, mark in data[name].items()
            }
        data["best"] = _best(data.get("best"))
        return cls(**data)


def _best(plain: dict[str, Any] | None) -> Best | None:
    return None if plain is None else Best(**plain)


def metrics_bytes(run_dir: Path) -> int:
    """Size of `metrics.jsonl`, 0 if there is none."""
    path = run_dir / METRICS_FILE
    return path.stat().st_size if path.is_file() else 0
