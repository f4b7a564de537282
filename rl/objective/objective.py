"""The policy loss: clipped surrogate, off-policy sequence mask and KL to the reference, over one packed micro-batch.

L = −Σ_t w_t·[ M·k_t·surrogate_t − β·KL_t ] (arXiv:2512.02556 eq. 5 to 9). Axes: B sequences, N tokens of a packed batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from samepath.rl.objective.importance_ratio import at_least_float32, importance_weight
from samepath.rl.objective.kl import kl_estimate
from samepath.rl.objective.sequence_mask import kept_sequences, off_policy_statistic
from samepath.rl.objective.surrogate import SurrogateInputs, surrogate
from samepath.rl.recipe.objective import (
    ObjectiveSettings,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """Everything but the learner's log-probabilities. Rows with `trained_N` False may hold anything, NaN included.

    Example: two sequences, a prompt row and two sampled tokens, then one sampled token:
        LossInputs(sampler_logprobs_N=[0, −1, −2, −1], old_logprobs_N=None, reference_logprobs_N=[0, −1, −2, −1],
                   advantages_B=[0.5, −0.5], beta_B=[0.001, 0.001], sequence_N=[0, 0, 0, 1], trained_N=[F, T, T, T],
                   weights_N=[0, 0.25, 0.25, 0.5])
    """

    sampler_logprobs_N: Tensor
    """[N] nats, what the engine sampled with."""
    old_logprobs_N: Tensor | None
    """[N] nats, the learner at the start of the step; read only with `old_policy: learner`."""
    reference_logprobs_N: Tensor | None
    """[N] nats, frozen reference; None only if every β is 0."""
    advantages_B: Tensor
    """[B] advantage of each sequence."""
    beta_B: Tensor
    """[B] weight of each sequence's KL term."""
    sequence_N: Tensor
    """[N] int64, which of this micro-batch's B sequences the row belongs to; every sequence stands whole in it."""
    trained_N: Tensor
    """[N] bool, True where the row is a sampled token that counts."""
    weights_N: Tensor
    """[N] this micro-batch's rows of `token_weights` over the whole optimiser batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTerms:
    """The pieces of one loss without gradient, for diagnostics. Rows that are not trained hold 0 (False)."""

    logprobs_N: Tensor
    """[N] nats, the learner now."""
    ratio_N: Tensor
    """[N] the surrogate's unclipped ratio π/π_old."""
    clipped_low_N: Tensor
    """[N] bool, True where the lower clip changed the surrogate."""
    clipped_high_N: Tensor
    """[N] bool, True where the upper clip changed the surrogate."""
    importance_N: Tensor
    """[N] weight π_old/π_sampler on the surrogate; 1 without one."""
    surrogate_N: Tensor
    """[N] the surrogate before M, importance and token weights."""
    kl_N: Tensor
    """[N] nats, the estimate in the loss before β and token weights; 0 without a reference."""
    off_policy_B: Tensor
    """[B] nats per token, mean log(π_sampler/π)."""
    kept_B: Tensor
    """[B] bool, M: False where the surrogate is masked."""


def policy_loss(logprobs_N: Tensor, inputs: LossInputs, settings: ObjectiveSettings) -> tuple[Tensor, LossTerms]:
    """L = −Σ_t w_t·[ M·k_t·surrogate_t − β·KL_t ], a scalar, and its pieces (arXiv:2512.02556 eq. 5 to 9).

    M (eq. 8) multiplies the surrogate only: never the KL term, never a denominator. The losses of all micro-batches of an optimiser
    step add up to the step's loss. Raises ValueError for shapes that do not fit, a missing policy that the settings need, and
    log-probabilities of trained rows that are not finite.
    """
    _check_shapes(logprobs_N, inputs)
    trained_N, sequence_N = inputs.trained_N, inputs.sequence_N
    learner_N = _trained_logprobs("learner", logprobs_N, trained_N)
    sampler_N = _trained_logprobs("sampler", inputs.sampler_logprobs_N, trained_N).detach()
    old_N = _old_logprobs(inputs, settings, sampler_N)
    rows = SurrogateInputs(
        logprobs_N=learner_N,
        old_logprobs_N=old_N,
        advantages_B=inputs.advantages_B,
        sequence_N=sequence_N,
        trained_N=trained_N,
    )
    policy = surrogate(settings.surrogate, rows, settings.clip_low, settings.clip_high)
    importance_N = importance_weight(old_N, sampler_N, settings.importance)
    off_policy_B = off_policy_statistic(learner_N, sampler_N, sequence_N, trained_N, inputs.advantages_B.shape[0])
    kept_B = kept_sequences(inputs.advantages_B, off_policy_B, settings.off_policy_mask)
    kl_N = _kl(learner_N, sampler_N, inputs, settings)

    objective_N = kept_B[sequence_N] * importance_N * policy.value_N - inputs.beta_B[sequence_N] * kl_N
    loss = -torch.where(trained_N, inputs.weights_N * objective_N, 0).sum()
    return loss, LossTerms(
        logprobs_N=learner_N.detach(),
        ratio_N=torch.where(trained_N, policy.ratio_N, 0),
        clipped_low_N=policy.clipped_low_N & trained_N,
        clipped_high_N=policy.clipped_high_N & trained_N,
        importance_N=torch.where(trained_N, importance_N, 0),
        surrogate_N=torch.where(trained_N, policy.value_N.detach(), 0),
        kl_N=torch.where(trained_N, kl_N.detach(), 0),
        off_policy_B=off_policy_B,
        kept_B=kept_B,
    )


def _old_logprobs(inputs: LossInputs, settings: ObjectiveSettings, sampler_N: Tensor) -> Tensor:
    if settings.old_policy == "sampler":
        return sampler_N
    if inputs.old_logprobs_N is None:
        raise ValueError(
            "`old_policy: learner` needs old_logprobs_N, the learner's log-probabilities at the start of the step; got None. "
            "Recompute them before the first update, or set old_policy to `sampler`."
        )
    return _trained_logprobs("old", inputs.old_logprobs_N, inputs.trained_N).detach()


def _kl(learner_N: Tensor, sampler_N: Tensor, inputs: LossInputs, settings: ObjectiveSettings) -> Tensor:
    if inputs.reference_logprobs_N is not None:
        reference_N = _trained_logprobs("reference", inputs.reference_logprobs_N, inputs.trained_N)
        return kl_estimate(settings.kl.estimator, learner_N, sampler_N, reference_N)
    if bool((inputs.beta_B != 0).any()):
        raise ValueError(
            f"A KL weight above 0 needs reference_logprobs_N; got None with beta up to {float(inputs.beta_B.max())}. "
            "Compute the reference's log-probabilities, or set every beta to 0."
        )
    return torch.zeros_like(sampler_N)


def _trained_logprobs(policy: str, logprobs_N: Tensor, trained_N: Tensor) -> Tensor:
    """Log-probabilities in float32 or wider with 0 on rows that are not trained; refuses values that are not finite."""
    bad_N = trained_N & ~logprobs_N.detach().isfinite()
    if bool(bad_N.any()):
        first = int(bad_N.nonzero()[0])
        raise ValueError(
            f"The {policy} log-probability of every trained token must be finite; got {int(bad_N.sum())} of {int(trained_N.sum())} "
            f"that are not, the first {float(logprobs_N[first])} at row {first}. A token of probability 0 there means that the "
            "support, temperature or weights differ from those it was sampled with."
        )
    return torch.where(trained_N, at_least_float32(logprobs_N), 0)


def _check_shapes(logprobs_N: Tensor, inputs: LossInputs) -> None:
    rows = {
        "sampler_logprobs_N": inputs.sampler_logprobs_N,
        "old_logprobs_N": inputs.old_logprobs_N,
        "reference_logprobs_N": inputs.reference_logprobs_N,
        "sequence_N": inputs.sequence_N,
        "trained_N": inputs.trained_N,
        "weights_N": inputs.weights_N,
    }
    wrong = {name: tuple(row.shape) for name, row in rows.items() if row is not None and row.shape != logprobs_N.shape}
    if logprobs_N.ndim != 1 or wrong:
        raise ValueError(
            f"All rows of a packed batch must have the shape [N] of logprobs_N, {tuple(logprobs_N.shape)}; got {wrong}. "
            "Pack every array with the same segments."
        )
    if inputs.advantages_B.ndim != 1 or inputs.advantages_B.shape != inputs.beta_B.shape:
        raise ValueError(
            f"advantages_B and beta_B must both be [B]; got {tuple(inputs.advantages_B.shape)} and {tuple(inputs.beta_B.shape)}."
        )
