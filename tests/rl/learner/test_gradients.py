"""Gradients of passes and their sum, and passes of about equal rows."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from samepath.rl.batch.cut import split_by_tokens
from samepath.rl.batch.pack import TrainSequence
from samepath.rl.learner.gradients import add_gradients, gradients_of
from samepath.rl.learner.worked_batches import supervised_sequence
from tests.conftest import tiny_model


def test_add_gradients_of_parts_equals_the_gradient_of_the_whole() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    unused = torch.nn.Parameter(torch.zeros(1))
    rows = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 4.0]], dtype=torch.float64)
    parameters = [weight, unused]
    for part in [[0], [1, 2]]:
        add_gradients(parameters, gradients_of((rows[part] @ weight).square().sum(), parameters))
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
