"""Off-policy sequence masking: leave out bad answers that the learner would hardly give any more. Axes: B sequences, M trained tokens."""

import torch
from torch import Tensor

from samepath.rl.objective.aggregation import sequence_mean
from samepath.rl.objective.importance_ratio import at_least_float32
from samepath.rl.recipe.objective import SequenceMaskSettings


def off_policy_statistic(
    logprobs_M: Tensor, sampler_logprobs_M: Tensor, sequence_M: Tensor, counted_M: Tensor, num_sequences: int
) -> Tensor:
    """(1/|o_i|)·Σ_t log(π_sampler/π) of each sequence, `[B]` nats per token, no gradient (arXiv:2512.02556 eq. 8).

    π_sampler is what the engine itself reported, so policy drift and engine/learner numerics both count. A sequence must stand
    whole in the batch. 0 for a sequence without trained tokens.
    """
    # Sampler over learner: positive where the learner has moved away from the answer.
    gap_M = at_least_float32(sampler_logprobs_M.detach()) - at_least_float32(logprobs_M.detach())
    return sequence_mean(gap_M, sequence_M, counted_M, num_sequences)


def kept_sequences(advantages_B: Tensor, off_policy_B: Tensor, settings: SequenceMaskSettings) -> Tensor:
    """M of arXiv:2512.02556 eq. 8 as bool `[B]`: False iff A_i < 0 and the off-policy statistic is above δ."""
    if not settings.enabled:
        return torch.ones_like(advantages_B, dtype=torch.bool)
    return ~((advantages_B < 0) & (off_policy_B > settings.delta))
