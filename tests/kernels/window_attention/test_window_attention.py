"""Attention in expanded form on the CPU, by the library: against one dense masked softmax in float64, gradients and mass included."""

import pytest
import torch

from samepath.kernels.window_attention import window_attention
from samepath.kernels.window_attention.window_attention import window_attend
from tests.kernels.window_problems import window_problem

CPU = torch.device("cpu")
SIZES = (3, 12, 8)
WINDOWS = [
    (((0, 20),), 32),
    (((0, 20), (0, 7)), 20),
    (((0, 20), (0, 7)), 5),
    (((5, 9), (0, 3), (11, 1)), 32),
    (((5, 9), (0, 3), (11, 1)), 4),
]
"""Spans (first, count) of the sequences, and C: whole sequences and others, within the selection's limit, at it and beyond."""


@pytest.mark.parametrize(("spans", "num_selected"), WINDOWS)
def test_window_attend_equals_a_masked_softmax(spans: tuple[tuple[int, int], ...], num_selected: int) -> None:
    problem = window_problem(spans, num_selected, SIZES, CPU)
    for got, wanted in zip(problem.run("torch", torch.float64), problem.wanted(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


def test_mass_is_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = window_problem(((5, 9), (0, 3)), 4, SIZES, CPU)
    whole = problem.run("torch", torch.float64)[1]
    monkeypatch.setattr(window_attention, "CHUNK_ELEMENTS", 1)
    assert torch.equal(problem.run("torch", torch.float64)[1], whole)
    live = problem.window.ends_BT > 0
    torch.testing.assert_close(whole.sum(2)[live], torch.full_like(whole.sum(2)[live], SIZES[0]))


def test_window_attend_without_mass_needs_no_positions_where_every_key_counts() -> None:
    problem = window_problem(((0, 6),), 8, SIZES, CPU)
    q, k, v = problem.operands
    out, mass = window_attend(q, k, v[..., 8:], problem.window, None, scale=problem.scale, backend="torch")
    assert mass is None
    torch.testing.assert_close(out, problem.wanted()[0], rtol=0, atol=1e-12)


def test_window_attend_says_what_does_not_fit() -> None:
    problem = window_problem(((0, 6),), 8, SIZES, CPU)
    q, k, v = problem.operands
    with pytest.raises(ValueError, match="window of B × T queries; got"):
        window_attend(q[:, :5], k, v, problem.window, None, scale=1.0, backend="torch")
    with pytest.raises(ValueError, match="needs their positions"):
        window_attend(q, k, v, problem.window, None, scale=1.0, backend="torch", with_mass=True)
