"""The command that measures without training: a checkpoint on the evaluation sets of a recipe."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from samepath.model.files.weight_files import refuse_shards
from samepath.model.json_file import with_nulls
from samepath.model.text.tokenizer import load_tokenizer
from samepath.rewards.runner import RewardRunner
from samepath.rl.batch.score_groups import GroupScorer
from samepath.rl.evaluation.held_out import Evaluations, evaluate, set_requests
from samepath.rl.evaluation.sets import AskedSet, build_sets
from samepath.rl.learner.checkpoints import best_checkpoint, checkpoint_of_step, latest_checkpoint
from samepath.rl.recipe.did_you_mean import did_you_mean
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.run_folder import REFERENCE
from samepath.rl.tasks.tasks import build_task
from samepath.rl.training import inline_pool


def evaluate_source(recipe: Recipe, recipe_dir: Path, folder: Path) -> dict[str, Any]:
    """Held-out accuracy of a checkpoint folder, with one engine in this process or beside it; None where nothing was measured."""
    sets = build_sets(recipe, build_task(recipe.task, recipe_dir), recipe_dir)
    results = evaluate_checkpoint(recipe, recipe_dir, folder, sets)
    headline = results.headline
    values = {
        "checkpoint": str(folder),
        "accuracy": headline.accuracy,
        "scored": headline.num_scored,
        "failed": headline.num_failed,
        "mean_length": headline.mean_length,
        "temperature": sets[0].sampling.temperature,
    }
    if recipe.evaluation.sets:
        values["sets"] = measured(results, sets)
    nulled: dict[str, Any] = with_nulls(values)
    return nulled


def evaluate_run(
    recipe: Recipe, recipe_dir: Path, checkpoint: Path, names: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """What was measured of a checkpoint on each set of a recipe, or on those called `names`; None where nothing was measured.

    Raises ValueError for a name that the recipe does not have.
    """
    sets = build_sets(recipe, build_task(recipe.task, recipe_dir), recipe_dir)
    for name in names:
        if name not in recipe.evaluation.sets:
            known = ", ".join(recipe.evaluation.sets) or "none; evaluation.sets of the recipe is empty"
            raise ValueError(
                f"--set must name a set of the recipe; got {name!r}{did_you_mean(name, recipe.evaluation.sets)}; there are: {known}"
            )
    asked = [one for one in sets if not names or one.name in names]
    return measured(evaluate_checkpoint(recipe, recipe_dir, checkpoint, asked), asked)


def evaluate_checkpoint(recipe: Recipe, recipe_dir: Path, folder: Path, sets: Sequence[AskedSet]) -> Evaluations:
    """Measure a checkpoint folder on sets, with one engine in this process or beside it."""
    refuse_shards(folder)
    tokenizer, results = load_tokenizer(folder), {}
    with RewardRunner(recipe.reward) as runner:
        scorer = GroupScorer(runner, recipe.reward.max_failed_share)
        pool = inline_pool(folder, recipe.engine, recipe.rollout, recipe.model.placement, recipe_dir)
        try:
            for asked in sets:
                requests = set_requests(asked, tokenizer, recipe.seed, recipe.rl.group_size)
                results[asked.name] = evaluate(
                    asked, requests, pool, scorer, recipe.reward.main_part, recipe.evaluation.full_reward
                )
        finally:
            pool.close()
    return Evaluations(sets=results)


def measured(results: Evaluations, sets: Sequence[AskedSet]) -> dict[str, dict[str, Any]]:
    """Plain data of each set by its title; None where nothing was measured."""
    found: dict[str, dict[str, Any]] = with_nulls(
        {
            asked.title: {
                "prompts": len(asked.rows),
                "samples": asked.num_samples,
                "temperature": asked.sampling.temperature,
                **one.values(),
                "scored": one.num_scored,
            }
            for asked, one in zip(sets, results.sets.values(), strict=True)
        }
    )
    return found


def checkpoint_of_run(run_dir: Path, step: int | Literal["best"] | None) -> tuple[Path, int]:
    """The newest whole checkpoint of a run, the best, or that of a step, 0 being the reference; with its step.

    Raises CheckpointError or FileNotFoundError.
    """
    if step == "best":
        return best_checkpoint(run_dir)
    if step == 0 and (run_dir / REFERENCE).is_dir():
        return run_dir / REFERENCE, 0
    if step is not None:
        return checkpoint_of_step(run_dir, step)
    found = latest_checkpoint(run_dir)
    if found is None:
        raise FileNotFoundError(
            f"{run_dir} has no checkpoint; run the recipe first, name one with --checkpoint, or measure the reference that training starts "
            "from with --step 0"
        )
    return found
