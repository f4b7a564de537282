"""Which of a step's sampled groups are trained where groups without spread are replaced (dynamic sampling, arXiv:2503.14476)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from samepath.rl.objective.advantage import apply_truncation, informative_groups
from samepath.rl.recipe.algorithm import AlgorithmSettings
from samepath.rollout.types import Group


def has_spread(group: Group, settings: AlgorithmSettings) -> bool:
    """Whether a scored group's usable rewards differ, once truncated answers are dealt with: else it gives no gradient."""
    rollouts = group.rollouts
    scored_B = torch.tensor([one.score is not None and one.score.status == "ok" for one in rollouts])
    totals = [one.score.total if one.score is not None else float("nan") for one in rollouts]
    truncated_B = torch.tensor([one.truncated for one in rollouts])
    outcome = apply_truncation(torch.tensor(totals, dtype=torch.float32), truncated_B, settings.truncated)
    return bool(informative_groups(outcome.rewards_B, torch.zeros(len(rollouts), dtype=torch.int64), scored_B)[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedGroups:
    """What became of the groups that a step sampled."""

    groups: list[Group]
    """Those that it trains, in order."""
    replaced: list[Group]
    """The others: without spread."""
    refilled: bool
    """Whether the recipe lets groups be replaced."""

    def metrics(self) -> dict[str, float]:
        """How much was sampled and not trained; nothing without `rl.refill`."""
        if not self.refilled:
            return {}
        tokens = sum(rollout.num_trained for group in self.replaced for rollout in group.rollouts)
        return {"rollout/groups_replaced": float(len(self.replaced)), "rollout/tokens_replaced": float(tokens)}


def trained_groups(scored: Sequence[Group], settings: AlgorithmSettings) -> TrainedGroups:
    """Choose among the scored groups of a step, those that came as replacements last."""
    if not settings.refill:
        return TrainedGroups(groups=[*scored], replaced=[], refilled=False)
    places = trained_places([has_spread(group, settings) for group in scored], settings.prompts_per_step)
    return TrainedGroups(
        groups=[scored[place] for place in places],
        replaced=[group for place, group in enumerate(scored) if place not in places],
        refilled=True,
    )


def trained_places(spread: Sequence[bool], wanted: int) -> list[int]:
    """Places of the groups that are trained, ascending: those with spread, the first `wanted` of them, and where they are fewer the first without.

    Example:
        trained_places([True, False, True, False, True], 4) == [0, 1, 2, 4]
    """
    order = sorted(range(len(spread)), key=lambda place: not spread[place])
    return sorted(order[:wanted])
