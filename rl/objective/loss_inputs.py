"""What the policy loss, its surrogates and the step's diagnostics know of the tokens that are trained.

Axes: B rollouts, J what the off-policy mask decides on (rollouts, or with `scope: segment` their segments), M trained tokens.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSums:
    """What is known beforehand of rollouts that are spread over several passes, from a pass of all their tokens at the same weights.

    Example: of two rollouts the second is spread, and its mask decides on rollouts:
        RolloutSums(spread_B=[F, T], log_ratio_B=[0, 0.01], policy_weight_B=[0, 1], spread_J=[F, T], off_policy_J=[0, 0.02])
    """

    spread_B: Tensor
    """[B] bool, True where other passes hold a part of the rollout; the other columns count there alone."""
    log_ratio_B: Tensor
    """[B] nats per token, mean log(π/π_old) of all its tokens: the sequence ratio of `gspo`."""
    policy_weight_B: Tensor
    """[B] mean of mask times importance weight over all its tokens, by which `gspo` weighs the one ratio of a rollout."""
    spread_J: Tensor
    """[J] bool, True where other passes hold a part of what the mask decides on."""
    off_policy_J: Tensor
    """[J] nats per token, the statistic of all its tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """Everything but the learner's log-probabilities. Rows with `in_loss_M` False may hold anything, NaN included.

    Example: two rollouts, one of two tokens and a third that gives no loss, one of a single token:
        LossInputs(sampler_logprobs_M=[−1, −2, 0, −1], old_logprobs_M=[−1, −2, 0, −1], reference_logprobs_M=[−1, −2, 0, −1],
                   advantages_B=[0.5, −0.5], beta_B=[0.001, 0.001], rollout_M=[0, 0, 0, 1], unit_M=[0, 0, 0, 1], rollout_J=[0, 1],
                   in_loss_M=[T, T, F, T], weights_M=[0.25, 0.25, 0, 0.5])
    """

    sampler_logprobs_M: Tensor
    """[M] nats, what the engine sampled with."""
    old_logprobs_M: Tensor
    """[M] nats, the ratio's denominator: the engine's log-probabilities, or the learner's at the start of the step."""
    reference_logprobs_M: Tensor | None
    """[M] nats, frozen reference; None only if every β is 0."""
    advantages_B: Tensor
    """[B] advantage of each rollout."""
    beta_B: Tensor
    """[B] weight of each rollout's KL term."""
    rollout_M: Tensor
    """[M] int64, which of the B rollouts the row belongs to; every rollout stands whole in the record, unless `sums` says otherwise."""
    unit_M: Tensor
    """[M] int64, which of the J the off-policy mask decides on for the row."""
    rollout_J: Tensor
    """[J] int64, the rollout of each."""
    in_loss_M: Tensor
    """[M] bool, True where the row gives loss."""
    weights_M: Tensor
    """[M] these rows of `token_weights` over the whole optimiser batch."""
    sums: RolloutSums | None = None
    """Of rollouts that do not stand whole in the record; None if all do."""
