import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from samepath.rl.diagnostics.numerics import NumericsGap
from samepath.rl.diagnostics.step import HeadStatistics, StepSequences, StepTokens, gather_step, quantiles, step_metrics
from samepath.rl.objective.objective import LossInputs, policy_loss
from samepath.rl.recipe.objective import KlSettings, ObjectiveSettings, SequenceMaskSettings

LOG2 = math.log(2)


def logs(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).log()


def hand_step() -> tuple[StepTokens, StepSequences]:
    """Two micro-batches of one sequence, three trained tokens with r = 1, 2 (A = 1) and 0.5 (A = −1, masked); π_ref = π_s.

    Each micro-batch starts with a prompt row of NaN that must leave no trace.
    """
    chosen = ObjectiveSettings(kl=KlSettings(beta=0.1), off_policy_mask=SequenceMaskSettings(delta=0.5))
    nan = torch.tensor([float("nan")], dtype=torch.float64)
    inputs, terms = [], []
    for sampler, learner, advantage in ((logs(0.5, 0.25), logs(0.5, 0.5), 1.0), (logs(0.4), logs(0.2), -1.0)):
        sampler_N = torch.cat([nan, sampler])
        trained_N = ~sampler_N.isnan()
        inputs.append(
            LossInputs(
                sampler_logprobs_N=sampler_N,
                old_logprobs_N=None,
                reference_logprobs_N=sampler_N,
                advantages_B=torch.tensor([advantage]),
                beta_B=torch.tensor([0.1]),
                sequence_N=torch.zeros(len(sampler_N), dtype=torch.int64),
                trained_N=trained_N,
                weights_N=trained_N / 3,
            )
        )
        terms.append(policy_loss(torch.cat([nan, learner]).requires_grad_(), inputs[-1], chosen)[1])
    heads = [
        HeadStatistics(
            entropy_N=torch.tensor([99.0, 1.0, 2.0]),
            kept_mass_N=torch.tensor([0.0, 1.0, 0.75]),
            support_size_N=torch.tensor([99, 0, 4]),
        ),
        HeadStatistics(
            entropy_N=torch.tensor([99.0, 6.0]),
            kept_mass_N=torch.tensor([0.0, 0.5]),
            support_size_N=torch.tensor([99, 2]),
        ),
    ]
    return gather_step(inputs, terms, heads)


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
    tokens, sequences = hand_step()
    assert step_metrics(tokens, sequences, NUMERICS) == pytest.approx(EXPECTED_STEP, rel=1e-12, abs=1e-15)


def test_step_metrics_names_and_values_are_plain() -> None:
    for name, value in step_metrics(*hand_step(), NUMERICS).items():
        assert re.fullmatch(r"(policy|kl)/[A-Za-z0-9_.\-]+", name)
        assert type(value) is float


def test_step_metrics_without_reference_or_numerics_leave_those_out_only() -> None:
    tokens, sequences = hand_step()
    metrics = step_metrics(replace(tokens, reference_logprobs_N=None), sequences, None)
    missing = {name for name in EXPECTED_STEP if "reference" in name or "numerics" in name or "drift" in name}
    assert set(metrics) == set(EXPECTED_STEP) - missing


def test_step_metrics_without_a_recorded_support_have_no_size_quantiles() -> None:
    tokens, sequences = hand_step()
    metrics = step_metrics(replace(tokens, support_size_N=torch.zeros(3)), sequences, None)
    assert metrics["policy/support_full"] == 1.0
    assert "policy/support_size_p50" not in metrics


def test_step_metrics_sequences_without_trained_tokens_count_nowhere() -> None:
    tokens, sequences = hand_step()
    longer = StepSequences(
        advantages_B=torch.cat([sequences.advantages_B, torch.tensor([-3.0], dtype=torch.float64)]),
        off_policy_B=torch.cat([sequences.off_policy_B, torch.tensor([0.0], dtype=torch.float64)]),
        kept_B=torch.cat([sequences.kept_B, torch.tensor([True])]),
    )
    assert step_metrics(tokens, longer, NUMERICS) == pytest.approx(EXPECTED_STEP, rel=1e-12, abs=1e-15)


def test_step_metrics_all_masked_has_no_effective_sample() -> None:
    tokens, sequences = hand_step()
    metrics = step_metrics(tokens, replace(sequences, kept_B=torch.tensor([False, False])), None)
    assert metrics["policy/ess_after_mask"] == 0.0
    assert metrics["policy/ratio_after_mask"] == 0.0
    assert metrics["policy/ess"] == pytest.approx(EXPECTED_STEP["policy/ess"])


def test_step_metrics_effective_sample_size_spans_one_to_one_over_n() -> None:
    tokens, sequences = hand_step()
    even = replace(tokens, logprobs_N=tokens.sampler_logprobs_N - 0.7)
    assert step_metrics(even, sequences, None)["policy/ess"] == pytest.approx(1.0, rel=1e-14)
    alone = replace(
        tokens, logprobs_N=tokens.sampler_logprobs_N + torch.tensor([0.0, 1000.0, 0.0], dtype=torch.float64)
    )
    assert step_metrics(alone, sequences, None)["policy/ess"] == pytest.approx(1 / 3, rel=1e-14)


def test_step_metrics_without_tokens_is_refused() -> None:
    tokens, sequences = hand_step()
    with pytest.raises(ValueError, match="at least one trained token"):
        step_metrics(replace(tokens, logprobs_N=torch.zeros(0)), sequences, None)


def test_gather_step_numbers_sequences_through_and_drops_prompt_rows() -> None:
    tokens, sequences = hand_step()
    assert tokens.sequence_N.tolist() == [0, 0, 1]
    assert tokens.entropy_N.tolist() == [1.0, 2.0, 6.0]
    torch.testing.assert_close(tokens.logprobs_N, logs(0.5, 0.5, 0.2))
    assert sequences.kept_B.tolist() == [True, False]


def test_gather_step_of_unequal_lists_is_refused() -> None:
    with pytest.raises(ValueError, match="got 0, 0 and 0"):
        gather_step([], [], [])


def test_quantiles_interpolate_on_hand_worked_values() -> None:
    values = np.arange(101, dtype=np.float32)[::-1]
    assert quantiles("x", values) == {"x_p50": 50.0, "x_p90": 90.0, "x_p99": 99.0, "x_max": 100.0}
    assert quantiles("x", values[:0]) == {}
