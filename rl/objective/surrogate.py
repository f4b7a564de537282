"""Policy surrogates: what stands in for the advantage-weighted probability ratio, per token and with gradient.

Three behind one signature: GRPO's clipped token ratio, GSPO's clipped sequence ratio, CISPO's clipped weight on log π.
Axes: B sequences, N tokens of a packed batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from samepath.rl.objective.aggregation import sequence_mean
from samepath.rl.objective.importance_ratio import at_least_float32, bounded_exp, importance_ratio
from samepath.rl.recipe.objective import SurrogateName


@dataclass(frozen=True, slots=True, kw_only=True)
class SurrogateInputs:
    """What a surrogate is computed from. Sequences stand whole in the batch."""

    logprobs_N: Tensor
    """[N] nats, the learner now, with gradient."""
    old_logprobs_N: Tensor
    """[N] nats, the policy that the ratio is taken against."""
    advantages_B: Tensor
    """[B] advantage of each sequence."""
    sequence_N: Tensor
    """[N] int64, which of the B sequences the row belongs to."""
    trained_N: Tensor
    """[N] bool, True where the row counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SurrogateTerms:
    """A surrogate per token, to be maximised, and what clipping did. Only trained rows have a meaning."""

    value_N: Tensor
    """[N] with gradient."""
    ratio_N: Tensor
    """[N] unclipped ratio π/π_old without gradient; a sequence's one ratio on each of its rows for `gspo`."""
    clipped_low_N: Tensor
    """[N] bool, True where the lower clip changed the term."""
    clipped_high_N: Tensor
    """[N] bool, True where the upper clip changed the term."""


def surrogate(name: SurrogateName, inputs: SurrogateInputs, clip_low: float, clip_high: float) -> SurrogateTerms:
    """The named surrogate with ratios clipped to [1 − clip_low, 1 + clip_high]."""
    match name:
        case "grpo":
            return grpo_surrogate(inputs, clip_low, clip_high)
        case "gspo":
            return gspo_surrogate(inputs, clip_low, clip_high)
        case "cispo":
            return cispo_surrogate(inputs, clip_low, clip_high)


def grpo_surrogate(inputs: SurrogateInputs, clip_low: float, clip_high: float) -> SurrogateTerms:
    """min(r·A, clip(r, 1 − ε_low, 1 + ε_high)·A) with the token ratio r = π/π_old (arXiv:2512.02556 eq. 5)."""
    return _clipped(importance_ratio(inputs.logprobs_N, inputs.old_logprobs_N.detach()), inputs, clip_low, clip_high)


def gspo_surrogate(inputs: SurrogateInputs, clip_low: float, clip_high: float) -> SurrogateTerms:
    """min(s·A, clip(s)·A) with the sequence ratio s = exp((1/|o_i|)·Σ_t log(π/π_old)) (GSPO, arXiv:2507.18071 eq. 5 and 7).

    The sequence's term stands on each of its rows, so `sequence_mean` aggregation gives the paper's objective.
    """
    log_ratio_N = at_least_float32(inputs.logprobs_N) - at_least_float32(inputs.old_logprobs_N.detach())
    mean_B = sequence_mean(log_ratio_N, inputs.sequence_N, inputs.trained_N, inputs.advantages_B.shape[0])
    return _clipped(bounded_exp(mean_B)[inputs.sequence_N], inputs, clip_low, clip_high)


def cispo_surrogate(inputs: SurrogateInputs, clip_low: float, clip_high: float) -> SurrogateTerms:
    """sg(clip(r, 1 − ε_low, 1 + ε_high))·A·log π with the token ratio r (CISPO, arXiv:2506.13585 eq. 4 and 5).

    Clipping bounds the weight of a token's gradient and never removes it. clip_low = 1 means no lower bound, as in the paper.
    """
    logprobs_N = at_least_float32(inputs.logprobs_N)
    ratio_N = importance_ratio(logprobs_N, inputs.old_logprobs_N).detach()
    weight_N = ratio_N.clamp(1 - clip_low, 1 + clip_high)
    return SurrogateTerms(
        value_N=weight_N * inputs.advantages_B[inputs.sequence_N] * logprobs_N,
        ratio_N=ratio_N,
        clipped_low_N=ratio_N < 1 - clip_low,
        clipped_high_N=ratio_N > 1 + clip_high,
    )


def _clipped(ratio_N: Tensor, inputs: SurrogateInputs, clip_low: float, clip_high: float) -> SurrogateTerms:
    advantages_N = inputs.advantages_B[inputs.sequence_N]
    clipped_N = ratio_N.clamp(1 - clip_low, 1 + clip_high)
    detached_N = ratio_N.detach()
    return SurrogateTerms(
        value_N=torch.minimum(ratio_N * advantages_N, clipped_N * advantages_N),
        ratio_N=detached_N,
        # The minimum takes the clipped branch only where clipping makes the term worse.
        clipped_low_N=(detached_N < 1 - clip_low) & (advantages_N < 0),
        clipped_high_N=(detached_N > 1 + clip_high) & (advantages_N > 0),
    )
