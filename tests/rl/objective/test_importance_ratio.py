import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samepath.rl.objective.importance_ratio import LOG_RATIO_BOUND, bounded_exp, importance_ratio, importance_weight
from samepath.rl.recipe.objective import ImportanceSettings


@given(st.floats(-LOG_RATIO_BOUND, LOG_RATIO_BOUND))
def test_bounded_exp_within_bound_is_exp_with_its_derivative(log_ratio: float) -> None:
    value = torch.tensor([log_ratio], dtype=torch.float64, requires_grad=True)
    result = bounded_exp(value)
    result.sum().backward()
    assert torch.equal(result.detach(), value.detach().exp())
    assert torch.equal(value.grad, value.detach().exp())


@pytest.mark.parametrize(("log_ratio", "held_at"), [(1e4, LOG_RATIO_BOUND), (-1e4, -LOG_RATIO_BOUND)])
def test_bounded_exp_beyond_bound_keeps_the_bounded_value_as_derivative(log_ratio: float, held_at: float) -> None:
    value = torch.tensor([log_ratio], requires_grad=True)
    result = bounded_exp(value)
    result.sum().backward()
    assert result.item() == pytest.approx(math.exp(held_at), rel=1e-5)
    assert value.grad.item() == pytest.approx(math.exp(held_at), rel=1e-5)


def test_importance_ratio_of_half_precision_is_computed_in_float32() -> None:
    logprobs_M = torch.tensor([-1.0], dtype=torch.bfloat16)
    behaviour_M = torch.tensor([-1.0078125], dtype=torch.bfloat16)
    assert importance_ratio(logprobs_M, behaviour_M).dtype == torch.float32
    assert importance_ratio(logprobs_M, behaviour_M).item() == pytest.approx(math.exp(0.0078125), rel=1e-6)


# π_old/π_sampler = 0.25, 0.5, 1, 4, 8.
OLD_M = torch.tensor([0.25, 0.5, 1.0, 4.0, 8.0], dtype=torch.float64).log()
SAMPLER_M = torch.zeros(5, dtype=torch.float64)


def test_importance_weight_truncated_caps_from_above_only() -> None:
    weight_M = importance_weight(OLD_M, SAMPLER_M, ImportanceSettings(mode="truncated", cap=2.0))
    torch.testing.assert_close(weight_M, torch.tensor([0.25, 0.5, 1.0, 2.0, 2.0], dtype=torch.float64))


def test_importance_weight_banded_is_zero_outside_the_closed_band() -> None:
    weight_M = importance_weight(OLD_M, SAMPLER_M, ImportanceSettings(mode="banded", band_low=0.5, band_high=5.0))
    torch.testing.assert_close(weight_M, torch.tensor([0.0, 0.5, 1.0, 4.0, 0.0], dtype=torch.float64))


def test_importance_weight_none_is_one() -> None:
    assert torch.equal(importance_weight(OLD_M, SAMPLER_M, ImportanceSettings()), torch.ones(5, dtype=torch.float64))


def test_importance_weight_of_logprobs_with_gradient_carries_none() -> None:
    old_M = OLD_M.clone().requires_grad_()
    assert not importance_weight(old_M, SAMPLER_M, ImportanceSettings(mode="truncated")).requires_grad


def test_importance_ratio_without_the_sampling_mask_is_the_kept_mass_and_with_it_one() -> None:
    logits_V = torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0], dtype=torch.float64)
    kept_V = torch.tensor([True, True, True, False, False])
    full_V = logits_V.log_softmax(0)
    sampler_V = logits_V.masked_fill(~kept_V, -math.inf).log_softmax(0)
    kept_mass = full_V.exp()[kept_V].sum()
    assert kept_mass < 0.97
    # The weights are equal, and yet every token the sampler can draw looks off-policy by the same factor.
    ratio_V = importance_ratio(full_V[kept_V], sampler_V[kept_V])
    torch.testing.assert_close(ratio_V, kept_mass.expand(3), rtol=1e-14, atol=0)
    renormalised_V = full_V[kept_V] - full_V[kept_V].logsumexp(0)
    torch.testing.assert_close(
        importance_ratio(renormalised_V, sampler_V[kept_V]), torch.ones(3, dtype=torch.float64), rtol=1e-14, atol=0
    )
    # Computed over the same support by the same operation it is 1 to the last bit.
    learner_V = logits_V.masked_fill(~kept_V, -math.inf).log_softmax(0)
    assert torch.equal(importance_ratio(learner_V[kept_V], sampler_V[kept_V]), torch.ones(3, dtype=torch.float64))
