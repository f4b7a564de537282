"""What is checked before a run touches its folder: a recipe that cannot start leaves nothing behind."""

from dataclasses import dataclass
from pathlib import Path

from samepath.model.network.placement import require
from samepath.model.text.tokenizer import Tokenizer, load_tokenizer
from samepath.rl.evaluation.sets import AskedSet, build_sets, check_sets
from samepath.rl.learner.model_source import check_expected, resolve_folder
from samepath.rl.learner.new_tokenizer import new_tokenizer
from samepath.rl.learner.worked_answers import try_traces
from samepath.rl.recipe.model import NewModel
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.tasks.row import Task
from samepath.rl.tasks.survey import check_first_prompts
from samepath.rl.tasks.tasks import build_task
from samepath.rollout.engine_settings import describe


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What a run asks, and for how long."""

    recipe: Recipe
    """The recipe, its epochs turned into steps."""
    task: Task
    """Rows to train on, and rows held out."""
    sets: tuple[AskedSet, ...]
    """What evaluations ask, the headline first."""


def prepare(recipe: Recipe, recipe_dir: Path) -> Prepared:
    """The run's task and evaluation sets.

    Raises ValueError, RuntimeError or FileNotFoundError for whatever would stop the run and can be seen without its model.

    On a cluster elsewhere engine, device and model are not this machine's, and stay unchecked.
    """
    here = recipe.runtime == "inline" or recipe.ray.address == "local"
    if here:
        describe(recipe.engine).require(recipe.engine)
        require(recipe.model.placement)
    task = build_task(recipe.task, recipe_dir)
    task.check_datasets(recipe.rl.objective.kl.beta_by_dataset)
    sets = build_sets(recipe, task, recipe_dir)
    counted = recipe.model_copy(update={"rl": recipe.rl.counted(len(task.train))})
    prepared = Prepared(recipe=counted, task=task, sets=sets)
    tokenizer = _tokenizer(recipe, recipe_dir, task) if here or isinstance(recipe.model, NewModel) else None
    if recipe.runtime == "inline" and recipe.cold_start.steps:
        try_traces(recipe.cold_start, task, tokenizer)
    if tokenizer is not None:
        check_first_prompts(task, tokenizer)
        check_sets(sets, tokenizer)
    return prepared


def _tokenizer(recipe: Recipe, recipe_dir: Path, task: Task) -> Tokenizer:
    if isinstance(recipe.model, NewModel):
        return new_tokenizer(recipe, task)
    folder = resolve_folder(recipe.model.path, recipe_dir)
    check_expected(recipe.model.expected, folder)
    return load_tokenizer(folder)
