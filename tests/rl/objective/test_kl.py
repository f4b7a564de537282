"""The categorical tests enumerate every outcome, so that expectations are exact sums in float64."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from samepath.rl.objective.kl import beta_per_rollout, k1, k2, k3, kl_estimate, unbiased_kl
from samepath.rl.recipe.objective import KlSettings

LOGITS_V = torch.tensor([0.3, -0.7, 1.1, 0.0, -2.0], dtype=torch.float64)
REFERENCE_V = torch.tensor([0.9, 0.2, -0.4, 0.5, -0.3], dtype=torch.float64).log_softmax(0)
SAMPLERS = [
    LOGITS_V.log_softmax(0),
    torch.zeros(5, dtype=torch.float64).log_softmax(0),
    torch.tensor([-1.0, 2.0, 0.5, -0.5, 1.5], dtype=torch.float64).log_softmax(0),
    REFERENCE_V,
]


def expectation(sampler_V: Tensor, estimate: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """(value, gradient by the logits) of Σ_v π_sampler(v)·estimate(v)."""
    logits_V = LOGITS_V.clone().requires_grad_()
    value = (sampler_V.exp() * estimate(logits_V.log_softmax(0), sampler_V)).sum()
    (gradient_V,) = torch.autograd.grad(value, logits_V)
    return value.detach(), gradient_V


def analytic(kl_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    logits_V = LOGITS_V.clone().requires_grad_()
    value = kl_of(logits_V.log_softmax(0))
    (gradient_V,) = torch.autograd.grad(value, logits_V)
    return value.detach(), gradient_V


def reverse_kl(logprobs_V: Tensor) -> Tensor:
    return (logprobs_V.exp() * (logprobs_V - REFERENCE_V)).sum()


def forward_kl(logprobs_V: Tensor) -> Tensor:
    return (REFERENCE_V.exp() * (REFERENCE_V - logprobs_V)).sum()


@pytest.mark.parametrize("sampler_V", SAMPLERS)
def test_unbiased_kl_under_any_sampler_has_the_analytic_value_and_gradient(sampler_V: Tensor) -> None:
    value, gradient_V = expectation(sampler_V, lambda now_V, sampler_V: unbiased_kl(now_V, sampler_V, REFERENCE_V))
    true_value, true_gradient_V = analytic(reverse_kl)
    torch.testing.assert_close(value, true_value, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient_V, true_gradient_V, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sampler_V", SAMPLERS)
def test_unbiased_kl_with_detached_ratio_would_have_the_forward_kl_gradient(sampler_V: Tensor) -> None:
    def detached(now_V: Tensor, sampler_V: Tensor) -> Tensor:
        log_x_V = REFERENCE_V - now_V
        return (now_V - sampler_V).exp().detach() * (log_x_V.exp() - log_x_V - 1)

    value, gradient_V = expectation(sampler_V, detached)
    true_value, true_gradient_V = analytic(reverse_kl)
    torch.testing.assert_close(value, true_value, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient_V, analytic(forward_kl)[1], rtol=0, atol=1e-12)
    assert (gradient_V - true_gradient_V).abs().max() > 0.05


def test_k3_on_policy_has_the_analytic_value_and_the_forward_kl_gradient() -> None:
    on_policy_V = SAMPLERS[0]
    value, gradient_V = expectation(on_policy_V, lambda now_V, _: k3(now_V, REFERENCE_V))
    torch.testing.assert_close(value, analytic(reverse_kl)[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient_V, analytic(forward_kl)[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("sampler_V", SAMPLERS[1:])
def test_k3_off_policy_is_biased_in_value_and_gradient(sampler_V: Tensor) -> None:
    value, gradient_V = expectation(sampler_V, lambda now_V, _: k3(now_V, REFERENCE_V))
    true_value, true_gradient_V = analytic(reverse_kl)
    assert (value - true_value).abs() > 0.01
    assert (gradient_V - true_gradient_V).abs().max() > 0.05


def test_k1_on_policy_has_the_analytic_value_and_no_gradient() -> None:
    value, gradient_V = expectation(SAMPLERS[0], lambda now_V, _: k1(now_V, REFERENCE_V))
    torch.testing.assert_close(value, analytic(reverse_kl)[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient_V, torch.zeros_like(gradient_V), rtol=0, atol=1e-12)


def test_k2_on_policy_has_the_analytic_gradient_and_another_value() -> None:
    value, gradient_V = expectation(SAMPLERS[0], lambda now_V, _: k2(now_V, REFERENCE_V))
    true_value, true_gradient_V = analytic(reverse_kl)
    torch.testing.assert_close(gradient_V, true_gradient_V, rtol=0, atol=1e-12)
    assert (value - true_value).abs() > 0.01


def test_kl_estimate_hand_worked_token() -> None:
    # π = 0.5, π_sampler = 0.25, π_ref = 0.2: x = 0.4, ρ = 2, log(π/π_ref) = log 2.5.
    arguments = [torch.tensor([value], dtype=torch.float64).log() for value in (0.5, 0.25, 0.2)]
    expected = {
        "unbiased": 2 * (0.4 + math.log(2.5) - 1),
        "k1": math.log(2.5),
        "k2": 0.5 * math.log(2.5) ** 2,
        "k3": 0.4 + math.log(2.5) - 1,
    }
    for estimator, value in expected.items():
        assert kl_estimate(estimator, *arguments).item() == pytest.approx(value, rel=1e-14)


@given(st.tuples(*[st.floats(-9.9, 0.0)] * 3))
def test_unbiased_kl_within_bound_equals_the_formula_as_printed(logprobs: tuple[float, float, float]) -> None:
    now, sampler, reference = (torch.tensor([value], dtype=torch.float64) for value in logprobs)
    now.requires_grad_()
    estimate = unbiased_kl(now, sampler, reference)
    (gradient,) = torch.autograd.grad(estimate, now)
    ratio, x = math.exp(logprobs[0] - logprobs[1]), math.exp(logprobs[2] - logprobs[0])
    scale = ratio * (1 + x)
    assert estimate.item() == pytest.approx(ratio * (x - math.log(x) - 1), rel=1e-12, abs=1e-12 * scale)
    assert gradient.item() == pytest.approx(ratio * (logprobs[0] - logprobs[2]), rel=1e-12, abs=1e-12 * scale)


def test_unbiased_kl_of_unlikely_token_in_float32_keeps_the_digits_of_its_gradient() -> None:
    # log x = 18: differentiated term by term, x = 6.6e7 would swallow the true gradient of −18 in float32.
    now = torch.tensor([-18.5], requires_grad=True)
    (gradient,) = torch.autograd.grad(unbiased_kl(now, torch.tensor([-18.5]), torch.tensor([-0.5])), now)
    assert gradient.item() == pytest.approx(-18.0, rel=1e-6)


def test_unbiased_kl_at_the_reference_is_exactly_zero() -> None:
    now_M = torch.tensor([-0.1, -3.0, -7.7])
    assert torch.equal(unbiased_kl(now_M, torch.tensor([-0.3, -2.0, -7.7]), now_M.clone()), torch.zeros(3))


@pytest.mark.parametrize("estimator", ["unbiased", "k1", "k2", "k3"])
def test_kl_estimate_of_extreme_logprobs_is_finite_in_float32(estimator: str) -> None:
    now_M = torch.tensor([-500.0, -1e-8, -500.0], requires_grad=True)
    estimate_M = kl_estimate(
        estimator, now_M, torch.tensor([-1e-8, -500.0, -500.0]), torch.tensor([-1e-8, -500.0, 0.0])
    )
    (gradient_M,) = torch.autograd.grad(estimate_M.sum(), now_M)
    assert estimate_M.isfinite().all()
    assert gradient_M.isfinite().all()


@pytest.mark.parametrize("estimator", ["unbiased", "k1", "k2", "k3"])
def test_kl_estimate_sends_gradient_to_the_learner_only(estimator: str) -> None:
    now, sampler, reference = (torch.tensor([value], requires_grad=True) for value in (-1.0, -1.5, -2.0))
    kl_estimate(estimator, now, sampler, reference).sum().backward()
    assert now.grad is not None
    assert sampler.grad is None
    assert reference.grad is None


def test_beta_per_rollout_named_dataset_overrides_the_default() -> None:
    settings = KlSettings(beta=0.5, beta_by_dataset={"mathematics": 0.0})
    assert beta_per_rollout(["chat", "mathematics", "chat"], settings).tolist() == [0.5, 0.0, 0.5]
