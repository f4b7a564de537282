"""Passes side by side: in order, without touching each other's gradients, with the first failure raised."""

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samepath.rl.batch.pack import TrainSequence, split_by_tokens
from samepath.rl.learner.pass_pool import PassPool, add_gradients, gradients_of
from samepath.rl.learner.worked_batches import supervised_sequence
from tests.conftest import tiny_model


def test_map_with_two_threads_keeps_order_and_runs_side_by_side() -> None:
    both_inside = threading.Barrier(2, timeout=20)

    def work(item: int) -> int:
        both_inside.wait()
        return item * item

    assert PassPool(2).map(work, [3, 4]) == [9, 16]


def test_stream_computes_no_more_than_its_threads_ahead() -> None:
    """Each result that is taken lets one more begin: many passes never stand in memory together."""
    started: list[int] = []

    def work(item: int) -> int:
        started.append(item)
        return item

    results = PassPool(2).stream(work, range(9))
    for taken in range(9):
        assert next(results) == taken
        assert len(started) <= min(9, taken + 3)
    assert sorted(started) == list(range(9))


def test_stream_that_fails_begins_nothing_more() -> None:
    started: list[int] = []

    def work(item: int) -> int:
        started.append(item)
        if item == 0:
            raise KeyError("the first")
        return item

    with pytest.raises(KeyError, match="the first"):
        list(PassPool(2).stream(work, range(9)))
    assert max(started) <= 2


def test_map_with_one_thread_stays_in_the_callers_thread() -> None:
    assert PassPool(1).map(lambda _: threading.current_thread(), [0, 1]) == [threading.current_thread()] * 2


def test_map_with_a_failing_item_raises_its_error() -> None:
    def work(item: int) -> int:
        if item == 2:
            raise KeyError("the second")
        return item

    with pytest.raises(KeyError, match="the second"):
        PassPool(2).map(work, [1, 2, 3])


def test_add_gradients_of_parts_equals_the_gradient_of_the_whole() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    unused = torch.nn.Parameter(torch.zeros(1))
    rows = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 4.0]], dtype=torch.float64)
    parameters = [weight, unused]
    for gradients in PassPool(2).map(
        lambda part: gradients_of((rows[part] @ weight).square().sum(), parameters), [[0], [1, 2]]
    ):
        add_gradients(parameters, gradients)
    expected = 2 * (rows @ weight.detach()) @ rows
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, expected)
    assert unused.grad is None


def sequences_of(lengths: list[int]) -> list[TrainSequence]:
    shape = tiny_model().shape
    prompts = [(2 + place % 16, 2 + place // 16) for place in range(len(lengths))]
    return [supervised_sequence(prompt, (3,) * (length - 1), shape) for prompt, length in zip(prompts, lengths)]


@given(st.lists(st.integers(2, 40), min_size=1, max_size=20), st.integers(16, 100), st.integers(1, 4))
def test_split_by_tokens_covers_all_in_order_within_the_limit(lengths: list[int], limit: int, at_least: int) -> None:
    parts = split_by_tokens(sequences_of(lengths), limit, at_least)
    assert [index for part in parts for index in part] == list(range(len(lengths)))
    assert all(parts)
    assert len(parts) >= min(at_least, len(lengths))
    rows = [sum(lengths[index] for index in part) for part in parts]
    assert all(total <= limit or len(part) == 1 for total, part in zip(rows, parts))


def test_split_by_tokens_balances_two_parts() -> None:
    assert split_by_tokens(sequences_of([10, 10, 10, 10]), 1000, 2) == [[0, 1], [2, 3]]
