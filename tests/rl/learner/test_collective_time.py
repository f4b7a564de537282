"""A rank that waits for another spends that time in collectives, and every collective of an update is timed."""

from pathlib import Path

import pytest

from samepath.rl.diagnostics.collectives import collective_metrics
from tests import collective_cases, rank_cases
from tests.ranks import on_ranks


def test_metrics_worked_by_hand() -> None:
    assert collective_metrics("learner", [(1.0, 4.0), (3.0, 4.0)], steps=2) == {
        "learner/collectives_s": 1.0,
        "learner/collectives_share": 0.5,
        "learner/collectives_share_least": 0.25,
    }


def test_rank_that_comes_late_costs_the_other_time_in_collectives(tmp_path: Path) -> None:
    """In each kind of them: objects, gradients, sums, weights of a layer, rows for experts, norms."""
    found, _ = on_ranks(2, collective_cases.late, str(tmp_path))
    late_s = float(collective_cases.LATE_S)
    assert found == dict.fromkeys(
        ("what they found", "gradients", "sums", "a layer", "experts", "the norm"), (late_s, late_s)
    )


WAYS: dict[str, tuple[dict[str, object], set[str]]] = {
    "none": ({}, {"allgather_", "alltoall_base_"}),
    "full": ({"shard": "full"}, {"allgather_", "_allgather_base_", "_reduce_scatter_base_", "all_reduce"}),
    "experts in place": (
        {"shard": "full", "expert_parallel": True},
        {"allgather_", "_allgather_base_", "_reduce_scatter_base_", "all_reduce", "alltoall_base_", "broadcast_"},
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_collective_of_an_update_is_timed(way: str) -> None:
    """Forward, backward, norms and weights: two updates with a reference and a trained indexer."""
    learner, kinds = WAYS[way]
    rl = {"updates_per_rollout": 2, "objective": {"kl": {"estimator": "unbiased", "beta": 0.1}}}
    for timed, untimed, intervals in on_ranks(
        2, collective_cases.of_an_update, rank_cases.uneven_batch(), rl, {**learner, "indexer": "trained"}
    ):
        assert untimed == []
        assert {name.split(".")[1] for name in timed} == kinds
        assert intervals > 4
