"""A run in a picture: its training curves as PNG."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from samepath.model.durable_file import replacing
from samepath.rl.tracking.jsonl import read_metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One picture of the training curves."""

    title: str
    """What it shows."""
    unit: str
    """Label of the vertical axis."""
    names: tuple[str, ...]
    """Metric names, `*` standing for anything; all that the run has are drawn."""
    logarithmic: bool = False
    """True where the values span orders of magnitude."""


PANELS = (
    Panel(title="Reward", unit="mean reward", names=("reward/mean",)),
    Panel(title="Held-out accuracy", unit="share right", names=("eval/accuracy", "evaluation/*/accuracy")),
    Panel(title="KL to the reference", unit="nats per token", names=("kl/reference_unbiased",)),
    Panel(
        title="KL sampler → learner",
        unit="nats per token",
        names=("kl/sampler_k3", "kl/sampler_k3_numerics"),
        logarithmic=True,
    ),
    Panel(title="Response length", unit="tokens", names=("rollout/length_mean",)),
)


class NothingToDrawError(ValueError):
    """A run has no finite value of any metric that is drawn."""


def plot_training(metrics_jsonl: Path, out_png: Path, panels: Sequence[Panel] = PANELS) -> list[str]:
    """Draw the training curves of a run; returns the names of the metrics that were drawn.

    Panels for which the run has no finite value are left out.

    Raises:
        FileNotFoundError: there is no metrics file.
        NothingToDrawError: the run has none of the metrics.
    """
    by_step = read_metrics(metrics_jsonl)
    drawable = [(panel, _series(by_step, panel)) for panel in panels]
    drawable = [(panel, series) for panel, series in drawable if series]
    if not drawable:
        wanted = ", ".join(name for panel in panels for name in panel.names)
        raise NothingToDrawError(
            f"{metrics_jsonl} must hold a finite value of one of {wanted}; it has none. Let the run do a step."
        )
    columns = min(3, len(drawable))
    rows = math.ceil(len(drawable) / columns)
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(4.2 * columns, 2.9 * rows), layout="constrained")
        FigureCanvasAgg(figure)
        for index, (panel, series) in enumerate(drawable):
            _draw_panel(figure.add_subplot(rows, columns, index + 1), panel, series)
        with replacing(out_png) as file:
            figure.savefig(file, dpi=150, format="png")
    return [name for _, series in drawable for name in series]


def _series(by_step: Mapping[int, Mapping[str, float]], panel: Panel) -> dict[str, list[tuple[int, float]]]:
    series = {}
    present = dict.fromkeys(name for values in by_step.values() for name in values)
    names = dict.fromkeys(name for pattern in panel.names for name in present if fnmatchcase(name, pattern))
    for name in names:
        points = [(step, values[name]) for step, values in by_step.items() if math.isfinite(values.get(name, math.nan))]
        if points:
            series[name] = points
    return series


def _draw_panel(axes: Axes, panel: Panel, series: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    for name, points in series.items():
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, marker="o" if len(points) <= 40 else "", markersize=3, linewidth=1.4, label=name)
    axes.set_title(panel.title)
    axes.set_xlabel("training step")
    axes.set_ylabel(panel.unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=True, alpha=0.3, linewidth=0.6)
    sizes = [abs(value) for points in series.values() for _, value in points if value != 0]
    if panel.logarithmic and sizes:
        # Linear around zero: an exact engine has KL 0, which a logarithmic axis cannot show.
        axes.set_yscale("symlog", linthresh=min(sizes))
    if len(series) > 1:
        axes.legend(fontsize=7, framealpha=0.85, edgecolor="none")
