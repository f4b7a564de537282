"""One held-out conversation of an environment, played without training: `samepath sample RECIPE --conversation`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samepath.model.text.tokenizer import Tokenizer
from samepath.rl.preview import model_of, recipe_of
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.recipe.task import EnvironmentTask
from samepath.rl.run_folder import run_of_checkpoint
from samepath.rl.run_state import RECIPE_FILE, RunState
from samepath.rl.tasks.requests import group_request
from samepath.rl.tasks.tasks import build_task
from samepath.rollout.builtin.builtin_engine import BuiltinEngine
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.environments.episode_runner import EpisodeRunner
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.seeds import seed_of
from samepath.rollout.types import Group, Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What was played.

    Example:
        Played(row_id="held-out-0", rollouts=(rollout,), tokenizer=tokenizer)
    """

    row_id: str
    """The row of the environment."""
    rollouts: Sequence[Rollout]
    """One a conversation."""
    tokenizer: Tokenizer
    """Of the model that spoke."""


def play_conversations(
    source: Path, row: int, count: int, changes: Mapping[str, Any], seed: int, *, best: bool = False
) -> Played:
    """Play a held-out row `count` times with a recipe's newest checkpoint (or its own model), or a run's; with the best of the run where it says so.

    Messages are drawn as the recipe says, with `changes`; the built-in engine draws them with a cache of its default size where the recipe's engine is another.
    Raises ValueError for a recipe without an environment, a row that is not there, and conversations that could not begin or be judged.
    """
    recipe = recipe_of(source)
    if recipe is None:
        raise ValueError(f"--conversation needs a recipe or a run, which names an environment; got the folder {source}")
    if not isinstance(recipe.task, EnvironmentTask):
        raise ValueError(
            f"--conversation needs a recipe with task.kind: environment; {source} has task.kind: {recipe.task.kind}. Give a prompt instead."
        )
    task = build_task(recipe.task, _recipe_dir(source))
    if not 0 <= row < len(task.held_out):
        raise ValueError(f"--row must be in 0 … {len(task.held_out) - 1}, the held-out rows; got {row}")
    model, tokenizer = model_of(source, best=best)
    sampling = SamplingSettings.model_validate({**recipe.sampling.model_dump(), **changes})
    seeds = tuple(seed_of(seed, index) for index in range(count))
    request = group_request(task.held_out[row], tokenizer, sampling, "sample", seeds)
    assert not isinstance(request, Group)
    runner = EpisodeRunner(BuiltinEngine(model, tokenizer, _engine(recipe)), exact=False)
    try:
        runner.submit(request)
        groups: list[Group] = []
        while runner.busy:
            groups += runner.step()
    finally:
        runner.abort()
    rollouts = groups[0].rollouts
    for rollout in rollouts:
        if rollout.failure:
            detail = f": {rollout.failure_detail}" if rollout.failure_detail else ""
            raise ValueError(f"the conversation of row {task.held_out[row].row_id} failed: {rollout.failure}{detail}")
    return Played(row_id=task.held_out[row].row_id, rollouts=rollouts, tokenizer=tokenizer)


def _engine(recipe: Recipe) -> BuiltinSettings:
    return recipe.engine if isinstance(recipe.engine, BuiltinSettings) else BuiltinSettings()


def _recipe_dir(source: Path) -> Path:
    """Where the recipe lies, or lay when its run began."""
    if not source.is_dir():
        return source.parent
    run_dir = source if (source / RECIPE_FILE).is_file() else run_of_checkpoint(source)
    assert run_dir is not None
    return Path(RunState.load(run_dir).recipe_dir)
