"""Runs as their folders have them, and which of them differ in their seed alone."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from samepath.rl.evaluation.outcomes import Outcomes, outcome_files, read_outcomes
from samepath.rl.report.report import REPORT_FILE
from samepath.rl.run_folder import recipe_of_run
from samepath.rl.run_state import METRICS_FILE, TEXT_RECIPE_FILE, RunState
from samepath.rl.tracking.jsonl import read_metrics

ACCURACY = "eval/accuracy"
REWARD = "reward/mean"
LAST_SHARE = 0.1
"""Of a run's steps, which a final figure of training is the mean of: one step says little."""
PLACES = ("name", "runs_dir")
"""Settings that say where a run lies, not what it does."""
SEED = "seed"
NO_PART = (
    "tracking.",
    "alerts.",
    "checkpoint.",
    "ray.",
    "learner.restarts",
    "learner.update_timeout_s",
    "reward.num_workers",
    "reward.start_timeout_s",
)
"""Settings that say what is kept and said of a run, and who waits how long: its steps are the same whatever they are, so they tell no runs apart."""
TITLE_CHARS = 60


class NoRunError(ValueError):
    """A folder that is not a run's."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run."""

    folder: Path
    seed: int
    settings: Mapping[str, str]
    """Dotted name → value as JSON, of every setting but those of `PLACES`, the seed, and those of `NO_PART`."""
    state: RunState
    steps: int
    """As the recipe asks for."""
    metrics: Mapping[int, Mapping[str, float]]
    """By the steps that were done; 0 is the reference."""

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.folder.resolve().name

    @property
    def done(self) -> int:
        """Steps that are done."""
        return max((step for step, values in self.metrics.items() if REWARD in values or step == 0), default=0)

    @property
    def finished(self) -> bool:
        """Whether it has done all that its recipe asks for."""
        return self.state.phase == "finished"

    def curve(self, metric: str) -> list[tuple[int, float]]:
        """(step, value) wherever the metric is finite."""
        return [
            (step, values[metric])
            for step, values in self.metrics.items()
            if math.isfinite(values.get(metric, math.nan))
        ]

    @cached_property
    def best(self) -> tuple[int, float] | None:
        """Step and held-out accuracy of the best evaluation, of equal ones the first; None without any."""
        found = self.curve(ACCURACY)
        return max(found, key=lambda point: (point[1], -point[0])) if found else None

    def late(self, metric: str) -> float:
        """Mean over the last tenth of the steps that have the metric, at least one; NaN without any."""
        values = [value for step, value in self.curve(metric) if step]
        last = values[-max(1, math.ceil(LAST_SHARE * len(values))) :]
        return sum(last) / len(last) if last else math.nan

    def outcomes(self, step: int | None) -> Mapping[str, Outcomes] | None:
        """Prompt by prompt after `step` steps, or of the last evaluation; None where they were not kept. Raises OutcomesError."""
        files = outcome_files(self.folder)
        if step is None and files:
            step = max(files)
        return read_outcomes(files[step]) if step in files else None


def read_run(folder: Path) -> Run:
    """A run as its folder has it, finished or not. Raises NoRunError, RecipeError, RunStateError."""
    if (folder / TEXT_RECIPE_FILE).is_file():
        raise NoRunError(
            f"{folder} is a run on text, and samepath compare takes runs with rewards. Compare its {REPORT_FILE} and summary.json, or what "
            f"`samepath eval {folder} --suite sparse` says."
        )
    try:
        recipe = recipe_of_run(folder)
    except FileNotFoundError as error:
        # Not `from` it: whoever names the wrong folder has no file that fails, which is another exit status.
        raise NoRunError(f"samepath compare needs folders of runs, such as runs/quickstart; {error}") from None
    path = folder / METRICS_FILE
    return Run(
        folder=folder,
        seed=recipe.seed,
        settings={
            name: value
            for name, value in flattened(recipe.model_dump(mode="json"))
            if name not in (*PLACES, SEED) and not name.startswith(NO_PART)
        },
        state=RunState.load(folder),
        steps=recipe.rl.steps,
        metrics=read_metrics(path) if path.is_file() else {},
    )


def flattened(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and values as JSON; lists of plain values stay whole."""
    children: list[tuple[str, Any]] = []
    if isinstance(value, Mapping):
        children = list(value.items())
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        children = [(str(index), item) for index, item in enumerate(value)]
    if not children:
        yield name, json.dumps(value, ensure_ascii=False)
    for key, child in children:
        yield from flattened(child, f"{name}.{key}" if name else str(key))


@dataclass(frozen=True, kw_only=True)
class RunGroup:
    """Runs with equal settings, which differ in their seed alone."""

    title: str
    """What tells it from the other groups."""
    runs: Sequence[Run]


def grouped(runs: Sequence[Run]) -> list[RunGroup]:
    """The runs by their settings, in the order in which they are given."""
    by_settings: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        by_settings.setdefault(tuple(sorted(run.settings.items())), []).append(run)
    groups = [RunGroup(title=_joint_name(members), runs=members) for members in by_settings.values()]
    keys = differing(groups)
    titles = [", ".join(f"{key}={_plain(group.runs[0].settings.get(key))}" for key in keys) for group in groups]
    short = bool(keys) and max(map(len, titles)) <= TITLE_CHARS
    return (
        [RunGroup(title=title, runs=group.runs) for title, group in zip(titles, groups, strict=True)]
        if short
        else groups
    )


def _joint_name(runs: Sequence[Run]) -> str:
    """What the names of runs have in common, without the word before their seeds; the first one's where that is nothing."""
    if len(runs) == 1:
        return runs[0].name
    letters = zip(*(run.name for run in runs), strict=False)
    joint = "".join(one[0] for one in takewhile(lambda one: len(set(one)) == 1, letters))
    return re.sub(r"[-_.]?(seed|s)?[-_.]?$", "", joint) or runs[0].name


def differing(groups: Sequence[RunGroup]) -> list[str]:
    """Settings that are not the same in all groups, in the recipe's order."""
    names = dict.fromkeys(name for group in groups for name in group.runs[0].settings)
    return [name for name in names if len({group.runs[0].settings.get(name) for group in groups}) > 1]


def setting_rows(groups: Sequence[RunGroup]) -> list[tuple[str, list[str]]]:
    """(setting, its value in each group) of all that differ; "–" where a group does not have it."""
    return [(name, [_plain(group.runs[0].settings.get(name)) for group in groups]) for name in differing(groups)]


def _plain(value: str | None) -> str:
    """A text without its quotation marks."""
    if value is None:
        return "–"
    read = json.loads(value)
    return read if isinstance(read, str) and read else value
