"""Off-policy sequence masking: leave out bad answers that the learner would hardly give any more.

Axes: J what the mask decides on (rollouts, or with `scope: segment` their segments), M trained tokens.
"""

import torch
from torch import Tensor

from samepath.rl.objective.aggregation import rollout_mean
from samepath.rl.objective.importance_ratio import at_least_float32
from samepath.rl.recipe.objective import SequenceMaskSettings


def off_policy_statistic(
    logprobs_M: Tensor, sampler_logprobs_M: Tensor, unit_M: Tensor, counted_M: Tensor, num_units: int
) -> Tensor:
    """(1/|o_i|)·Σ_t log(π_sampler/π) of each unit, `[J]` nats per token, no gradient (arXiv:2512.02556 eq. 8).

    π_sampler is what the engine itself reported, so policy drift and engine/learner numerics both count. A unit must stand
    whole in the batch. 0 for one without trained tokens.
    """
    # Sampler over learner: positive where the learner has moved away from the answer.
    gap_M = at_least_float32(sampler_logprobs_M.detach()) - at_least_float32(logprobs_M.detach())
    return rollout_mean(gap_M, unit_M, counted_M, num_units)


def kept_sequences(advantages_J: Tensor, off_policy_J: Tensor, settings: SequenceMaskSettings) -> Tensor:
    """M of arXiv:2512.02556 eq. 8 as bool `[J]`: False iff A_i < 0 and the off-policy statistic is above δ."""
    if not settings.enabled:
        return torch.ones_like(advantages_J, dtype=torch.bool)
    return ~((advantages_J < 0) & (off_policy_J > settings.delta))
