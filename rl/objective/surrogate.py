"""Policy surrogates: what stands in for the advantage-weighted probability ratio, per token and with gradient.

Three behind one signature, GRPO's clipped token ratio, GSPO's clipped sequence ratio and CISPO's clipped weight on log π, and the user's own.
Axes: B rollouts, M trained tokens of a packed batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from samepath.rl.objective.aggregation import rollout_mean
from samepath.rl.objective.importance_ratio import at_least_float32, bounded_exp, importance_ratio
from samepath.rl.objective.loss_inputs import LossInputs
from samepath.rl.objective.own_surrogate import own_surrogate
from samepath.rl.recipe.objective import ObjectiveSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class SurrogateTerms:
    """A surrogate per token, to be maximised, and what clipping did. Only rows in the loss have a meaning."""

    value_M: Tensor
    """[M] with gradient."""
    ratio_M: Tensor
    """[M] unclipped ratio π/π_old without gradient; a rollout's one ratio on each of its rows for `gspo`."""
    clipped_low_M: Tensor
    """[M] bool, True where the lower clip changed the term."""
    clipped_high_M: Tensor
    """[M] bool, True where the upper clip changed the term."""


def surrogate(settings: ObjectiveSettings, logprobs_M: Tensor, inputs: LossInputs) -> SurrogateTerms:
    """The surrogate that was chosen of the learner's log-probabilities (with gradient), ratios clipped to [1 − clip_low, 1 + clip_high].

    Raises SurrogateError for a function of the user's own that fails.
    """
    clip_low, clip_high = settings.clip_low, settings.clip_high
    match settings.surrogate:
        case "grpo":
            return grpo_surrogate(logprobs_M, inputs, clip_low, clip_high)
        case "gspo":
            return gspo_surrogate(logprobs_M, inputs, clip_low, clip_high)
        case "cispo":
            return cispo_surrogate(logprobs_M, inputs, clip_low, clip_high)
        case path:
            own = own_surrogate(path, settings.surrogate_options, clip_low, clip_high)
            nowhere_M = torch.zeros_like(inputs.in_loss_M)
            return SurrogateTerms(
                value_M=own.value(logprobs_M, inputs, clip_low, clip_high),
                ratio_M=own.ratio(logprobs_M, inputs),
                clipped_low_M=nowhere_M,
                clipped_high_M=nowhere_M,
            )


def grpo_surrogate(logprobs_M: Tensor, inputs: LossInputs, clip_low: float, clip_high: float) -> SurrogateTerms:
    """min(r·A, clip(r, 1 − ε_low, 1 + ε_high)·A) with the token ratio r = π/π_old (arXiv:2512.02556 eq. 5)."""
    return _clipped(importance_ratio(logprobs_M, inputs.old_logprobs_M.detach()), inputs, clip_low, clip_high)


def gspo_surrogate(logprobs_M: Tensor, inputs: LossInputs, clip_low: float, clip_high: float) -> SurrogateTerms:
    """min(s·A, clip(s)·A) with the sequence ratio s = exp((1/|o_i|)·Σ_t log(π/π_old)) (GSPO, arXiv:2507.18071 eq. 5 and 7).

    The rollout's term stands on each of its rows, so `sequence_mean` aggregation gives the paper's objective. Of a rollout that is spread over
    passes s is known (`RolloutSums`), and each row carries the gradient of its own token alone: the sum over all rows is the same.
    """
    log_ratio_M = at_least_float32(logprobs_M) - at_least_float32(inputs.old_logprobs_M.detach())
    rollout_M, sums = inputs.rollout_M, inputs.sums
    mean_B = rollout_mean(log_ratio_M, rollout_M, inputs.in_loss_M, inputs.advantages_B.shape[0])
    ratio_M = bounded_exp(mean_B)[rollout_M]
    if sums is not None:
        # Its value is 1; a weight that is the same on all rows of a rollout makes the sum of their gradients that of the mean's.
        own_M = torch.where(inputs.in_loss_M, log_ratio_M - log_ratio_M.detach(), 0).exp()
        ratio_M = torch.where(sums.spread_B[rollout_M], bounded_exp(sums.log_ratio_B)[rollout_M] * own_M, ratio_M)
    return _clipped(ratio_M, inputs, clip_low, clip_high)


def cispo_surrogate(logprobs_M: Tensor, inputs: LossInputs, clip_low: float, clip_high: float) -> SurrogateTerms:
    """sg(clip(r, 1 − ε_low, 1 + ε_high))·A·log π with the token ratio r (CISPO, arXiv:2506.13585 eq. 4 and 5).

    Clipping bounds the weight of a token's gradient and never removes it. clip_low = 1 means no lower bound, as in the paper.
    """
    logprobs_M = at_least_float32(logprobs_M)
    ratio_M = importance_ratio(logprobs_M, inputs.old_logprobs_M).detach()
    weight_M = ratio_M.clamp(1 - clip_low, 1 + clip_high)
    return SurrogateTerms(
        value_M=weight_M * inputs.advantages_B[inputs.rollout_M] * logprobs_M,
        ratio_M=ratio_M,
        clipped_low_M=ratio_M < 1 - clip_low,
        clipped_high_M=ratio_M > 1 + clip_high,
    )


def _clipped(ratio_M: Tensor, inputs: LossInputs, clip_low: float, clip_high: float) -> SurrogateTerms:
    advantages_M = inputs.advantages_B[inputs.rollout_M]
    clipped_M = ratio_M.clamp(1 - clip_low, 1 + clip_high)
    detached_M = ratio_M.detach()
    return SurrogateTerms(
        value_M=torch.minimum(ratio_M * advantages_M, clipped_M * advantages_M),
        ratio_M=detached_M,
        # The minimum takes the clipped branch only where clipping makes the term worse.
        clipped_low_M=(detached_M < 1 - clip_low) & (advantages_M < 0),
        clipped_high_M=(detached_M > 1 + clip_high) & (advantages_M > 0),
    )
