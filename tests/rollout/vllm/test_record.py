"""A route record that cannot belong to its tokens is refused, whatever is wrong with it."""

import numpy as np
import pytest

from samepath.rollout.engine_errors import EngineRecordError
from samepath.rollout.vllm.record import RouteBinding, bind_routes

BINDING = RouteBinding(layers=(1, 3), num_experts=8, num_chosen=2, recorded=True)


def recorded(rows: int = 5) -> np.ndarray:
    """[rows, 4 layers, 2] with layers 0 and 2 dense, whose rows are zeros."""
    routes = np.zeros((rows, 4, 2), np.uint8)
    routes[:, 1], routes[:, 3] = (2, 7), (5, 0)
    return routes


def test_routes_keep_the_routed_layers_and_leave_the_last_row_missing() -> None:
    routes = BINDING.routes(recorded(), 6, "g/0")
    assert routes.shape == (6, 2, 2)
    assert routes.dtype == np.int16
    assert (routes[:-1, 0] == (2, 7)).all()
    assert (routes[:-1, 1] == (5, 0)).all()
    assert (routes[-1] == -1).all()


def zeros() -> np.ndarray:
    return np.zeros((5, 4, 2), np.uint8)


def out_of_range() -> np.ndarray:
    routes = recorded()
    routes[4, 3] = (8, 1)
    return routes


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (None, "returned no routes"),
        (recorded(4), r"shape \[5, layers, 2\] for 6 tokens; got \[4, 4, 2\]"),
        (recorded(6), r"got \[6, 4, 2\]"),
        (recorded(0), r"got \[0, 4, 2\]"),
        (recorded()[:, :, :1], r"got \[5, 4, 1\]"),
        (zeros(), "never filled"),
        (out_of_range(), "an unknown one"),
    ],
    ids=["none", "short", "long", "empty", "one_expert", "zeros", "out_of_range"],
)
def test_routes_that_do_not_belong_to_the_tokens_are_refused(record: np.ndarray | None, message: str) -> None:
    with pytest.raises(EngineRecordError, match=message):
        BINDING.routes(record, 6, "g/0")


def test_routes_of_one_expert_that_are_zero_throughout_are_refused() -> None:
    single = RouteBinding(layers=(0,), num_experts=4, num_chosen=1, recorded=True)
    with pytest.raises(EngineRecordError, match="never filled"):
        single.routes(np.zeros((5, 1, 1), np.uint8), 6, "g/0")


def test_routes_not_asked_for_are_missing_in_the_shape_that_the_learner_expects() -> None:
    silent = RouteBinding(layers=(1, 3), num_experts=8, num_chosen=2, recorded=False)
    assert (silent.routes(None, 6, "g/0") == np.full((6, 2, 2), -1)).all()


def test_bind_routes_needs_module_and_recorder_to_agree() -> None:
    found = [("model.layers.3.mlp.experts", 3, 8, 2), ("model.layers.1.mlp.experts", 1, 8, 2)]
    assert bind_routes(found, True) == BINDING
    assert bind_routes([], True).layers == ()
    with pytest.raises(EngineRecordError, match=r"layers\.3\.mlp\.experts would be recorded as those of layer 2"):
        bind_routes([("model.layers.3.mlp.experts", 2, 8, 2)], True)
    with pytest.raises(EngineRecordError, match="one router of the same size"):
        bind_routes([*found, ("model.layers.2.mlp.experts", 2, 4, 2)], True)
