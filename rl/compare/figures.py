"""Final and best figures of runs, of each and of groups that differ in the seed alone."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from samepath.rl.compare.interval import Interval, interval
from samepath.rl.compare.runs import ACCURACY, REWARD, Run, RunGroup


def _accuracy(place: int) -> Callable[[Run], float]:
    def found(run: Run) -> float:
        points = run.curve(ACCURACY)
        return points[place][1] if points else math.nan

    return found


FIGURES: Mapping[str, Callable[[Run], float]] = {
    "accuracy, first": _accuracy(0),
    "accuracy, last": _accuracy(-1),
    "accuracy, best": lambda run: run.best[1] if run.best else math.nan,
    "step of the best": lambda run: float(run.best[0]) if run.best else math.nan,
    "reward": lambda run: run.late(REWARD),
    "KL to the reference": lambda run: run.late("kl/reference_unbiased"),
    "entropy": lambda run: run.late("policy/entropy"),
    "masked rollouts": lambda run: run.late("policy/masked_sequences"),
    "length, tokens": lambda run: run.late("rollout/length_mean"),
    "truncated": lambda run: run.late("rollout/truncated"),
    "gap at lag 0": lambda run: run.state.gap_at_lag_0 if run.done else math.nan,
    "seconds a step": lambda run: run.late("time/step_s"),
}
"""What is told of a run. Those of training are means over its last tenth of steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFigures:
    """The figures of a group.

    Example:
        GroupFigures(title="optimizer.lr=0.001", values={"accuracy, last": Interval(mean=0.6, low=0.5, high=0.7, count=3)})
    """

    title: str
    values: Mapping[str, Interval | None]
    """By the names of `FIGURES`; None where no run of the group has it."""


def figures_of(groups: Sequence[RunGroup]) -> list[GroupFigures]:
    """Mean and 95 % interval over the runs of each group, those without a figure left out."""
    made = []
    for group in groups:
        values = {name: [figure(run) for run in group.runs] for name, figure in FIGURES.items()}
        finite = {name: [value for value in found if math.isfinite(value)] for name, found in values.items()}
        made.append(
            GroupFigures(
                title=group.title, values={name: interval(found) if found else None for name, found in finite.items()}
            )
        )
    return made


def figures_of_run(run: Run) -> dict[str, float]:
    """All figures of one run, NaN where it has none."""
    return {name: figure(run) for name, figure in FIGURES.items()}
