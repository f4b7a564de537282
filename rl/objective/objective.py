"""The policy loss: clipped surrogate, off-policy sequence mask and KL to the reference, over one packed micro-batch.

L = −Σ_t w_t·[ M·k_t·surrogate_t − β·KL_t ] (arXiv:2512.02556 eq. 5 to 9).
Axes: B rollouts, J what the mask decides on (rollouts, or with `scope: segment` their segments), M trained tokens of a packed batch.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from samepath.rl.objective.importance_ratio import at_least_float32, importance_weight
from samepath.rl.objective.kl import kl_estimate
from samepath.rl.objective.loss_inputs import LossInputs
from samepath.rl.objective.sequence_mask import kept_sequences, off_policy_statistic
from samepath.rl.objective.surrogate import surrogate
from samepath.rl.recipe.objective import ObjectiveSettings


class NonFiniteError(ValueError):
    """A log-probability of a token in the loss, or a gradient, is no finite number; no weight has changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTerms:
    """The pieces of one loss without gradient, for diagnostics. Rows that give no loss hold 0 (False)."""

    logprobs_M: Tensor
    """[M] nats, the learner now."""
    ratio_M: Tensor
    """[M] the surrogate's unclipped ratio π/π_old."""
    clipped_low_M: Tensor
    """[M] bool, True where the lower clip changed the surrogate."""
    clipped_high_M: Tensor
    """[M] bool, True where the upper clip changed the surrogate."""
    importance_M: Tensor
    """[M] weight π_old/π_sampler on the surrogate; 1 without one."""
    surrogate_M: Tensor
    """[M] the surrogate before M, importance and token weights."""
    kl_M: Tensor
    """[M] nats, the estimate in the loss before β and token weights; 0 without a reference."""
    off_policy_J: Tensor
    """[J] nats per token, mean log(π_sampler/π)."""
    kept_J: Tensor
    """[J] bool, M: False where the surrogate is masked."""


def policy_loss(logprobs_M: Tensor, inputs: LossInputs, settings: ObjectiveSettings) -> tuple[Tensor, LossTerms]:
    """L = −Σ_t w_t·[ M·k_t·surrogate_t − β·KL_t ], a scalar, and its pieces (arXiv:2512.02556 eq. 5 to 9).

    M (eq. 8) multiplies the surrogate only: never the KL term, never a denominator. The losses of all micro-batches of an optimiser
    step add up to the step's loss. Raises ValueError for shapes that do not fit and a missing reference where β is not 0, NonFiniteError
    for log-probabilities of rows in the loss that are not finite.
    """
    _check_shapes(logprobs_M, inputs)
    in_loss_M = inputs.in_loss_M
    learner_M = _finite_logprobs("learner", logprobs_M, in_loss_M)
    sampler_M = _finite_logprobs("sampler", inputs.sampler_logprobs_M, in_loss_M).detach()
    old_M = _finite_logprobs("old", inputs.old_logprobs_M, in_loss_M).detach()
    policy = surrogate(settings, learner_M, replace(inputs, old_logprobs_M=old_M))
    importance_M = importance_weight(old_M, sampler_M, settings.importance)
    off_policy_J = off_policy_statistic(learner_M, sampler_M, inputs.unit_M, in_loss_M, inputs.rollout_J.shape[0])
    if inputs.sums is not None:
        off_policy_J = torch.where(inputs.sums.spread_J, inputs.sums.off_policy_J, off_policy_J)
    kept_J = kept_sequences(inputs.advantages_B[inputs.rollout_J], off_policy_J, settings.off_policy_mask)
    policy_weight_M = kept_J[inputs.unit_M] * importance_M
    if inputs.sums is not None and settings.surrogate == "gspo":
        spread_M = inputs.sums.spread_B[inputs.rollout_M]
        policy_weight_M = torch.where(spread_M, inputs.sums.policy_weight_B[inputs.rollout_M], policy_weight_M)
    kl_M = _kl(learner_M, sampler_M, inputs, settings)

    objective_M = policy_weight_M * policy.value_M - inputs.beta_B[inputs.rollout_M] * kl_M
    loss = -torch.where(in_loss_M, inputs.weights_M * objective_M, 0).sum()
    return loss, LossTerms(
        logprobs_M=learner_M.detach(),
        ratio_M=torch.where(in_loss_M, policy.ratio_M, 0),
        clipped_low_M=policy.clipped_low_M & in_loss_M,
        clipped_high_M=policy.clipped_high_M & in_loss_M,
        importance_M=torch.where(in_loss_M, importance_M, 0),
        surrogate_M=torch.where(in_loss_M, policy.value_M.detach(), 0),
        kl_M=torch.where(in_loss_M, kl_M.detach(), 0),
        off_policy_J=off_policy_J,
        kept_J=kept_J,
    )


def _kl(learner_M: Tensor, sampler_M: Tensor, inputs: LossInputs, settings: ObjectiveSettings) -> Tensor:
    if inputs.reference_logprobs_M is not None:
        reference_M = _finite_logprobs("reference", inputs.reference_logprobs_M, inputs.in_loss_M)
        return kl_estimate(settings.kl.estimator, learner_M, sampler_M, reference_M)
    if bool((inputs.beta_B != 0).any()):
        raise ValueError(
            f"A KL weight above 0 needs reference_logprobs_M; got None with beta up to {float(inputs.beta_B.max())}. "
            "Compute the reference's log-probabilities, or set every beta to 0."
        )
    return torch.zeros_like(sampler_M)


def _finite_logprobs(policy: str, logprobs_M: Tensor, in_loss_M: Tensor) -> Tensor:
    """Log-probabilities in float32 or wider with 0 on rows that give no loss; refuses values that are not finite."""
    bad_M = in_loss_M & ~logprobs_M.detach().isfinite()
    if bool(bad_M.any()):
        first = int(bad_M.nonzero()[0])
        raise NonFiniteError(
            f"The {policy} log-probability of every trained token must be finite; got {int(bad_M.sum())} of {int(in_loss_M.sum())} "
            f"that are not, the first {float(logprobs_M.detach()[first])} at row {first}. A token of probability 0 there means that the "
            "support, temperature or weights differ from those it was sampled with."
        )
    return torch.where(in_loss_M, at_least_float32(logprobs_M), 0)


def _check_shapes(logprobs_M: Tensor, inputs: LossInputs) -> None:
    rows = {
        "sampler_logprobs_M": inputs.sampler_logprobs_M,
        "old_logprobs_M": inputs.old_logprobs_M,
        "reference_logprobs_M": inputs.reference_logprobs_M,
        "rollout_M": inputs.rollout_M,
        "unit_M": inputs.unit_M,
        "in_loss_M": inputs.in_loss_M,
        "weights_M": inputs.weights_M,
    }
    wrong = {name: tuple(row.shape) for name, row in rows.items() if row is not None and row.shape != logprobs_M.shape}
    if logprobs_M.ndim != 1 or wrong:
        raise ValueError(
            f"All rows of a packed batch must have the shape [M] of logprobs_M, {tuple(logprobs_M.shape)}; got {wrong}. "
            "Pack every array with the same segments."
        )
    if inputs.advantages_B.ndim != 1 or inputs.advantages_B.shape != inputs.beta_B.shape:
        raise ValueError(
            f"advantages_B and beta_B must both be [B]; got {tuple(inputs.advantages_B.shape)} and {tuple(inputs.beta_B.shape)}."
        )
