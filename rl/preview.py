"""Answers to a prompt without training: `samepath sample`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samepath.model.files.checkpoint import load_checkpoint
from samepath.model.text.chat import ChatForm
from samepath.model.text.tokenizer import load_tokenizer
from samepath.rl.learner.checkpoints import best_checkpoint, latest_checkpoint
from samepath.rl.learner.model_source import build_model, resolve_folder
from samepath.rl.recipe.file import load_recipe, recipe_keys
from samepath.rl.recipe.model import CheckpointModel
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.recipe.task import EnvironmentTask
from samepath.rl.recipe.text import TextRecipe
from samepath.rl.run_folder import REFERENCE, run_of_checkpoint
from samepath.rl.run_state import RECIPE_FILE, TEXT_RECIPE_FILE
from samepath.rollout.builtin.builtin_engine import BuiltinEngine
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.request import GroupRequest
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.seeds import seed_of
from samepath.rollout.types import Prompt, Rollout


def sample_source(
    source: Path,
    prompt: str,
    count: int,
    changes: Mapping[str, Any],
    seed: int,
    *,
    chat: bool | None = None,
    best: bool = False,
) -> Sequence[Rollout]:
    """Answer one prompt with a recipe's newest checkpoint (or its own model), a run's, or a checkpoint folder's weights.

    With `best` the checkpoint is the run's best, which it must have.

    Responses end where the recipe's end (its stop ids and strings), and the prompt has the recipe's chat form, unless `chat` says whether it is
    to have one; a checkpoint folder outside a run has no stops but the tokenizer's end, and no chat form unless asked for.
    """
    model, tokenizer = model_of(source, best=best)
    recipe = recipe_of(source)
    stops = {} if recipe is None else recipe.sampling.model_dump(include={"stop_token_ids", "stop_strings"})
    sampling = SamplingSettings.model_validate({**stops, **changes})
    task = None if recipe is None else recipe.task
    if isinstance(task, EnvironmentTask):
        raise ValueError(
            "a recipe of kind environment has conversations, not single prompts; `samepath sample RECIPE --conversation` plays one"
        )
    form = None if task is None else task.chat.form
    if chat is not None:
        form = (form or ChatForm()) if chat else None
    request = GroupRequest(
        group_id="sample",
        prompt=Prompt(
            prompt_id="sample",
            text=prompt,
            token_ids=tokenizer.encode(prompt) if form is None else tokenizer.encode_chat(prompt, form),
        ),
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


def recipe_of(source: Path) -> Recipe | None:
    """The recipe with rewards that `source` is or was made by; None for a recipe or a run on text, and for a checkpoint folder outside a run."""
    if not source.is_dir():
        recipe = _recipe(source)
        return recipe if isinstance(recipe, Recipe) else None
    run_dir = source if (source / RECIPE_FILE).is_file() else run_of_checkpoint(source)
    return None if run_dir is None else load_recipe(run_dir / RECIPE_FILE, [], Recipe)


def _recipe(path: Path) -> Recipe | TextRecipe:
    on_text = "stage" in recipe_keys(path, [])
    return load_recipe(path, [], TextRecipe) if on_text else load_recipe(path, [], Recipe)


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (RECIPE_FILE, TEXT_RECIPE_FILE))


def _run_of(source: Path) -> Path:
    """The run that a recipe or a run's folder names. Raises ValueError for a checkpoint folder."""
    if not source.is_dir():
        return _recipe(source).run_dir
    if not _is_run(source):
        raise ValueError(f"--best goes with a recipe or a run's folder; {source} is a checkpoint. Leave --best out.")
    return source


def model_of(source: Path, *, best: bool = False) -> Any:
    """(model, tokenizer) of a recipe's newest checkpoint or its own model, a run's, or a checkpoint folder; with `best` of the run's best."""
    if best:
        folder = best_checkpoint(_run_of(source))[0]
        return load_checkpoint(folder), load_tokenizer(folder)
    if source.is_dir() and _is_run(source):
        found = latest_checkpoint(source)
        folder = found[0] if found else source / REFERENCE
        if not folder.is_dir():
            raise ValueError(f"{source} has no checkpoint yet; give the folder of the model that it began with")
        return load_checkpoint(folder), load_tokenizer(folder)
    if source.is_dir():
        return load_checkpoint(source), load_tokenizer(source)
    recipe = _recipe(source)
    found = latest_checkpoint(recipe.run_dir)
    if found:
        return load_checkpoint(found[0]), load_tokenizer(found[0])
    if isinstance(recipe.model, CheckpointModel):
        # Whatever trains it: the built-in engine answers here.
        folder = resolve_folder(recipe.model.path, source.parent)
        return load_checkpoint(folder), load_tokenizer(folder)
    return build_model(recipe, source.parent)
