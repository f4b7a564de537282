"""What the policy loss, its surrogates and the step's diagnostics know of the tokens that are trained. Axes: B sequences, M trained tokens."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """Everything but the learner's log-probabilities. Rows with `in_loss_M` False may hold anything, NaN included.

    Example: two sequences, one of two tokens and a third that gives no loss, one of a single token:
        LossInputs(sampler_logprobs_M=[−1, −2, 0, −1], old_logprobs_M=[−1, −2, 0, −1], reference_logprobs_M=[−1, −2, 0, −1],
                   advantages_B=[0.5, −0.5], beta_B=[0.001, 0.001], sequence_M=[0, 0, 0, 1], in_loss_M=[T, T, F, T],
                   weights_M=[0.25, 0.25, 0, 0.5])
    """

    sampler_logprobs_M: Tensor
    """[M] nats, what the engine sampled with."""
    old_logprobs_M: Tensor
    """[M] nats, the ratio's denominator: the engine's log-probabilities, or the learner's at the start of the step."""
    reference_logprobs_M: Tensor | None
    """[M] nats, frozen reference; None only if every β is 0."""
    advantages_B: Tensor
    """[B] advantage of each sequence."""
    beta_B: Tensor
    """[B] weight of each sequence's KL term."""
    sequence_M: Tensor
    """[M] int64, which of the B sequences the row belongs to; every sequence stands whole in the record."""
    in_loss_M: Tensor
    """[M] bool, True where the row gives loss."""
    weights_M: Tensor
    """[M] these rows of `token_weights` over the whole optimiser batch."""
