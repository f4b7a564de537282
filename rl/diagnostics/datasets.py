"""What a step learns from each dataset of a task that mixes several."""

from collections.abc import Sequence

import numpy as np

from samepath.rl.batch.refill import TrainedGroups, has_spread
from samepath.rl.diagnostics.metric_name import metric_name
from samepath.rl.recipe.algorithm import AlgorithmSettings
from samepath.rollout.types import Group, Rollout


def dataset_metrics(
    groups: Sequence[Group], trained: TrainedGroups, settings: AlgorithmSettings, own: str
) -> dict[str, float]:
    """`dataset/<name>/…` of every dataset that a step asked; nothing where all groups are of `own`, the task's own name.

    `groups` are all that were sampled and scored, those that were replaced too.
    """
    if all(group.prompt.dataset == own for group in groups):
        return {}
    names = [metric_name(group.prompt.dataset) for group in groups]
    learned = {group.group_id for group in trained.groups if has_spread(group, settings)}
    spread = [has_spread(group, settings) for group in groups]
    tokens = [
        sum(rollout.num_trained for rollout in _usable(group)) if group.group_id in learned else 0 for group in groups
    ]
    whole, metrics = sum(tokens), dict[str, float]()
    for name in sorted(set(names)):
        places = [place for place, one in enumerate(names) if one == name]
        totals = [rollout.score.total for place in places for rollout in _usable(groups[place]) if rollout.score]
        metrics |= {
            f"dataset/{name}/groups": float(len(places)),
            f"dataset/{name}/groups_spread": sum(spread[place] for place in places) / len(places),
            f"dataset/{name}/token_share": sum(tokens[place] for place in places) / whole if whole else 0.0,
        }
        if totals:
            metrics[f"dataset/{name}/reward_mean"] = float(np.mean(totals))
    return metrics


def _usable(group: Group) -> list[Rollout]:
    return [one for one in group.rollouts if one.score is not None and one.score.status == "ok"]
