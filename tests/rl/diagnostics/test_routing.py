import math

import numpy as np
import pytest

from samepath.rl.diagnostics.routing import expert_load, routing_metrics, selection_metrics

LOG2 = math.log(2)


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
