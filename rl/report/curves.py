"""A run in pictures: training curves as PNG, and every rollout in one HTML file that needs no server."""

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from samepath.model.durable_file import replace_file
from samepath.rl.report.page import PAGE
from samepath.rl.tracking.jsonl import plain, read_metrics, read_rollouts
from samepath.rl.tracking.tracked_rollout import TrackedRollout

MAX_TEXT_CHARS = 6000
"""Texts in the page are cut to this length; the JSON lines keep all of them."""
MAX_TOKENS_SHOWN = 1000
"""Answers with more tokens are shown without token colours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One picture of the training curves."""

    title: str
    """What it shows."""
    unit: str
    """Label of the vertical axis."""
    names: tuple[str, ...]
    """Metric names; all that the run has are drawn."""
    logarithmic: bool = False
    """True where the values span orders of magnitude."""


PANELS = (
    Panel(title="Reward", unit="mean reward", names=("reward/mean",)),
    Panel(title="Held-out accuracy", unit="share right", names=("eval/accuracy",)),
    Panel(title="KL to the reference", unit="nats a token", names=("kl/reference_unbiased",)),
    Panel(
        title="KL sampler → learner",
        unit="nats a token",
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
        out_png.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out_png, dpi=150)
    return [name for _, series in drawable for name in series]


def _series(by_step: Mapping[int, Mapping[str, float]], panel: Panel) -> dict[str, list[tuple[int, float]]]:
    series = {}
    for name in panel.names:
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


def write_rollout_report(rollouts_dir: Path, out_html: Path, *, max_steps: int = 100, max_rollouts: int = 64) -> int:
    """Write the page for a run's `rollouts/` folder; returns how many rollouts it shows.

    Of longer runs it shows `max_steps` steps, evenly spread with the first and last, and of each step the whole groups that
    fit into `max_rollouts`; the page says what it leaves out.

    Raises:
        FileNotFoundError: the folder holds no `step-*.jsonl`.
    """
    paths = sorted(rollouts_dir.glob("step-*.jsonl"), key=_step_of)
    if not paths:
        raise FileNotFoundError(
            f"a report needs files step-*.jsonl; {rollouts_dir} has none. Give a run's rollouts folder."
        )
    shown_paths = _spread_evenly(paths, max_steps)
    steps = []
    num_shown = num_all = 0
    for path in shown_paths:
        rollouts = read_rollouts(path)
        shown = _whole_groups(rollouts, max_rollouts)
        num_all += len(rollouts)
        num_shown += len(shown)
        steps.append({"step": _step_of(path), "rollouts": [_for_page(rollout) for rollout in shown]})
    summary = f"{len(shown_paths)} of {len(paths)} steps and {num_shown} of their {num_all} rollouts are shown."
    title = f"Rollouts of {rollouts_dir.resolve().parent.name}"
    page = PAGE.replace("@TITLE@", html.escape(title)).replace(
        "@DATA@", embedded_json({"summary": summary, "steps": steps})
    )
    replace_file(out_html, page)
    return num_shown


def embedded_json(value: Any) -> str:
    """Return JSON that can stand inside a script element: no text in it can end the element or begin a comment."""
    text = json.dumps(plain(value), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _for_page(rollout: TrackedRollout) -> dict[str, Any]:
    shortened = replace(
        rollout, prompt_text=rollout.prompt_text[:MAX_TEXT_CHARS], response_text=rollout.response_text[:MAX_TEXT_CHARS]
    )
    if len(rollout.tokens) > MAX_TOKENS_SHOWN:
        shortened = replace(shortened, tokens=(), sampler_logprobs=(), kl_tokens=())
    values: dict[str, Any] = plain(_rounded(asdict(shortened)))
    return values


def _rounded(value: Any) -> Any:
    """Keep four digits of each number: the page shows three, and token values make up most of its size."""
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_rounded(item) for item in value]
    return value


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def _spread_evenly(paths: Sequence[Path], limit: int) -> list[Path]:
    if len(paths) <= limit:
        return list(paths)
    if limit == 1:
        return [paths[-1]]
    return [paths[round(index * (len(paths) - 1) / (limit - 1))] for index in range(limit)]


def _whole_groups(rollouts: Sequence[TrackedRollout], limit: int) -> list[TrackedRollout]:
    """Return the rollouts of the first groups that fit, at least one group."""
    groups: dict[str, list[TrackedRollout]] = {}
    for rollout in rollouts:
        groups.setdefault(rollout.group_id, []).append(rollout)
    shown: list[TrackedRollout] = []
    for members in groups.values():
        if shown and len(shown) + len(members) > limit:
            break
        shown += members
    return shown
