"""Table and picture of the off-policy study."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from samepath.rl.tracking.jsonl import read_metrics

LATE = 15
"""Steps at the end over which figures of a run are averaged."""
COLUMNS = (
    ("age of a token, versions", "rollout/weight_lag_mean", "{:.2f}"),
    ("statistic, nats, p90", "policy/off_policy_p90", "{:.4f}"),
    ("p99", "policy/off_policy_p99", "{:.4f}"),
    ("masked sequences", "policy/masked_sequences", "{:.4f}"),
    ("effective sample size", "policy/ess", "{:.3f}"),
    ("tokens an answer", "rollout/length_mean", "{:.1f}"),
)
"""Head of a column, metric, format: means over all steps of all seeds."""
PANELS = (
    ("mean reward", "reward/mean"),
    ("held-out accuracy", "eval/accuracy"),
    ("off-policy statistic, nats, p99", "policy/off_policy_p99"),
    ("effective sample size", "policy/ess"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRuns:
    """An arm's finished runs, one a seed."""

    name: str
    """As in the table."""
    lag: int
    """Largest age of a token."""
    folders: tuple[Path, ...]
    """Run folders."""

    def curves(self, metric: str) -> list[dict[int, float]]:
        """A metric by step, of each seed."""
        return [
            {
                step: values[metric]
                for step, values in read_metrics(folder / "metrics.jsonl").items()
                if metric in values
            }
            for folder in self.folders
        ]

    def seconds_a_step(self) -> list[float]:
        """Mean seconds from one step's record to the next's, by the clock, of each seed; steps with an evaluation do not count."""
        means = []
        for folder in self.folders:
            entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            steps = [entry for entry in entries if "reward/mean" in entry["metrics"]]
            times = [datetime.fromisoformat(entry["time"]).timestamp() for entry in steps]
            plain = [
                after - before
                for before, after, entry in zip(times, times[1:], steps[1:], strict=False)
                if "eval/accuracy" not in entry["metrics"]
            ]
            means.append(float(np.mean(plain)) if plain else float("nan"))
        return means


def table(runs: Sequence[ArmRuns]) -> str:
    """One row an arm; the speed is that of the first arm over it."""
    heads = [
        "arm",
        "accuracy before → after, by seed",
        f"reward, last {LATE} steps",
        "seconds a step, by seed",
        "speed",
    ]
    lines = [heads + [head for head, _, _ in COLUMNS], ["---"] * (len(heads) + len(COLUMNS))]
    for arm in runs:
        accuracy = [list(curve.values()) for curve in arm.curves("eval/accuracy")]
        rewards = [float(np.mean(list(curve.values())[-LATE:])) for curve in arm.curves("reward/mean")]
        seconds, first = arm.seconds_a_step(), runs[0].seconds_a_step()
        lines.append(
            [
                arm.name,
                ", ".join(f"{values[0]:.2f} → {values[-1]:.2f}" for values in accuracy),
                f"{np.mean(rewards):.3f} ({min(rewards):.2f}–{max(rewards):.2f})",
                ", ".join(f"{value:.2f}" for value in seconds),
                f"{sum(first) / sum(seconds):.2f}×",
                *(
                    shape.format(np.mean([value for curve in arm.curves(metric) for value in curve.values()]))
                    for _, metric, shape in COLUMNS
                ),
            ]
        )
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def draw(runs: Sequence[ArmRuns], out_png: Path) -> None:
    """Curves of every arm: the mean of its seeds, and the band between the least and the largest."""
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11, 6.5), layout="constrained")
        FigureCanvasAgg(figure)
        for place, (title, metric) in enumerate(PANELS):
            _panel(figure.add_subplot(2, 2, place + 1), runs, metric, title)
        figure.savefig(out_png, dpi=120)


def _panel(axes: Axes, runs: Sequence[ArmRuns], metric: str, title: str) -> None:
    colours = {lag: f"C{place}" for place, lag in enumerate(sorted({arm.lag for arm in runs}))}
    for arm in runs:
        curves = arm.curves(metric)
        steps = sorted(set.intersection(*(set(curve) for curve in curves)))
        values = np.array([[curve[step] for step in steps] for curve in curves])
        line = "--" if arm.name.endswith("continue") else "-"
        axes.plot(steps, _smooth(values.mean(0)), line, color=colours[arm.lag], label=arm.name, linewidth=1.3)
        axes.fill_between(
            steps, _smooth(values.min(0)), _smooth(values.max(0)), color=colours[arm.lag], alpha=0.07, linewidth=0
        )
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.legend(fontsize=7)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Means of five neighbours; few values, as of evaluations, stay as they are."""
    return values if len(values) < 10 else np.convolve(np.pad(values, 2, mode="edge"), np.ones(5) / 5, mode="valid")


def write_report(runs: Sequence[ArmRuns], folder: Path) -> str:
    """Write `off_policy.png` and `off_policy_table.md`; returns the table."""
    folder.mkdir(parents=True, exist_ok=True)
    text = table(runs)
    (folder / "off_policy_table.md").write_text(text + "\n")
    draw(runs, folder / "off_policy.png")
    return text
