"""Which problems a run trains and is evaluated on: the choice of task kinds, and their one builder."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from samepath.rl.tasks.file import FileTask, build_file
from samepath.rl.tasks.hub import HubTask, build_hub
from samepath.rl.tasks.reasoning_gym import ReasoningGymTask, build_reasoning_gym
from samepath.rl.tasks.row import Task

TaskSettings = Annotated[ReasoningGymTask | FileTask | HubTask, Field(discriminator="kind")]
"""Settings of a task; `kind` chooses."""


def build_task(settings: ReasoningGymTask | FileTask | HubTask, recipe_dir: Path) -> Task:
    """Build the task; paths in the settings are relative to `recipe_dir`.

    Training and held-out rows never share a canonical text (see `canonical_text`: `a+b` and `b+a` are different texts), and
    the same settings give the same rows in the same order each time. Only `kind: hub` may need a network, once. Raises
    TaskError, and HubUnreachableError where that network is missing.
    """
    if isinstance(settings, ReasoningGymTask):
        return build_reasoning_gym(settings)
    if isinstance(settings, HubTask):
        return build_hub(settings, recipe_dir)
    return build_file(settings, recipe_dir)
