import re
from dataclasses import replace

import numpy as np
import pytest

from samepath.rewards.score import Score
from samepath.rl.diagnostics.metric_name import metric_name
from samepath.rl.diagnostics.rollouts import rollout_metrics
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.types import Group, Prompt, Rollout, Segment


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
    prompt = Prompt(prompt_id="p", text="", token_ids=(0,))
    return Group(group_id="g", prompt=prompt, sampling=SamplingSettings(), rollouts=rollouts)


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
