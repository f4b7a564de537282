import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from samepath.rl.diagnostics.numerics import NumericsGap
from samepath.rl.diagnostics.step import HeadStatistics, joined, quantiles, step_metrics
from samepath.rl.objective.loss_inputs import LossInputs
from samepath.rl.objective.objective import LossTerms, policy_loss
from samepath.rl.recipe.objective import KlSettings, ObjectiveSettings, SequenceMaskSettings

LOG2 = math.log(2)


def logs(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).log()


def hand_step() -> tuple[LossInputs, LossTerms, HeadStatistics]:
    """Two micro-batches of one sequence, three trained tokens with r = 1, 2 (A = 1) and 0.5 (A = −1, masked); π_ref = π_s.

    Each micro-batch starts with a row of NaN that gives no loss and must leave no trace.
    """
    chosen = ObjectiveSettings(kl=KlSettings(beta=0.1), off_policy_mask=SequenceMaskSettings(delta=0.5))
    nan = torch.tensor([float("nan")], dtype=torch.float64)
    inputs, terms = [], []
    for sampler, learner, advantage in ((logs(0.5, 0.25), logs(0.5, 0.5), 1.0), (logs(0.4), logs(0.2), -1.0)):
        sampler_M = torch.cat([nan, sampler])
        in_loss_M = ~sampler_M.isnan()
        inputs.append(
            LossInputs(
                sampler_logprobs_M=sampler_M,
                old_logprobs_M=sampler_M,
                reference_logprobs_M=sampler_M,
                advantages_B=torch.tensor([advantage]),
                beta_B=torch.tensor([0.1]),
                rollout_M=torch.zeros(len(sampler_M), dtype=torch.int64),
                unit_M=torch.zeros(len(sampler_M), dtype=torch.int64),
                rollout_J=torch.tensor([0]),
                in_loss_M=in_loss_M,
                weights_M=in_loss_M / 3,
            )
        )
        terms.append(policy_loss(torch.cat([nan, learner]).requires_grad_(), inputs[-1], chosen)[1])
    heads = [
        HeadStatistics(
            entropy_M=torch.tensor([99.0, 1.0, 2.0]),
            kept_mass_M=torch.tensor([0.0, 1.0, 0.75]),
            support_size_M=torch.tensor([99, 0, 4]),
            reference_kl_M=torch.tensor([99.0, 0.125, 0.25]),
        ),
        HeadStatistics(
            entropy_M=torch.tensor([99.0, 6.0]),
            kept_mass_M=torch.tensor([0.0, 0.5]),
            support_size_M=torch.tensor([99, 2]),
            reference_kl_M=torch.tensor([99.0, 0.75]),
        ),
    ]
    return joined(inputs), joined(terms), joined(heads)


EXPECTED_STEP = {
    "policy/ratio": 3.5 / 3,
    "policy/ratio_after_mask": 3 / 3,
    "policy/clip_low": 1 / 3,
    "policy/clip_low_after_mask": 0.0,
    "policy/clip_high": 1 / 3,
    "policy/clip_high_after_mask": 1 / 3,
    "policy/entropy": 3.0,
    "policy/ess": 3.5**2 / (3 * 5.25),
    "policy/ess_after_mask": 9 / (3 * 5),
    "policy/masked_sequences": 1 / 2,
    "policy/masked_tokens": 1 / 3,
    "policy/masked_sequences_negative": 1.0,
    "policy/masked_tokens_negative": 1.0,
    # Statistics −½·log 2 and log 2: quantiles on the line between them.
    "policy/off_policy_p50": 0.25 * LOG2,
    "policy/off_policy_p90": 0.85 * LOG2,
    "policy/off_policy_p99": 0.985 * LOG2,
    "policy/off_policy_max": LOG2,
    "policy/support_full": 1 / 3,
    "policy/kept_mass": 0.75,
    "policy/kept_mass_min": 0.5,
    "policy/support_size_p50": 3.0,
    "policy/support_size_p90": 3.8,
    "policy/support_size_p99": 3.98,
    "policy/support_size_max": 4.0,
    # x = π_ref/π = 1, ½, 2.
    "kl/reference_unbiased": (2 * (LOG2 - 0.5) + 0.5 * (1 - LOG2)) / 3,
    "kl/reference_unbiased_after_mask": 2 * (LOG2 - 0.5) / 3,
    "kl/reference_k1": 0.0,
    "kl/reference_k1_after_mask": LOG2 / 3,
    "kl/reference_k3": 0.5 / 3,
    "kl/reference_k3_after_mask": (LOG2 - 0.5) / 3,
    "kl/reference_full": 1.125 / 3,
    "kl/reference_full_after_mask": 0.375 / 3,
    # r = 1, 2, ½: −log r and r − 1 − log r.
    "kl/sampler_k1": 0.0,
    "kl/sampler_k1_after_mask": -LOG2 / 3,
    "kl/sampler_k3": 0.5 / 3,
    "kl/sampler_k3_after_mask": (1 - LOG2) / 3,
    "kl/sampler_gap_max": LOG2,
    "kl/sampler_k1_numerics": 0.01,
    "kl/sampler_k3_numerics": 0.02,
    "kl/sampler_k1_drift": -0.01,
    "kl/sampler_k3_drift": 0.5 / 3 - 0.02,
}
NUMERICS = NumericsGap(k1=0.01, k3=0.02, max_abs=0.1, num_tokens=10)


def test_step_metrics_of_three_tokens_equal_hand_worked_numbers() -> None:
    assert step_metrics(*hand_step(), NUMERICS) == pytest.approx(EXPECTED_STEP, rel=1e-12, abs=1e-15)


def test_step_metrics_names_and_values_are_plain() -> None:
    for name, value in step_metrics(*hand_step(), NUMERICS).items():
        assert re.fullmatch(r"(policy|kl)/[A-Za-z0-9_.\-]+", name)
        assert type(value) is float


def test_step_metrics_without_reference_or_numerics_leave_those_out_only() -> None:
    inputs, terms, head = hand_step()
    metrics = step_metrics(replace(inputs, reference_logprobs_M=None), terms, head, None)
    missing = {name for name in EXPECTED_STEP if "reference" in name or "numerics" in name or "drift" in name}
    assert set(metrics) == set(EXPECTED_STEP) - missing


def test_step_metrics_without_a_recorded_support_have_no_size_quantiles() -> None:
    inputs, terms, head = hand_step()
    metrics = step_metrics(inputs, terms, replace(head, support_size_M=torch.zeros(5)), None)
    assert metrics["policy/support_full"] == 1.0
    assert "policy/support_size_p50" not in metrics


def test_step_metrics_sequences_without_a_token_in_the_loss_count_nowhere() -> None:
    inputs, terms, head = hand_step()
    longer = replace(
        inputs,
        advantages_B=torch.cat([inputs.advantages_B, torch.tensor([-3.0])]),
        rollout_J=torch.cat([inputs.rollout_J, torch.tensor([2])]),
    )
    terms = replace(
        terms,
        off_policy_J=torch.cat([terms.off_policy_J, torch.zeros(1)]),
        kept_J=torch.cat([terms.kept_J, torch.tensor([True])]),
    )
    assert step_metrics(longer, terms, head, NUMERICS) == pytest.approx(EXPECTED_STEP, rel=1e-12, abs=1e-15)


def test_step_metrics_all_masked_has_no_effective_sample() -> None:
    inputs, terms, head = hand_step()
    metrics = step_metrics(inputs, replace(terms, kept_J=torch.tensor([False, False])), head, None)
    assert metrics["policy/ess_after_mask"] == 0.0
    assert metrics["policy/ratio_after_mask"] == 0.0
    assert metrics["policy/ess"] == pytest.approx(EXPECTED_STEP["policy/ess"])


def test_step_metrics_effective_sample_size_spans_one_to_one_over_m() -> None:
    inputs, terms, head = hand_step()
    even = replace(terms, logprobs_M=inputs.sampler_logprobs_M - 0.7)
    assert step_metrics(inputs, even, head, None)["policy/ess"] == pytest.approx(1.0, rel=1e-14)
    far_M = torch.tensor([0.0, 0.0, 1000.0, 0.0, 0.0], dtype=torch.float64)
    alone = replace(terms, logprobs_M=inputs.sampler_logprobs_M + far_M)
    assert step_metrics(inputs, alone, head, None)["policy/ess"] == pytest.approx(1 / 3, rel=1e-14)


def test_step_metrics_without_a_token_in_the_loss_is_refused() -> None:
    inputs, terms, head = hand_step()
    with pytest.raises(ValueError, match="at least one token in the loss"):
        step_metrics(replace(inputs, in_loss_M=torch.zeros(5, dtype=torch.bool)), terms, head, None)


def test_joined_numbers_sequences_through_and_keeps_every_row() -> None:
    inputs, terms, head = hand_step()
    assert inputs.rollout_M.tolist() == inputs.unit_M.tolist() == [0, 0, 0, 1, 1]
    assert inputs.rollout_J.tolist() == [0, 1]
    assert head.entropy_M.tolist() == [99.0, 1.0, 2.0, 99.0, 6.0]
    torch.testing.assert_close(terms.logprobs_M[inputs.in_loss_M], logs(0.5, 0.5, 0.2))
    assert terms.kept_J.tolist() == [True, False]
    assert inputs.advantages_B.tolist() == [1.0, -1.0]


def test_joined_of_nothing_or_of_columns_that_only_some_have_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one pass"):
        joined([])
    inputs, _, _ = hand_step()
    with pytest.raises(ValueError, match="reference_logprobs_M or none; got 1 of 2"):
        joined([inputs, replace(inputs, reference_logprobs_M=None)])


def test_quantiles_interpolate_on_hand_worked_values() -> None:
    values = np.arange(101, dtype=np.float32)[::-1]
    assert quantiles("x", values) == {"x_p50": 50.0, "x_p90": 90.0, "x_p99": 99.0, "x_max": 100.0}
    assert quantiles("x", values[:0]) == {}
