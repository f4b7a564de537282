"""How per-token losses become one number: weights over the whole optimiser batch, and sums over each sequence's tokens.

Axes: B sequences, M trained tokens of a packed batch. `sequence_M` (int64) says which of the B sequences a token row belongs to;
`counted_M` (bool) is True where the model sampled the token and it counts.
"""

import torch
from torch import Tensor

from samepath.rl.objective.importance_ratio import at_least_float32
from samepath.rl.recipe.objective import AggregationSettings


def sequence_sum(values_M: Tensor, sequence_M: Tensor, counted_M: Tensor, num_sequences: int) -> Tensor:
    """Sum of each sequence's trained rows, `[B]`, with gradient; whatever stands in other rows, NaN included, is left out."""
    kept_M = torch.where(counted_M, values_M, 0)
    return kept_M.new_zeros(num_sequences).index_add(0, sequence_M, kept_M)


def trained_lengths(sequence_M: Tensor, counted_M: Tensor, num_sequences: int) -> Tensor:
    """|o_i|, the number of trained rows of each sequence, int64 `[B]`."""
    return sequence_sum(counted_M.long(), sequence_M, counted_M, num_sequences)


def sequence_mean(values_M: Tensor, sequence_M: Tensor, counted_M: Tensor, num_sequences: int) -> Tensor:
    """(1/|o_i|)·Σ_t of each sequence's trained rows, `[B]`, with gradient; 0 for a sequence without any."""
    lengths_B = trained_lengths(sequence_M, counted_M, num_sequences)
    return sequence_sum(at_least_float32(values_M), sequence_M, counted_M, num_sequences) / lengths_B.clamp(min=1)


def token_weights(
    sequence_M: Tensor,
    counted_M: Tensor,
    group_B: Tensor,
    settings: AggregationSettings,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Weight w of each token in L = −Σ w·[…], `[M]`; 0 on rows that are not trained.

    Call once over the whole optimiser batch (all micro-batches and ranks); a micro-batch then takes its rows of the result.
    `group_B` is the group of each sequence, any int64 labels. With equal groups `sequence_mean` is 1/(B·|o_i|).
    Masks and truncation come later and zero a term or a row, never a denominator. Raises ValueError if B or Σ|o_i| is 0.
    """
    num_sequences = group_B.shape[0]
    lengths_B = trained_lengths(sequence_M, counted_M, num_sequences)
    num_trained = int(lengths_B.sum())
    if num_trained == 0:
        raise ValueError(
            f"An optimiser batch must hold at least one trained token; got {num_sequences} sequences with none. Skip the step."
        )
    match settings.mode:
        case "sequence_mean":
            _, index_B, sizes = torch.unique(group_B, return_inverse=True, return_counts=True)
            # In float64 until the end: 1/(groups·G·|o_i|) passes float32's exact integers in a large batch.
            weight_B = 1 / (len(sizes) * sizes[index_B].double() * lengths_B.clamp(min=1))
        case "token_mean":
            weight_B = torch.full((num_sequences,), 1 / num_trained, dtype=torch.float64, device=group_B.device)
        case "constant":
            value = 1 / (num_sequences * settings.fixed_length)
            weight_B = torch.full((num_sequences,), value, dtype=torch.float64, device=group_B.device)
    return torch.where(counted_M, weight_B[sequence_M], 0).to(dtype)
