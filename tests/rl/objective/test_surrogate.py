import math

import pytest
import torch
from torch import Tensor

from samepath.rl.objective.surrogate import SurrogateInputs, cispo_surrogate, grpo_surrogate, gspo_surrogate, surrogate


def one_token_each(ratios: list[float], advantages: list[float]) -> tuple[Tensor, SurrogateInputs]:
    """One-token sequences with π_old = 0.5 and the given ratios."""
    old_N = torch.full((len(ratios),), math.log(0.5), dtype=torch.float64)
    logprobs_N = (old_N + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_()
    inputs = SurrogateInputs(
        logprobs_N=logprobs_N,
        old_logprobs_N=old_N,
        advantages_B=torch.tensor(advantages, dtype=torch.float64),
        sequence_N=torch.arange(len(ratios)),
        trained_N=torch.ones(len(ratios), dtype=torch.bool),
    )
    return logprobs_N, inputs


@pytest.mark.parametrize("clipped", [grpo_surrogate, gspo_surrogate])
def test_clipped_surrogate_hand_worked_values_gradients_and_flags(clipped) -> None:
    # Clip range [0.8, 1.3]. The minimum keeps the unclipped branch where moving back is wanted.
    ratios = [0.5, 0.5, 1.0, 2.0, 2.0, 0.9]
    advantages = [2.0, -2.0, 3.0, 2.0, -2.0, -1.0]
    logprobs_N, inputs = one_token_each(ratios, advantages)
    terms = clipped(inputs, 0.2, 0.3)
    (gradient_N,) = torch.autograd.grad(terms.value_N.sum(), logprobs_N)
    expected_N = torch.tensor([1.0, -1.6, 3.0, 2.6, -4.0, -0.9], dtype=torch.float64)
    torch.testing.assert_close(terms.value_N.detach(), expected_N)
    # r·A where the ratio is free, 0 where it is clipped.
    torch.testing.assert_close(gradient_N, torch.tensor([1.0, 0.0, 3.0, 0.0, -4.0, -0.9], dtype=torch.float64))
    assert terms.clipped_low_N.tolist() == [False, True, False, False, False, False]
    assert terms.clipped_high_N.tolist() == [False, False, False, True, False, False]
    torch.testing.assert_close(terms.ratio_N, torch.tensor(ratios, dtype=torch.float64))


def test_cispo_surrogate_hand_worked_bounds_the_weight_and_keeps_every_gradient() -> None:
    logprobs_N, inputs = one_token_each([0.5, 0.5, 1.0, 2.0], [2.0, -2.0, 3.0, 2.0])
    terms = cispo_surrogate(inputs, 0.2, 0.3)
    (gradient_N,) = torch.autograd.grad(terms.value_N.sum(), logprobs_N)
    weighted_N = torch.tensor([1.6, -1.6, 3.0, 2.6], dtype=torch.float64)
    torch.testing.assert_close(gradient_N, weighted_N)
    torch.testing.assert_close(terms.value_N.detach(), weighted_N * logprobs_N.detach())
    assert terms.clipped_low_N.tolist() == [True, True, False, False]
    assert terms.clipped_high_N.tolist() == [False, False, False, True]


def test_cispo_surrogate_with_clip_low_one_has_no_lower_bound() -> None:
    logprobs_N, inputs = one_token_each([1e-3], [1.0])
    (gradient_N,) = torch.autograd.grad(cispo_surrogate(inputs, 1.0, 0.3).value_N.sum(), logprobs_N)
    assert gradient_N.item() == pytest.approx(1e-3)


def test_gspo_surrogate_ratio_is_the_geometric_mean_of_trained_tokens() -> None:
    # Sequence 0: ratios 2 and 0.5·1.21 → √1.21 = 1.1; row 1 is not trained. Sequence 1: ratio 1.2.
    log_ratio_N = torch.tensor([2.0, 99.0, 0.605, 1.2], dtype=torch.float64).log()
    logprobs_N = log_ratio_N.clone().requires_grad_()
    inputs = SurrogateInputs(
        logprobs_N=logprobs_N,
        old_logprobs_N=torch.zeros(4, dtype=torch.float64),
        advantages_B=torch.tensor([1.0, -1.0], dtype=torch.float64),
        sequence_N=torch.tensor([0, 0, 0, 1]),
        trained_N=torch.tensor([True, False, True, True]),
    )
    terms = gspo_surrogate(inputs, 0.5, 0.5)
    torch.testing.assert_close(terms.ratio_N[[0, 2, 3]], torch.tensor([1.1, 1.1, 1.2], dtype=torch.float64))
    # With weights 1/|o| the objective is s_0·1 − s_1 and its gradient s/|o| on each token of its sequence.
    weights_N = torch.tensor([0.5, 0.0, 0.5, 1.0], dtype=torch.float64)
    (gradient_N,) = torch.autograd.grad((weights_N * terms.value_N).sum(), logprobs_N)
    torch.testing.assert_close(gradient_N, torch.tensor([0.55, 0.0, 0.55, -1.2], dtype=torch.float64))


@pytest.mark.parametrize("name", ["grpo", "gspo", "cispo"])
def test_surrogate_at_ratio_one_gives_the_reinforce_gradient(name) -> None:
    advantages = [1.5, -0.5, 0.0]
    logprobs_N, inputs = one_token_each([1.0, 1.0, 1.0], advantages)
    terms = surrogate(name, inputs, 0.2, 0.28)
    (gradient_N,) = torch.autograd.grad(terms.value_N.sum(), logprobs_N)
    torch.testing.assert_close(gradient_N, torch.tensor(advantages, dtype=torch.float64))
    assert not terms.clipped_low_N.any()
    assert not terms.clipped_high_N.any()


def test_surrogate_name_chooses_the_function() -> None:
    _, inputs = one_token_each([2.0, 0.5], [2.0, -2.0])
    for name, function in (("grpo", grpo_surrogate), ("gspo", gspo_surrogate), ("cispo", cispo_surrogate)):
        assert torch.equal(surrogate(name, inputs, 0.2, 0.3).value_N, function(inputs, 0.2, 0.3).value_N)


@pytest.mark.parametrize("name", ["grpo", "gspo", "cispo"])
def test_surrogate_of_extreme_ratio_is_finite_in_float32(name) -> None:
    logprobs_N = torch.tensor([-1e-6, -400.0], requires_grad=True)
    inputs = SurrogateInputs(
        logprobs_N=logprobs_N,
        old_logprobs_N=torch.tensor([-400.0, -1e-6]),
        advantages_B=torch.tensor([-1.0, 1.0]),
        sequence_N=torch.tensor([0, 1]),
        trained_N=torch.tensor([True, True]),
    )
    terms = surrogate(name, inputs, 0.2, 0.3)
    (gradient_N,) = torch.autograd.grad(terms.value_N.sum(), logprobs_N)
    assert terms.value_N.isfinite().all()
    assert gradient_N.isfinite().all()
