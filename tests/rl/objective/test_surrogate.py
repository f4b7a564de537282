import math

import pytest
import torch
from torch import Tensor

from samepath.rl.objective.loss_inputs import LossInputs
from samepath.rl.objective.surrogate import cispo_surrogate, grpo_surrogate, gspo_surrogate, surrogate
from samepath.rl.recipe.objective import ObjectiveSettings


def loss_inputs(old_logprobs_M: Tensor, advantages_B: Tensor, rollout_M: Tensor, in_loss_M: Tensor) -> LossInputs:
    """What a surrogate reads; the rest is NaN."""
    unread_M = torch.full_like(old_logprobs_M, float("nan"))
    return LossInputs(
        sampler_logprobs_M=unread_M,
        old_logprobs_M=old_logprobs_M,
        reference_logprobs_M=None,
        advantages_B=advantages_B,
        beta_B=torch.full_like(advantages_B, float("nan")),
        rollout_M=rollout_M,
        unit_M=rollout_M,
        rollout_J=torch.arange(len(advantages_B)),
        in_loss_M=in_loss_M,
        weights_M=unread_M,
    )


def one_token_each(ratios: list[float], advantages: list[float]) -> tuple[Tensor, LossInputs]:
    """One-token sequences with π_old = 0.5 and the given ratios."""
    old_M = torch.full((len(ratios),), math.log(0.5), dtype=torch.float64)
    logprobs_M = (old_M + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_()
    inputs = loss_inputs(
        old_logprobs_M=old_M,
        advantages_B=torch.tensor(advantages, dtype=torch.float64),
        rollout_M=torch.arange(len(ratios)),
        in_loss_M=torch.ones(len(ratios), dtype=torch.bool),
    )
    return logprobs_M, inputs


@pytest.mark.parametrize("clipped", [grpo_surrogate, gspo_surrogate])
def test_clipped_surrogate_hand_worked_values_gradients_and_flags(clipped) -> None:
    # Clip range [0.8, 1.3]. The minimum keeps the unclipped branch where moving back is wanted.
    ratios = [0.5, 0.5, 1.0, 2.0, 2.0, 0.9]
    advantages = [2.0, -2.0, 3.0, 2.0, -2.0, -1.0]
    logprobs_M, inputs = one_token_each(ratios, advantages)
    terms = clipped(logprobs_M, inputs, 0.2, 0.3)
    (gradient_M,) = torch.autograd.grad(terms.value_M.sum(), logprobs_M)
    expected_M = torch.tensor([1.0, -1.6, 3.0, 2.6, -4.0, -0.9], dtype=torch.float64)
    torch.testing.assert_close(terms.value_M.detach(), expected_M)
    # r·A where the ratio is free, 0 where it is clipped.
    torch.testing.assert_close(gradient_M, torch.tensor([1.0, 0.0, 3.0, 0.0, -4.0, -0.9], dtype=torch.float64))
    assert terms.clipped_low_M.tolist() == [False, True, False, False, False, False]
    assert terms.clipped_high_M.tolist() == [False, False, False, True, False, False]
    torch.testing.assert_close(terms.ratio_M, torch.tensor(ratios, dtype=torch.float64))


def test_cispo_surrogate_hand_worked_bounds_the_weight_and_keeps_every_gradient() -> None:
    logprobs_M, inputs = one_token_each([0.5, 0.5, 1.0, 2.0], [2.0, -2.0, 3.0, 2.0])
    terms = cispo_surrogate(logprobs_M, inputs, 0.2, 0.3)
    (gradient_M,) = torch.autograd.grad(terms.value_M.sum(), logprobs_M)
    weighted_M = torch.tensor([1.6, -1.6, 3.0, 2.6], dtype=torch.float64)
    torch.testing.assert_close(gradient_M, weighted_M)
    torch.testing.assert_close(terms.value_M.detach(), weighted_M * logprobs_M.detach())
    assert terms.clipped_low_M.tolist() == [True, True, False, False]
    assert terms.clipped_high_M.tolist() == [False, False, False, True]


def test_cispo_surrogate_with_clip_low_one_has_no_lower_bound() -> None:
    logprobs_M, inputs = one_token_each([1e-3], [1.0])
    (gradient_M,) = torch.autograd.grad(cispo_surrogate(logprobs_M, inputs, 1.0, 0.3).value_M.sum(), logprobs_M)
    assert gradient_M.item() == pytest.approx(1e-3)


def test_gspo_surrogate_ratio_is_the_geometric_mean_of_trained_tokens() -> None:
    # Sequence 0: ratios 2 and 0.5·1.21 → √1.21 = 1.1; row 1 is not trained. Sequence 1: ratio 1.2.
    log_ratio_M = torch.tensor([2.0, 99.0, 0.605, 1.2], dtype=torch.float64).log()
    logprobs_M = log_ratio_M.clone().requires_grad_()
    inputs = loss_inputs(
        old_logprobs_M=torch.zeros(4, dtype=torch.float64),
        advantages_B=torch.tensor([1.0, -1.0], dtype=torch.float64),
        rollout_M=torch.tensor([0, 0, 0, 1]),
        in_loss_M=torch.tensor([True, False, True, True]),
    )
    terms = gspo_surrogate(logprobs_M, inputs, 0.5, 0.5)
    torch.testing.assert_close(terms.ratio_M[[0, 2, 3]], torch.tensor([1.1, 1.1, 1.2], dtype=torch.float64))
    # With weights 1/|o| the objective is s_0·1 − s_1 and its gradient s/|o| on each token of its sequence.
    weights_M = torch.tensor([0.5, 0.0, 0.5, 1.0], dtype=torch.float64)
    (gradient_M,) = torch.autograd.grad((weights_M * terms.value_M).sum(), logprobs_M)
    torch.testing.assert_close(gradient_M, torch.tensor([0.55, 0.0, 0.55, -1.2], dtype=torch.float64))


@pytest.mark.parametrize("name", ["grpo", "gspo", "cispo"])
def test_surrogate_at_ratio_one_gives_the_reinforce_gradient(name) -> None:
    advantages = [1.5, -0.5, 0.0]
    logprobs_M, inputs = one_token_each([1.0, 1.0, 1.0], advantages)
    terms = surrogate(ObjectiveSettings(surrogate=name), logprobs_M, inputs)
    (gradient_M,) = torch.autograd.grad(terms.value_M.sum(), logprobs_M)
    torch.testing.assert_close(gradient_M, torch.tensor(advantages, dtype=torch.float64))
    assert not terms.clipped_low_M.any()
    assert not terms.clipped_high_M.any()


def test_surrogate_name_chooses_the_function() -> None:
    logprobs_M, inputs = one_token_each([2.0, 0.5], [2.0, -2.0])
    for name, function in (("grpo", grpo_surrogate), ("gspo", gspo_surrogate), ("cispo", cispo_surrogate)):
        assert torch.equal(
            surrogate(ObjectiveSettings(surrogate=name, clip_high=0.3), logprobs_M, inputs).value_M,
            function(logprobs_M, inputs, 0.2, 0.3).value_M,
        )


@pytest.mark.parametrize("name", ["grpo", "gspo", "cispo"])
def test_surrogate_of_extreme_ratio_is_finite_in_float32(name) -> None:
    logprobs_M = torch.tensor([-1e-6, -400.0], requires_grad=True)
    inputs = loss_inputs(
        old_logprobs_M=torch.tensor([-400.0, -1e-6]),
        advantages_B=torch.tensor([-1.0, 1.0]),
        rollout_M=torch.tensor([0, 1]),
        in_loss_M=torch.tensor([True, True]),
    )
    terms = surrogate(ObjectiveSettings(surrogate=name, clip_high=0.3), logprobs_M, inputs)
    (gradient_M,) = torch.autograd.grad(terms.value_M.sum(), logprobs_M)
    assert terms.value_M.isfinite().all()
    assert gradient_M.isfinite().all()
