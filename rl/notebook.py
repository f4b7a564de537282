"""Recipes and runs from Python: build a recipe, run it, and look at the run as arrays and tables.

from samepath.rl.notebook import Run, recipe_from, train

run = train(recipe_from("recipes/quickstart.yaml", {"rl.steps": 5, "runtime": "inline"}))
run.metrics["reward/mean"]
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samepath.rl.preview import sample_source
from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.report.summary import SUMMARY_FILE
from samepath.rl.run import resume_run, start_run
from samepath.rl.run_folder import ROLLOUTS, recipe_of_run
from samepath.rl.run_state import METRICS_FILE, RECIPE_FILE, RunStateError
from samepath.rl.tracking.jsonl import read_metrics, read_rollouts
from samepath.rl.tracking.tracked_rollout import TOKEN_FIELDS, TrackedRollout
from samepath.rollout.types import Rollout

OF_TOKENS = ("messages", "tool_calls", "segments", "segment_tokens", *TOKEN_FIELDS)
"""Fields of a rollout that are no single value: they are not columns of a table."""


def recipe_from(source: str | Path | Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe from a YAML file, or from plain data of the same form, with changes by dotted key (`{"rl.steps": 5}`).

    Raises RecipeError for a file, ValueError (pydantic's) for data: both name every key that is wrong.
    """
    overrides = [f"{key}={json.dumps(value)}" for key, value in (changes or {}).items()]
    if not isinstance(source, Mapping):
        return load_recipe(source, overrides, Recipe)
    if overrides:
        raise ValueError("plain data takes no changes beside it: write them into the data")
    return Recipe.model_validate(source)


def train(recipe: Recipe, folder: str | Path = ".") -> "Run":
    """Run a recipe from its beginning, as `samepath run` does; `folder` is what its relative paths start from.

    Ctrl-C, or the stop button of a notebook, raises KeyboardInterrupt and leaves a checkpoint for `Run.resume`. Raises RunFolderError if the run's
    folder holds a run that has begun to train.
    """
    start_run(recipe, Path(folder))
    return Run(recipe.run_dir)


class Run:
    """A run's folder: what was measured and sampled, read when it is asked for; the run may be under way, ended or dead."""

    def __init__(self, folder: str | Path) -> None:
        """Raises RunStateError if there is no run in the folder."""
        self.folder = Path(folder)
        if not (self.folder / RECIPE_FILE).is_file():
            raise RunStateError(f"{self.folder} holds no run: there is no {RECIPE_FILE}")

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @cached_property
    def recipe(self) -> Recipe:
        """As it was run, every default written out."""
        return recipe_of_run(self.folder)

    def resume(self, changes: Mapping[str, Any] | None = None) -> "Run":
        """Go on from the newest checkpoint, as `samepath resume` does, with changes such as `{"rl.steps": 90}`."""
        overrides = [f"{key}={json.dumps(value)}" for key, value in (changes or {}).items()]
        resume_run(load_recipe(self.folder / RECIPE_FILE, overrides, Recipe), self.folder)
        return Run(self.folder)

    @property
    def summary(self) -> dict[str, Any]:
        """What `samepath run` prints at the end. Raises FileNotFoundError before that."""
        found: dict[str, Any] = json.loads((self.folder / SUMMARY_FILE).read_text())
        return found

    @property
    def metrics(self) -> dict[str, NDArray[np.float64]]:
        """Every metric over the steps that have any, `[S]`, NaN where a step has none of it; `step` is their numbers."""
        path = self.folder / METRICS_FILE
        by_step = read_metrics(path) if path.is_file() else {}
        names = dict.fromkeys(name for of_step in by_step.values() for name in of_step)
        columns = {name: [of_step.get(name, np.nan) for of_step in by_step.values()] for name in sorted(names)}
        return {name: np.array(values, dtype=np.float64) for name, values in {"step": [*by_step], **columns}.items()}

    @property
    def steps(self) -> list[int]:
        """Steps whose rollouts were kept."""
        return sorted(int(path.stem.removeprefix("step-")) for path in self._rollout_files())

    def rollouts(self, step: int | None = None) -> list[TrackedRollout]:
        """The kept rollouts of one step, or of all. Raises FileNotFoundError for a step without."""
        if step is None:
            return [rollout for path in self._rollout_files() for rollout in read_rollouts(path)]
        path = self.folder / ROLLOUTS / f"step-{step:05d}.jsonl"
        if not path.is_file():
            raise FileNotFoundError(f"{self.folder} keeps no rollouts of step {step}; it has those of {self.steps}")
        return read_rollouts(path)

    def table(self) -> Any:
        """`metrics` as a pandas table, a row a step."""
        return _pandas().DataFrame(self.metrics).set_index("step")

    def rollout_table(self, step: int | None = None) -> Any:
        """`rollouts` as a pandas table, a row each, its reward parts as columns `reward_parts.NAME`; what goes by token is left out."""
        rows = []
        for rollout in self.rollouts(step):
            row = {one.name: getattr(rollout, one.name) for one in fields(rollout) if one.name not in OF_TOKENS}
            parts = row.pop("reward_parts")
            rows.append({**row, **{f"reward_parts.{name}": value for name, value in parts.items()}})
        return _pandas().DataFrame(rows)

    def sample(self, prompt: str, count: int = 4, *, seed: int = 0, **sampling: Any) -> Sequence[Rollout]:
        """Answer a prompt with the newest checkpoint, as `samepath sample` does; `sampling` such as `temperature=0`."""
        return sample_source(self.folder, prompt, count, {"max_new_tokens": 64, **sampling}, seed)

    def _rollout_files(self) -> list[Path]:
        return sorted((self.folder / ROLLOUTS).glob("step-*.jsonl"))


def _pandas() -> Any:
    try:
        # Late: only the tables need it.
        import pandas
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("tables need the package pandas: `pip install pandas`") from error
    return pandas
