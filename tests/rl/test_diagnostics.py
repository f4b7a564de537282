import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from samepath.rewards.score import Score
from samepath.rl.diagnostics import HeadStatistics, StepSequences, StepTokens, gather_step, quantiles, step_metrics
from samepath.rl.diagnostics_numerics import NumericsGap, NumericsMismatchError, check_numerics_gap, numerics_gap
from samepath.rl.diagnostics_rollout import metric_name, rollout_metrics
from samepath.rl.diagnostics_routing import expert_load, routing_metrics, selection_metrics
from samepath.rl.kl import KlSettings
from samepath.rl.objective import LossInputs, ObjectiveSettings, policy_loss
from samepath.rl.sequence_mask import SequenceMaskSettings
from samepath.rollout.types import Group, Prompt, Rollout, Segment

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


def test_numerics_gap_hand_worked() -> None:
    gap = numerics_gap(logs(0.5, 0.25), logs(0.25, 0.25))
    assert gap == NumericsGap(
        k1=pytest.approx(-LOG2 / 2), k3=pytest.approx((1 - LOG2) / 2), max_abs=pytest.approx(LOG2), num_tokens=2
    )


def test_numerics_gap_of_equal_logprobs_is_exactly_zero() -> None:
    logprobs_N = torch.tensor([-0.3, -11.7, -2e-8])
    assert numerics_gap(logprobs_N, logprobs_N.clone()) == NumericsGap(k1=0.0, k3=0.0, max_abs=0.0, num_tokens=3)
    check_numerics_gap(numerics_gap(logprobs_N, logprobs_N.clone()), 0.0)


def test_numerics_gap_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one trained token"):
        numerics_gap(torch.zeros(0), torch.zeros(0))


@pytest.mark.parametrize("max_abs", [0.1, float("nan")])
def test_check_numerics_gap_above_limit_names_the_three_causes(max_abs: float) -> None:
    gap = NumericsGap(k1=0.0, k3=0.001, max_abs=max_abs, num_tokens=5)
    with pytest.raises(NumericsMismatchError, match="stale weights.*prefix cache.*compute differently"):
        check_numerics_gap(gap, 0.05)


def rollout(
    total: float | None,
    length: int = 2,
    version: int = 3,
    status: str = "ok",
    finish_reason: str = "stop",
    parts: dict[str, float] | None = None,
) -> Rollout:
    """An answer of one prompt token and `length` sampled tokens."""
    segment = Segment(
        token_ids=np.zeros(length + 1, np.int32),
        trained=np.array([False] + [True] * length),
        sampler_logprobs=np.zeros(length + 1, np.float32),
        routes=np.zeros((length + 1, 0, 0), np.int16),
        support=None,
        selection_fingerprint=np.zeros((length + 1, 0), np.uint64),
        weight_version=np.array([-1] + [version] * length, np.int32),
        finish_reason=finish_reason,
    )
    score = None if total is None else Score(total=total, parts=parts or {}, status=status)
    return Rollout(prompt_id="p", group_id="g", sample_index=0, segments=(segment,), text="", score=score)


def group(*rollouts: Rollout) -> Group:
    return Group(group_id="g", prompt=Prompt(prompt_id="p", text="", token_ids=(0,)), rollouts=rollouts)


def test_rollout_metrics_hand_worked() -> None:
    failed = replace(rollout(None), segments=(), failure="prompt too long")
    groups = [
        group(rollout(1.0, parts={"answer": 1.0, "len (chars)": -0.5}), rollout(1.0, length=4, parts={"answer": 0.5})),
        group(rollout(0.0, version=2), rollout(0.0, length=1, version=-5, finish_reason="length")),
        group(rollout(float("nan"), status="timeout"), rollout(0.5)),
        group(rollout(0.25, length=3), rollout(0.5), failed),
    ]
    metrics = rollout_metrics(groups, learner_version=3)
    expected = {
        "reward/mean": 3.25 / 7,
        "reward/part.answer": 0.75,
        "reward/part.len__chars_": -0.5,
        "reward/status.ok": 7,
        "reward/status.timeout": 1,
        "reward/status.unscored": 1,
        "reward/status.error": 0,
        "reward/groups_all_right": 1 / 4,
        "reward/groups_all_wrong": 1 / 4,
        "reward/groups_no_spread": 2 / 4,
        "reward/groups_unusable": 1 / 4,
        "rollout/count": 9,
        "rollout/failed": 1 / 9,
        "rollout/failure.prompt_too_long": 1,
        # Lengths 2, 4, 2, 1, 2, 2, 3, 2.
        "rollout/length_p50": 2.0,
        "rollout/length_max": 4.0,
        "rollout/length_mean": 18 / 8,
        "rollout/truncated": 1 / 8,
        # Two tokens lag by one version, one by eight.
        "rollout/weight_lag.0": 15 / 18,
        "rollout/weight_lag.1": 2 / 18,
        "rollout/weight_lag.2": 0.0,
        "rollout/weight_lag.4_or_more": 1 / 18,
        "rollout/weight_lag_mean": 10 / 18,
        "rollout/weight_lag_max": 8.0,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert all(re.fullmatch(r"(reward|rollout)/[A-Za-z0-9_.\-]+", name) for name in metrics)


def test_rollout_metrics_all_right_follows_the_full_reward() -> None:
    groups = [group(rollout(0.8), rollout(0.9))]
    assert rollout_metrics(groups, 3)["reward/groups_all_right"] == 0.0
    assert rollout_metrics(groups, 3, full_reward=0.8)["reward/groups_all_right"] == 1.0


def test_rollout_metrics_tokens_newer_than_the_learner_are_refused() -> None:
    with pytest.raises(ValueError, match=r"newer than the learner's version 3; got version 5"):
        rollout_metrics([group(rollout(1.0, version=5))], 3)


def test_rollout_metrics_without_rollouts_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one rollout; got 1 groups"):
        rollout_metrics([group()], 3)


def test_metric_name_replaces_what_a_chart_cannot_hold() -> None:
    assert metric_name("a b/c:é-1.x_y") == "a_b_c__-1.x_y"


def test_routing_metrics_hand_worked_by_global_layer_number() -> None:
    metrics = routing_metrics(
        layers=[3, 12],
        flips_L=np.array([2, 0]),
        missing_L=np.array([2, 10]),
        rows=10,
        expert_counts_LE=np.array([[5, 5, 5, 5], [20, 0, 0, 0]]),
    )
    assert metrics == pytest.approx(
        {
            # Missing rows were not replayed: 2 of 8 replayed rows; layer 12 replayed none.
            "routing/flip_rate": 2 / 8,
            "routing/flip_rate.layer_03": 2 / 8,
            "routing/flip_rate.layer_12": 0.0,
            "routing/missing": 12 / 20,
            "routing/missing.layer_03": 0.2,
            "routing/missing.layer_12": 1.0,
            "routing/load_max_over_mean": 2.5,
            "routing/load_max_over_mean.layer_03": 1.0,
            "routing/load_max_over_mean.layer_12": 4.0,
            "routing/load_entropy": 0.5,
            "routing/load_entropy.layer_03": 1.0,
            "routing/load_entropy.layer_12": 0.0,
        }
    )


def test_expert_load_uneven_hand_worked() -> None:
    load, entropy = expert_load(np.array([3, 1]))
    assert load == pytest.approx(1.5)
    assert entropy == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / LOG2)


@pytest.mark.parametrize(("flips", "missing"), [([11, 0], [0, 0]), ([0, 0], [-1, 0]), ([0], [0, 0])])
def test_routing_metrics_counts_that_do_not_fit_are_refused(flips: list[int], missing: list[int]) -> None:
    with pytest.raises(ValueError, match="a count from 0 to 10 for each of the 2 layers"):
        routing_metrics([3, 12], np.array(flips), np.array(missing), 10, np.ones((2, 4), np.int64))


def test_routing_metrics_expert_counts_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be \[L, E\] with L = 2 layers"):
        routing_metrics([3, 12], np.zeros(2, np.int64), np.zeros(2, np.int64), 10, np.ones((3, 4), np.int64))


def test_selection_metrics_hand_worked() -> None:
    assert selection_metrics([0, 7], np.array([0, 5]), 10) == pytest.approx(
        {
            "routing/selection_mismatch": 0.25,
            "routing/selection_mismatch.layer_00": 0.0,
            "routing/selection_mismatch.layer_07": 0.5,
        }
    )
