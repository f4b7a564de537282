"""All of a step that follows from its groups alone, so that it can be made ready while the step before is learned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from samepath.rl.batch.refill import trained_groups
from samepath.rl.batch.score_groups import training_batch
from samepath.rl.batch.train_batch import TrainBatch
from samepath.rl.diagnostics.advantages import off_centre
from samepath.rl.diagnostics.datasets import dataset_metrics
from samepath.rl.diagnostics.rollouts import rollout_metrics
from samepath.rl.feed import of_other_steps
from samepath.rl.recipe.recipe import Recipe
from samepath.rollout.types import Group


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """The groups of one step, scored, and what is made of them.

    Example:
        StepBatch(groups=[group], batch=None, advantages_by_group={"s1-g0": np.zeros(8)}, metrics={"reward/mean": 0.5})
    """

    groups: list[Group]
    """Those that it trains, in order, with their scores."""
    batch: TrainBatch | None
    """What the learner gets; None if there is nothing to learn."""
    advantages_by_group: dict[str, np.ndarray]
    """Each sample's advantage, by the group's id."""
    metrics: Mapping[str, float]
    """Of the rollouts that are trained (`rollout_metrics`), how many groups were replaced, and what is learned from each dataset."""


def step_batch(groups: Sequence[Group], step: int, recipe: Recipe, task: str) -> StepBatch:
    """Make a step of scored groups of the task of that name, replacements last, ready. Raises what `training_batch` raises."""
    trained = trained_groups(groups, recipe.rl)
    batch, advantages_by_group = training_batch(trained.groups, recipe.rl)
    return StepBatch(
        groups=trained.groups,
        batch=batch,
        advantages_by_group=advantages_by_group,
        metrics={
            **rollout_metrics(trained.groups, step, recipe.evaluation.full_reward),
            **trained.metrics(),
            **dataset_metrics(groups, trained, recipe.rl, task),
            "reward/off_centre": off_centre(advantages_by_group.values()),
            "rollout/groups_of_other_steps": of_other_steps(
                [group.group_id for group in trained.groups], step, recipe.rl
            ),
        },
    )
