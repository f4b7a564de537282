"""The commands that look without training: validate, sample, evaluate."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samepath.model.checkpoint import load_checkpoint
from samepath.model.tokenizer import load_tokenizer
from samepath.rewards.runner import RewardRunner
from samepath.rl.evaluation import evaluate
from samepath.rl.learner import latest_checkpoint
from samepath.rl.model_source import build_model
from samepath.rl.policy_checks import check_engine, check_policy
from samepath.rl.prompts import seed_of
from samepath.rl.recipe import Recipe
from samepath.rl.recipe_file import load_recipe
from samepath.rl.run import RECIPE_FILE
from samepath.rl.score_groups import GroupScorer
from samepath.rl.tasks import build_task
from samepath.rl.traces import resolve_traces
from samepath.rollout.builtin_engine import BuiltinEngine
from samepath.rollout.engine_settings import BuiltinSettings
from samepath.rollout.pool import InlinePool
from samepath.rollout.request import GroupRequest
from samepath.rollout.sampling import SamplingSettings
from samepath.rollout.types import Prompt, Rollout


def validated(recipe: Recipe, recipe_dir: Path) -> Sequence[str]:
    """Check what the settings alone cannot: task, prompts, model, rewards, traces. Returns what was found, for people.

    Raises the first error of each step, as a run would before any work.
    """
    task = build_task(recipe.task, recipe_dir)
    check_engine(recipe, recipe_dir)
    model, tokenizer = build_model(recipe.model, recipe_dir, recipe.seed)
    check_policy(recipe, model)
    prompts = [tokenizer.encode(row.text) for row in task.held_out]
    longest = max(map(len, prompts)) + recipe.sampling.max_new_tokens
    if longest > model.shape.max_position_embeddings:
        raise ValueError(
            f"the longest held-out prompt and sampling.max_new_tokens={recipe.sampling.max_new_tokens} must fit "
            f"max_position_embeddings={model.shape.max_position_embeddings}; got {longest} tokens"
        )
    if recipe.cold_start.steps:
        resolve_traces(recipe.cold_start.traces, {**recipe.cold_start.options, **recipe.cold_start.late_options})
    runner = RewardRunner(recipe.reward)
    try:
        runner.check()
    finally:
        runner.close()
    total = sum(parameter.numel() for parameter in model.parameters())
    rl = recipe.rl
    return (
        f"model: {total:,} parameters, {len(model.shape.moe_layers)} mixture-of-experts layers, {len(model.shape.sparse_layers)} with sparse attention",
        f"task: {task.name}, {len(task.train)} training and {len(task.held_out)} held-out rows, first prompt {task.held_out[0].text!r}",
        f"a step: {rl.prompts_per_step * rl.group_size} responses of at most {recipe.sampling.max_new_tokens} tokens, {rl.updates_per_rollout} updates",
        "valid: nothing was started",
    )


def sample_source(source: Path, prompt: str, count: int, changes: Mapping[str, Any], seed: int) -> Sequence[Rollout]:
    """Answer one prompt with a recipe's newest checkpoint (or its own model), a run's, or a checkpoint folder's weights."""
    model, tokenizer = _model_of(source)
    sampling = SamplingSettings.model_validate(dict(changes))
    request = GroupRequest(
        group_id="sample",
        prompt=Prompt(prompt_id="sample", text=prompt, token_ids=tokenizer.encode(prompt)),
        sampling=sampling,
        seeds=tuple(seed_of(seed, index) for index in range(count)),
    )
    longest = len(request.prompt.token_ids) + sampling.max_new_tokens
    cache_tokens = max(1024, 2 * (count + 1) * (longest + 32))
    group = BuiltinEngine(
        model, tokenizer, BuiltinSettings(max_sequences=max(count, 1), cache_tokens=cache_tokens)
    ).run([request])[0]
    if group.rollouts[0].failure:
        raise ValueError(
            f"the prompt cannot be answered: {group.rollouts[0].failure} ({longest} tokens with max_new_tokens)"
        )
    return group.rollouts


def evaluate_source(recipe: Recipe, recipe_dir: Path, checkpoint: Path | None) -> dict[str, Any]:
    """Held-out accuracy, inline, of a checkpoint folder or of the newest checkpoint of the recipe's run."""
    folder = checkpoint
    if folder is None:
        found = latest_checkpoint(recipe.run_dir)
        if found is None:
            raise FileNotFoundError(
                f"{recipe.run_dir} has no checkpoint; run the recipe first or name one with --checkpoint"
            )
        folder = found[0]
    task = build_task(recipe.task, recipe_dir)
    with RewardRunner(recipe.reward) as runner:
        pool = InlinePool(folder, recipe.engine, recipe.rollout)
        result = evaluate(recipe, task, load_tokenizer(folder), pool, GroupScorer(runner))
    return {
        "checkpoint": str(folder),
        "accuracy": result.accuracy,
        "scored": result.num_scored,
        "failed": result.num_failed,
        "mean_length": result.mean_length,
        "temperature": recipe.evaluation.temperature,
    }


def _model_of(source: Path) -> Any:
    if source.is_dir() and (source / RECIPE_FILE).is_file():
        found = latest_checkpoint(source)
        folder = found[0] if found else source / "reference"
        return load_checkpoint(folder), load_tokenizer(folder)
    if source.is_dir():
        return load_checkpoint(source), load_tokenizer(source)
    recipe = load_recipe(source, [], Recipe)
    found = latest_checkpoint(recipe.run_dir)
    if found:
        return load_checkpoint(found[0]), load_tokenizer(found[0])
    return build_model(recipe.model, source.parent, recipe.seed)
