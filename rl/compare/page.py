"""`compare.html`: the comparison with its curves, in one file that needs no server."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from samepath.rl.compare.comparison import Comparison
from samepath.rl.compare.runs import RunGroup
from samepath.rl.compare.tables import PAIRED_HEAD, figure_rows, missing_lines, paired_rows, run_rows
from samepath.rl.report.drawing import Line, line_svg
from samepath.rl.report.panel import DrawnPanel, drawn_panel
from samepath.rl.report.template import write_page


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A metric whose curves are compared."""

    title: str
    metric: str
    unit: str
    logarithmic: bool = False


CURVES = (
    Curve(title="Held-out accuracy", metric="eval/accuracy", unit="share right"),
    Curve(title="Reward", metric="reward/mean", unit="mean reward"),
    Curve(title="KL to the reference", metric="kl/reference_unbiased", unit="nats per token"),
    Curve(title="KL sampler → learner", metric="kl/sampler_k3", unit="nats per token", logarithmic=True),
    Curve(title="… of it drift", metric="kl/sampler_k3_drift", unit="nats per token", logarithmic=True),
    Curve(title="Entropy", metric="policy/entropy", unit="nats per token"),
    Curve(title="Effective sample size", metric="policy/ess", unit="share"),
    Curve(title="Masked rollouts", metric="policy/masked_sequences", unit="share"),
    Curve(title="Off-policy statistic, 99th percentile", metric="policy/off_policy_p99", unit="nats per token"),
    Curve(title="Route flips", metric="routing/flip_rate", unit="share"),
    Curve(title="Groups without spread", metric="reward/groups_no_spread", unit="share"),
    Curve(title="Response length", metric="rollout/length_mean", unit="tokens"),
    Curve(title="Truncated responses", metric="rollout/truncated", unit="share"),
    Curve(title="Gradient norm", metric="learner/grad_norm", unit="norm", logarithmic=True),
    Curve(title="Weight lag", metric="rollout/weight_lag_mean", unit="versions"),
    Curve(title="Seconds a step", metric="time/step_s", unit="seconds"),
)


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write the page, whole or not at all. Raises OSError."""
    groups = comparison.groups
    values = {
        "title": "Comparison of runs",
        "runs": run_rows(comparison),
        "groups": groups,
        "figures": [{"name": name, "cells": cells} for name, cells in figure_rows(comparison)],
        "settings": [{"name": name, "cells": cells} for name, cells in comparison.settings],
        "paired_head": PAIRED_HEAD,
        "paired": paired_rows(comparison),
        "missing": missing_lines(comparison),
        "panels": panels(groups),
    }
    write_page(path, "compare.html", values)


def panels(groups: Sequence[RunGroup]) -> list[DrawnPanel]:
    """A picture for each metric of `CURVES` that a run has, and for the accuracy of each named set."""
    named = {
        metric
        for group in groups
        for run in group.runs
        for values in run.metrics.values()
        for metric in values
        if metric.startswith("evaluation/") and metric.endswith("/accuracy")
    }
    sets = [
        Curve(title=f"Accuracy on {metric.split('/')[1]}", metric=metric, unit="share right")
        for metric in sorted(named)
    ]
    made = []
    for curve in (*CURVES[:1], *sets, *CURVES[1:]):
        lines = [line for group in groups if (line := group_line(group, curve.metric)) is not None]
        if lines:
            svg = line_svg(lines, unit=curve.unit, logarithmic=curve.logarithmic)
            made.append(drawn_panel(curve.title, svg, [curve.metric]))
    return made


def group_line(group: RunGroup, metric: str) -> Line | None:
    """Mean over the runs that have the metric at a step, and from their lowest to their highest where there are two; None without any value."""
    by_step: dict[int, list[float]] = {}
    for run in group.runs:
        for step, value in run.curve(metric):
            by_step.setdefault(step, []).append(value)
    if not by_step:
        return None
    ordered: Mapping[int, list[float]] = dict(sorted(by_step.items()))
    several = any(len(values) > 1 for values in ordered.values())
    label = group.title if len(group.runs) == 1 else f"{group.title} ({len(group.runs)} seeds)"
    return Line(
        label=label,
        points=[(step, math.fsum(values) / len(values)) for step, values in ordered.items()],
        band=[(step, min(values), max(values)) for step, values in ordered.items()] if several else (),
    )
