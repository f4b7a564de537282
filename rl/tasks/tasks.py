"""Which problems a run trains and is evaluated on: the choice of task kinds, and their one builder."""

from pathlib import Path

from samepath.rl.machine import find_own_modules
from samepath.rl.recipe.task import EnvironmentTask, FileTask, HubTask, ReasoningGymTask
from samepath.rl.tasks.environment import build_environment
from samepath.rl.tasks.file import build_file
from samepath.rl.tasks.hub import build_hub
from samepath.rl.tasks.reasoning_gym import build_reasoning_gym
from samepath.rl.tasks.row import Task


def build_task(settings: ReasoningGymTask | FileTask | HubTask | EnvironmentTask, recipe_dir: Path) -> Task:
    """Build the task; paths in the settings are relative to `recipe_dir`.

    Training and held-out rows never share a canonical text (see `canonical_text`: `a+b` and `b+a` are different texts), and
    the same settings give the same rows in the same order each time. Only `kind: hub` may need a network, once. Raises
    TaskError, and HubUnreachableError where that network is missing. From then on modules beside the recipe can be imported.
    """
    find_own_modules(recipe_dir)
    if isinstance(settings, ReasoningGymTask):
        return build_reasoning_gym(settings)
    if isinstance(settings, EnvironmentTask):
        return build_environment(settings, recipe_dir)
    if isinstance(settings, HubTask):
        return build_hub(settings, recipe_dir)
    return build_file(settings, recipe_dir)
