"""Two groups of runs on the same held-out prompts: the difference in accuracy, prompt by prompt, and how sure it is."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from samepath.rl.compare.interval import Interval, interval, sign_test, welch
from samepath.rl.compare.runs import Run, RunGroup
from samepath.rl.evaluation.outcomes import Outcomes

When = Literal["final", "best"]
WHENS: tuple[When, ...] = ("final", "best")
"""The last evaluation of each run, and its best, which is the higher for having been chosen on the same prompts."""
Prompt = tuple[str, int]
"""Digest, and how many before it in the set are equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """A group beside the first one, on one set of prompts.

    Example:
        Paired(set_name="", when="final", first="lr=1e-4", other="lr=1e-3", prompts=256, accuracies=(0.5, 0.6), over_prompts=Interval(…),
               better=40, worse=15, sign_p=0.001, over_seeds=Interval(…), missing=())
    """

    set_name: str
    when: When
    first: str
    """Title of the group that is compared with."""
    other: str
    prompts: int
    """That all runs of both groups answered; 0: nothing can be said, see `missing`."""
    accuracies: tuple[float, float] = (math.nan, math.nan)
    """Mean share right over prompts and runs, of the first group and of the other."""
    over_prompts: Interval | None = None
    """Difference other − first, of these runs, if others of such prompts were drawn."""
    better: int = 0
    """Prompts that the other group answers better on average."""
    worse: int = 0
    sign_p: float = math.nan
    """Probability of so uneven a split by chance."""
    over_seeds: Interval | None = None
    """Difference if other seeds were drawn, on these prompts: paired by seed where both groups have the same ones; None with one run a side."""
    missing: tuple[str, ...] = ()
    """Runs without outcomes of single prompts: of an older version, or not evaluated."""


def paired_with_first(groups: Sequence[RunGroup]) -> list[Paired]:
    """Every group after the first beside it, on every set that both have, at the end and at the best. Raises OutcomesError."""
    made = []
    for other in groups[1:]:
        for when in WHENS:
            made += _beside(groups[0], other, when)
    return made


def _beside(first: RunGroup, other: RunGroup, when: When) -> list[Paired]:
    sides = [[_outcomes(run, when) for run in group.runs] for group in (first, other)]
    missing = tuple(
        run.name
        for group, side in zip((first, other), sides, strict=True)
        for run, found in zip(group.runs, side, strict=True)
        if found is None
    )
    known = [found for side in sides for found in side if found is not None]
    if missing or not known:
        return [Paired(set_name="", when=when, first=first.title, other=other.title, prompts=0, missing=missing)]
    names = [name for name in known[0] if all(name in one for one in known)]
    return [
        _on_set(name, when, (first, other), [[_shares(found[name]) for found in side if found] for side in sides])
        for name in names
    ]


def _outcomes(run: Run, when: When) -> Mapping[str, Outcomes] | None:
    if when == "final":
        return run.outcomes(None)
    return None if run.best is None else run.outcomes(run.best[0])


def _on_set(
    name: str, when: When, groups: tuple[RunGroup, RunGroup], sides: Sequence[Sequence[Mapping[Prompt, float]]]
) -> Paired:
    first, other = groups
    common = [prompt for prompt in sides[0][0] if all(prompt in run for side in sides for run in side)]
    if not common:
        return Paired(set_name=name, when=when, first=first.title, other=other.title, prompts=0)
    means = [[_mean([run[prompt] for run in side]) for prompt in common] for side in sides]
    differences = [after - before for before, after in zip(*means, strict=True)]
    by_run = [[_mean([run[prompt] for prompt in common]) for run in side] for side in sides]
    better, worse = sum(one > 0 for one in differences), sum(one < 0 for one in differences)
    return Paired(
        set_name=name,
        when=when,
        first=first.title,
        other=other.title,
        prompts=len(common),
        accuracies=(_mean(means[0]), _mean(means[1])),
        over_prompts=interval(differences),
        better=better,
        worse=worse,
        sign_p=sign_test(better, worse),
        over_seeds=_over_seeds(groups, by_run),
    )


def _over_seeds(groups: tuple[RunGroup, RunGroup], accuracies: Sequence[Sequence[float]]) -> Interval | None:
    first, other = (
        dict(zip((run.seed for run in group.runs), of_runs, strict=True))
        for group, of_runs in zip(groups, accuracies, strict=True)
    )
    if min(map(len, accuracies)) < 2:
        return None
    if first.keys() == other.keys() and len(first) == len(accuracies[0]) == len(accuracies[1]):
        return interval([other[seed] - first[seed] for seed in first])
    return welch(*accuracies)


def _shares(outcomes: Outcomes) -> dict[Prompt, float]:
    """Prompt → share of its scored responses that are right; prompts without a scored response are left out."""
    seen: dict[str, int] = {}
    shares = {}
    for prompt, scored, right in zip(outcomes.prompts, outcomes.scored, outcomes.right, strict=True):
        seen[prompt] = seen.get(prompt, -1) + 1
        if scored:
            shares[prompt, seen[prompt]] = right / scored
    return shares


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
