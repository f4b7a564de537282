"""How per-token losses become one number: weights over the whole optimiser batch, and sums over each rollout's tokens.

A rollout counts as one answer, in however many segments its tokens stand: it has one length |o_i| and one mean.
Axes: B rollouts, M trained tokens of a packed batch. `rollout_M` (int64) says which of the B rollouts a token row belongs to;
`counted_M` (bool) is True where the model sampled the token and it counts.
"""

import torch
from torch import Tensor

from samepath.rl.objective.importance_ratio import at_least_float32
from samepath.rl.recipe.objective import AggregationSettings


def rollout_sum(values_M: Tensor, rollout_M: Tensor, counted_M: Tensor, num_rollouts: int) -> Tensor:
    """Sum of each rollout's trained rows, `[B]`, with gradient; whatever stands in other rows, NaN included, is left out."""
    kept_M = torch.where(counted_M, values_M, 0)
    return kept_M.new_zeros(num_rollouts).index_add(0, rollout_M, kept_M)


def trained_lengths(rollout_M: Tensor, counted_M: Tensor, num_rollouts: int) -> Tensor:
    """|o_i|, the number of trained rows of each rollout, int64 `[B]`."""
    return rollout_sum(counted_M.long(), rollout_M, counted_M, num_rollouts)


def rollout_mean(values_M: Tensor, rollout_M: Tensor, counted_M: Tensor, num_rollouts: int) -> Tensor:
    """(1/|o_i|)·Σ_t of each rollout's trained rows, `[B]`, with gradient; 0 for a rollout without any."""
    lengths_B = trained_lengths(rollout_M, counted_M, num_rollouts)
    return rollout_sum(at_least_float32(values_M), rollout_M, counted_M, num_rollouts) / lengths_B.clamp(min=1)


def token_weights(
    rollout_M: Tensor,
    counted_M: Tensor,
    group_B: Tensor,
    settings: AggregationSettings,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Weight w of each token in L = −Σ w·[…], `[M]`; 0 on rows that are not trained.

    Call once over the whole optimiser batch (all micro-batches and ranks); a micro-batch then takes its rows of the result.
    `group_B` is the group of each rollout, any int64 labels. With equal groups `sequence_mean` is 1/(B·|o_i|).
    Masks and truncation come later and zero a term or a row, never a denominator. Raises ValueError if B or Σ|o_i| is 0.
    """
    num_rollouts = group_B.shape[0]
    lengths_B = trained_lengths(rollout_M, counted_M, num_rollouts)
    num_trained = int(lengths_B.sum())
    if num_trained == 0:
        raise ValueError(
            f"An optimiser batch must hold at least one trained token; got {num_rollouts} rollouts with none. Skip the step."
        )
    match settings.mode:
        case "sequence_mean":
            _, index_B, sizes = torch.unique(group_B, return_inverse=True, return_counts=True)
            # In float64 until the end: 1/(groups·G·|o_i|) passes float32's exact integers in a large batch.
            weight_B = 1 / (len(sizes) * sizes[index_B].double() * lengths_B.clamp(min=1))
        case "token_mean":
            weight_B = torch.full((num_rollouts,), 1 / num_trained, dtype=torch.float64, device=group_B.device)
        case "constant":
            value = 1 / (num_rollouts * settings.fixed_length)
            weight_B = torch.full((num_rollouts,), value, dtype=torch.float64, device=group_B.device)
    return torch.where(counted_M, weight_B[rollout_M], 0).to(dtype)
