"""From rewards to advantages: each answer against the other answers to its prompt, and what a truncated answer is worth.

Axes: B sequences. `group_B` (int64, any labels) says which sequences answer the same prompt; `scored_B` (bool) is True where
the reward is usable. A reward that failed is NaN and excluded: it is neither a zero nor part of a baseline.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from samepath.rl.objective.importance_ratio import at_least_float32
from samepath.rl.recipe.advantage import AdvantageSettings, TruncationSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncationOutcome:
    """Rewards and loss membership after truncated answers were dealt with."""

    rewards_B: Tensor
    """[B] rewards with penalties taken off; NaN stays NaN."""
    in_loss_B: Tensor
    """[B] bool, True where the sequence gives loss. False clears its rows of `counted_M` after the token weights were computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupTotals:
    """Scored rewards of each group, spread back over its sequences."""

    count_B: Tensor
    """[B] scored sequences in the sequence's group."""
    mean_B: Tensor
    """[B] mean of the group's scored rewards; 0 for a group without any."""
    constant_B: Tensor
    """[B] bool, True where the group's scored rewards are all the same number (or there are none)."""


def advantages(rewards_B: Tensor, group_B: Tensor, scored_B: Tensor, settings: AdvantageSettings) -> Tensor:
    """A_i = R_i − baseline of its group, optionally over a standard deviation, `[B]` float32 or wider.

    Exactly 0 where the reward failed, in a group with fewer than two scored rewards, and in a group without spread. Standard
    deviations are the sample's (n − 1). Raises ValueError if a reward that is said to be scored is not finite.
    """
    rewards_B = _checked_rewards(rewards_B, scored_B)
    totals = _group_totals(rewards_B, group_B, scored_B)
    centred_B = rewards_B - totals.mean_B
    others_B = (totals.count_B - 1).clamp(min=1)
    match settings.scale:
        case "none":
            scaled_B = centred_B
        case "group_std":
            scaled_B = centred_B / (
                (_group_sum(centred_B.square(), group_B, scored_B) / others_B).sqrt() + settings.epsilon
            )
        case "batch_std":
            # Fewer than two scored rewards have no standard deviation; every advantage is 0 then, whatever it is divided by.
            std = rewards_B[scored_B].std() if int(scored_B.sum()) > 1 else rewards_B.new_ones(())
            scaled_B = centred_B / (std + settings.epsilon)
    if settings.baseline == "leave_one_out":
        # R_i − mean of the others = n/(n − 1)·(R_i − mean of all).
        scaled_B = scaled_B * (totals.count_B / others_B)
    # The mean of equal rewards may differ from them in the last bit; noise must not become an advantage.
    return torch.where(scored_B & ~totals.constant_B, scaled_B, 0)


def informative_groups(rewards_B: Tensor, group_B: Tensor, scored_B: Tensor) -> Tensor:
    """True for each group whose scored rewards differ, bool, in ascending order of the labels in `group_B`.

    Groups without spread give no gradient: dynamic sampling (arXiv:2503.14476) drops or refills them.
    """
    totals = _group_totals(_checked_rewards(rewards_B, scored_B), group_B, scored_B)
    labels, index_B = torch.unique(group_B, return_inverse=True)
    return torch.zeros(len(labels), dtype=torch.bool, device=group_B.device).index_put((index_B,), ~totals.constant_B)


def apply_truncation(rewards_B: Tensor, truncated_B: Tensor, settings: TruncationSettings) -> TruncationOutcome:
    """Rewards and loss membership with truncated answers (bool `[B]`, True: ran into the token limit) trained, masked or penalised."""
    everything_B = torch.ones_like(truncated_B)
    match settings.mode:
        case "train":
            return TruncationOutcome(rewards_B=rewards_B, in_loss_B=everything_B)
        case "mask":
            return TruncationOutcome(rewards_B=rewards_B, in_loss_B=~truncated_B)
        case "penalise":
            penalised_B = torch.where(truncated_B, rewards_B - settings.penalty, rewards_B)
            return TruncationOutcome(rewards_B=penalised_B, in_loss_B=everything_B)


def _checked_rewards(rewards_B: Tensor, scored_B: Tensor) -> Tensor:
    bad_B = scored_B & ~rewards_B.isfinite()
    if bool(bad_B.any()):
        raise ValueError(
            f"Every scored reward must be finite; got {int(bad_B.sum())} that are not, the first at sequence "
            f"{int(bad_B.nonzero()[0])}. Set scored_B to False there: a failed reward is excluded, never a number."
        )
    return torch.where(scored_B, at_least_float32(rewards_B), 0)


def _group_sum(values_B: Tensor, group_B: Tensor, scored_B: Tensor) -> Tensor:
    labels, index_B = torch.unique(group_B, return_inverse=True)
    return values_B.new_zeros(len(labels)).index_add(0, index_B, torch.where(scored_B, values_B, 0))[index_B]


def _group_totals(rewards_B: Tensor, group_B: Tensor, scored_B: Tensor) -> GroupTotals:
    labels, index_B = torch.unique(group_B, return_inverse=True)
    count_B = _group_sum(torch.ones_like(rewards_B), group_B, scored_B)
    lowest = rewards_B.new_full((len(labels),), torch.inf)
    lowest = lowest.scatter_reduce(0, index_B, rewards_B.masked_fill(~scored_B, torch.inf), "amin")
    highest = rewards_B.new_full((len(labels),), -torch.inf)
    highest = highest.scatter_reduce(0, index_B, rewards_B.masked_fill(~scored_B, -torch.inf), "amax")
    return GroupTotals(
        count_B=count_B,
        mean_B=_group_sum(rewards_B, group_B, scored_B) / count_B.clamp(min=1),
        constant_B=(lowest >= highest)[index_B],
    )
