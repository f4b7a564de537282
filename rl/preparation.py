"""What is checked before a run touches its folder: a recipe that cannot start leaves nothing behind."""

from pathlib import Path

from samepath.model.network.placement import require
from samepath.model.text.tokenizer import character_tokenizer, load_tokenizer
from samepath.rl.learner.model_source import check_expected, resolve_folder
from samepath.rl.learner.worked_answers import resolve_answer_writer
from samepath.rl.recipe.model import NewModel
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.tasks.row import Task
from samepath.rl.tasks.survey import check_first_prompts
from samepath.rl.tasks.tasks import build_task
from samepath.rollout.engine_settings import describe


def prepare(recipe: Recipe, recipe_dir: Path) -> Task:
    """The run's task. Raises ValueError, RuntimeError or FileNotFoundError for whatever would stop the run and can be seen without its model.

    On a cluster elsewhere engine, device and model are not this machine's, and stay unchecked.
    """
    here = recipe.runtime == "inline" or recipe.ray.address == "local"
    if here:
        describe(recipe.engine).require(recipe.engine)
        require(recipe.model.placement)
    task = build_task(recipe.task, recipe_dir)
    if recipe.runtime == "inline" and recipe.cold_start.steps:
        cold_start = recipe.cold_start
        resolve_answer_writer(cold_start.traces, {**cold_start.options, **cold_start.late_options})
    if isinstance(recipe.model, NewModel):
        check_first_prompts(task, character_tokenizer(recipe.model.alphabet))
    elif here:
        folder = resolve_folder(recipe.model.path, recipe_dir)
        check_expected(recipe.model.expected, folder)
        check_first_prompts(task, load_tokenizer(folder))
    return task
