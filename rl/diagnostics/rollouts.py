"""What one batch of rollouts reports: rewards by part and status, group spread, lengths, truncation, weight lag."""

from collections.abc import Iterable, Sequence
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from samepath.rewards.score import Status
from samepath.rl.diagnostics.conversations import conversation_metrics
from samepath.rl.diagnostics.metric_name import metric_name
from samepath.rl.diagnostics.segments import segment_metrics
from samepath.rl.diagnostics.step import quantiles
from samepath.rollout.types import Group, Rollout

LAG_BINS = 4
"""Weight lags 0 … LAG_BINS − 1 have a bin each; the last bin holds all longer ones."""


def rollout_metrics(groups: Sequence[Group], learner_version: int, full_reward: float = 1.0) -> dict[str, float]:
    """Every `reward/…`, `rollout/…`, `segments/…` and `conversation/…` number of one batch of groups.

    `learner_version` is the weight version that the batch trains; lags count from it. A group is all right if every scored
    total is at least `full_reward`, all wrong if every one is at most 0. Raises ValueError without rollouts.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    if not rollouts:
        raise ValueError(
            f"Rollout metrics need at least one rollout; got {len(groups)} groups without any. Skip the step."
        )
    return {
        **_rewards(rollouts),
        **_group_spread(groups, full_reward),
        **_lengths(rollouts),
        **_weight_lag(rollouts, learner_version),
        **segment_metrics(groups),
        **conversation_metrics(groups),
    }


def _totals(rollouts: Iterable[Rollout]) -> NDArray[np.float64]:
    totals = [rollout.score.total for rollout in rollouts if rollout.score is not None and rollout.score.status == "ok"]
    return np.array(totals, dtype=np.float64)


def _rewards(rollouts: Sequence[Rollout]) -> dict[str, float]:
    metrics: dict[str, float] = {f"reward/status.{status}": 0.0 for status in (*get_args(Status), "unscored")}
    parts: dict[str, list[float]] = {}
    for rollout in rollouts:
        status = "unscored" if rollout.score is None else rollout.score.status
        metrics[f"reward/status.{status}"] += 1
        if rollout.score is not None and rollout.score.status == "ok":
            for name, value in rollout.score.parts.items():
                parts.setdefault(metric_name(name), []).append(value)
    metrics |= {f"reward/part.{name}": float(np.mean(values)) for name, values in parts.items()}
    totals = _totals(rollouts)
    if totals.size:
        metrics |= {"reward/mean": float(totals.mean()), "reward/std": float(totals.std())}
    return metrics


def _group_spread(groups: Sequence[Group], full_reward: float) -> dict[str, float]:
    """Shares of all groups; a group with fewer than two scored rewards is unusable and none of the others."""
    kinds = {"all_right": 0, "all_wrong": 0, "no_spread": 0, "unusable": 0}
    for group in groups:
        totals = _totals(group.rollouts)
        if totals.size < 2:
            kinds["unusable"] += 1
            continue
        kinds["all_right"] += bool(totals.min() >= full_reward)
        kinds["all_wrong"] += bool(totals.max() <= 0)
        kinds["no_spread"] += bool(totals.min() == totals.max())
    return {f"reward/groups_{kind}": count / len(groups) for kind, count in kinds.items()}


def _lengths(rollouts: Sequence[Rollout]) -> dict[str, float]:
    usable = [rollout for rollout in rollouts if not rollout.failure]
    metrics: dict[str, float] = {"rollout/count": len(rollouts), "rollout/failed": 1 - len(usable) / len(rollouts)}
    for rollout in rollouts:
        if rollout.failure:
            name = f"rollout/failure.{metric_name(rollout.failure)}"
            metrics[name] = metrics.get(name, 0) + 1
    if usable:
        lengths = np.array([rollout.num_trained for rollout in usable], dtype=np.float64)
        metrics |= quantiles("rollout/length", lengths)
        metrics["rollout/length_mean"] = float(lengths.mean())
        metrics["rollout/truncated"] = float(np.mean([rollout.truncated for rollout in usable]))
    return metrics


def _weight_lag(rollouts: Sequence[Rollout], learner_version: int) -> dict[str, float]:
    """Shares of sampled tokens by how many versions older than the learner's their weights were."""
    versions = [segment.weight_version[segment.trained] for rollout in rollouts for segment in rollout.segments]
    lags = learner_version - np.concatenate(
        [np.zeros(0, np.int64), *(version.astype(np.int64) for version in versions)]
    )
    if lags.size == 0:
        return {}
    if lags.min() < 0:
        raise ValueError(
            f"A token cannot be sampled by weights newer than the learner's version {learner_version}; got version "
            f"{learner_version - int(lags.min())}. Pass the version that this batch trains."
        )
    shares = np.bincount(np.minimum(lags, LAG_BINS), minlength=LAG_BINS + 1) / lags.size
    names = [*(f"rollout/weight_lag.{lag}" for lag in range(LAG_BINS)), f"rollout/weight_lag.{LAG_BINS}_or_more"]
    return {
        **dict(zip(names, map(float, shares), strict=True)),
        "rollout/weight_lag_mean": float(lags.mean()),
        "rollout/weight_lag_max": float(lags.max()),
    }
