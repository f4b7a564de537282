"""What the rollouts of a batch were cut into: segments, calls, cuts by new weights and such that nobody asked for, records that disagree."""

from collections.abc import Sequence
from typing import get_args

import numpy as np

from samepath.rollout.conservation import DriftKind, drift_cuts, weight_cuts
from samepath.rollout.types import Group


def segment_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """`segments/…` of all rollouts with tokens; nothing if each of them is the answer of a single call."""
    rollouts = [rollout for group in groups for rollout in group.rollouts if rollout.segments]
    segments = [segment for rollout in rollouts for segment in rollout.segments]
    if all(len(rollout.segments) == 1 and len(rollout.segments[0].calls) <= 1 for rollout in rollouts):
        return {}
    cuts = [kind for rollout in rollouts for kind in drift_cuts(rollout.segments)]
    by_weights = sum(weight_cuts(rollout.segments) for rollout in rollouts)
    calls = [sum(not span.goes_on for one in rollout.segments for span in one.calls) for rollout in rollouts]
    return {
        "segments/per_rollout": len(segments) / len(rollouts),
        "segments/calls_per_rollout": float(np.mean(calls)),
        **({"segments/weight_cuts": by_weights / len(rollouts)} if by_weights else {}),
        "segments/drift": float(len(cuts)),
        **{f"segments/drift.{kind}": float(cuts.count(kind)) for kind in get_args(DriftKind)},
        "segments/route_conflicts": float(sum(segment.route_conflicts for segment in segments)),
        "segments/superseded_rows": float(sum(segment.superseded_rows for segment in segments)),
    }
