"""Measures, table and picture of the ablation study.

Fixed before its first run, and computed from the held-out accuracy (greedy, every two steps):

- **held**: the last accuracy is at least 95 % of the run's best one. Reported as the share of an arm's runs.
- **area**: mean accuracy over the evaluations after the one before training, trapezoids over steps. Reported as the mean over seeds with
  Student's 95 % interval, and paired with the first arm seed by seed.

A run that stopped before its last step counts as not held, with accuracy 0 from there on.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from samepath.rl.compare.interval import interval
from samepath.rl.tracking.jsonl import read_metrics

HELD_SHARE = 0.95
ACCURACY = "eval/accuracy"
COLUMNS = (
    ("gap at equal weights, nats", "policy/gap_at_lag_0", "{:.2f}"),
    ("other live routes at equal weights", "routing/flip_rate_at_lag_0", "{:.3f}"),
    ("masked sequences", "policy/masked_sequences", "{:.3f}"),
    ("statistic, nats, p99", "policy/off_policy_p99", "{:.3f}"),
    ("KL to the reference, nats", "kl/reference_full", "{:.3f}"),
    ("entropy, nats", "policy/entropy", "{:.3f}"),
    ("tokens an answer", "rollout/length_mean", "{:.1f}"),
)
"""Head of a column, metric, format: means over all steps of all seeds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One run's measures."""

    before: float
    """Accuracy before training."""
    best: float
    last: float
    held: bool
    area: float
    """In 0 … 1."""


def outcome(accuracy: dict[int, float], last_step: int) -> Outcome:
    """Measures of a run whose accuracy is given by step, 0 first; `last_step` is the arm's."""
    steps = sorted(accuracy)
    if len(steps) < 2 or steps[0] != 0:
        raise ValueError(f"a run must be evaluated before training and after; got accuracies of steps {steps}")
    after = steps[1:]
    values = [accuracy[step] for step in after]
    best = max(values)
    finished = after[-1] >= last_step
    if not finished:
        after, values = [*after, after[-1] + 1, last_step], [*values, 0.0, 0.0]
    span = after[-1] - after[0]
    area = float(np.trapezoid(values, after)) / span if span else values[0]
    return Outcome(
        before=accuracy[steps[0]],
        best=best,
        last=values[-1],
        held=finished and values[-1] >= HELD_SHARE * best,
        area=area,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRuns:
    """An arm's runs, one a seed."""

    name: str
    """As in the table."""
    folders: tuple[Path, ...]
    """Run folders, in the same order of seeds for all arms."""

    def metric(self, name: str) -> list[dict[int, float]]:
        """A metric by step, of each seed."""
        return [
            {step: values[name] for step, values in read_metrics(folder / "metrics.jsonl").items() if name in values}
            for folder in self.folders
        ]

    def outcomes(self, last_step: int) -> list[Outcome]:
        """Of each seed."""
        return [outcome(accuracy, last_step) for accuracy in self.metric(ACCURACY)]


def table(runs: Sequence[ArmRuns]) -> str:
    """One row an arm; areas are compared with the first arm's, seed by seed."""
    last_step = max(max(accuracy) for arm in runs for accuracy in arm.metric(ACCURACY))
    first = runs[0].outcomes(last_step)
    heads = ["arm", "held", "area (95 %)", f"area − that of “{runs[0].name}” (95 %)", "best → last accuracy, by seed"]
    lines = [heads + [head for head, _, _ in COLUMNS], ["---"] * (len(heads) + len(COLUMNS))]
    for arm in runs:
        found = arm.outcomes(last_step)
        lines.append(
            [
                arm.name,
                f"{sum(one.held for one in found)} of {len(found)}",
                _with_interval([one.area for one in found], "{:.2f}"),
                _with_interval([one.area - other.area for one, other in zip(found, first, strict=True)], "{:+.2f}"),
                ", ".join(f"{one.best:.2f} → {one.last:.2f}" for one in found),
                *(_mean(arm, name, shape) for _, name, shape in COLUMNS),
            ]
        )
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _with_interval(values: Sequence[float], shape: str) -> str:
    """Mean and Student's interval; of one value itself."""
    found = interval(values)
    words = shape.format(found.mean)
    return words if math.isnan(found.low) else f"{words} ({shape.format(found.low)} … {shape.format(found.high)})"


def _mean(arm: ArmRuns, name: str, shape: str) -> str:
    values = [value for curve in arm.metric(name) for value in curve.values()]
    return shape.format(np.mean(values)) if values else "–"


def figures(runs: Sequence[ArmRuns]) -> str:
    """Every run's accuracy by step, as JSON: what the measures are computed from."""
    curves = {
        arm.name: [{str(step): value for step, value in sorted(one.items())} for one in arm.metric(ACCURACY)]
        for arm in runs
    }
    return json.dumps(curves, indent=1) + "\n"


def draw(runs: Sequence[ArmRuns], out_png: Path) -> None:
    """A panel an arm: each seed's accuracy, and in grey the mean of the first arm."""
    columns = min(4, len(runs))
    rows = math.ceil(len(runs) / columns)
    reference = _mean_curve(runs[0])
    with matplotlib.rc_context({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(2.9 * columns, 2.0 * rows + 0.3), layout="constrained")
        FigureCanvasAgg(figure)
        for place, arm in enumerate(runs):
            axes = figure.add_subplot(rows, columns, place + 1)
            axes.plot(*reference, color="0.6", linewidth=3, alpha=0.5)
            for seed, curve in enumerate(arm.metric(ACCURACY)):
                axes.plot(sorted(curve), [curve[step] for step in sorted(curve)], color=f"C{seed}", linewidth=1)
            axes.set(title=arm.name, ylim=(0, 1))
        figure.supxlabel(f"step (grey: mean of “{runs[0].name}”)")
        figure.supylabel("held-out accuracy")
        figure.savefig(out_png, dpi=110)


def _mean_curve(arm: ArmRuns) -> tuple[list[int], list[float]]:
    curves = arm.metric(ACCURACY)
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    return steps, [float(np.mean([curve[step] for curve in curves])) for step in steps]


def write_report(runs: Sequence[ArmRuns], folder: Path, study: str) -> str:
    """Write `ablation_STUDY.md`, `.json` and `.png`; returns the table."""
    folder.mkdir(parents=True, exist_ok=True)
    text = table(runs)
    (folder / f"ablation_{study}.md").write_text(text + "\n")
    (folder / f"ablation_{study}.json").write_text(figures(runs))
    draw(runs, folder / f"ablation_{study}.png")
    return text
