"""The dense backward of short windows gives the gathered backward's gradients, whatever the windows.

Tolerances: float64 1e-10; float32 1e-5 of the largest value.
"""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from samepath.kernels.backend import Backend, round_up
from samepath.kernels.sparse_attention import sparse_attention
from samepath.kernels.sparse_attention.sparse_attention import DenseWindows, attend
from samepath.model.plan import Span, plan_spans
from tests.poison import poison_fresh_memory

HEADS, KEY_WIDTH, VALUE_WIDTH, NUM_SELECTED = 3, 12, 8, 5


@dataclass
class Problem:
    q_NHK: Tensor
    kv_SK: Tensor
    rows_NC: Tensor
    positions_NC: Tensor
    count_N: Tensor
    windows: DenseWindows

    def gradients(self, backend: Backend, dtype: torch.dtype, windows: DenseWindows | None) -> tuple[Tensor, ...]:
        """(out, grad of q, grad of kv) for a fixed upstream gradient."""
        q_NHK, kv_SK = (tensor.to(dtype).detach().requires_grad_() for tensor in (self.q_NHK, self.kv_SK))
        out_NHV, _, _ = attend(
            q_NHK,
            kv_SK,
            self.rows_NC,
            self.count_N,
            scale=0.3,
            value_width=VALUE_WIDTH,
            backend=backend,
            dense=windows,
        )
        upstream = torch.randn(out_NHV.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        return out_NHV.detach(), *torch.autograd.grad(out_NHV, (q_NHK, kv_SK), upstream.to(dtype))


def make_problem(lengths: tuple[int, ...]) -> Problem:
    """Packed causal sequences; each row keeps at most C random keys of its own past, padding rows none."""
    generator = torch.Generator().manual_seed(0)
    num_rows = round_up(sum(lengths))
    positions_NC = torch.full((num_rows, NUM_SELECTED), -1, dtype=torch.int32)
    rows_NC, count_N = positions_NC.clone(), torch.zeros(num_rows, dtype=torch.int32)
    spans, start = [], 0
    for length in lengths:
        spans.append(Span(row=start, first=0, count=length, keys=torch.arange(start, start + length)))
        for position in range(length):
            kept = torch.randperm(position + 1, generator=generator)[:NUM_SELECTED].sort().values.to(torch.int32)
            positions_NC[start + position, : len(kept)] = kept
            rows_NC[start + position, : len(kept)] = kept + start
            count_N[start + position] = len(kept)
        start += length
    plan = plan_spans(spans, num_rows, 2)
    q_NHK = torch.randn(num_rows, HEADS, KEY_WIDTH, generator=generator, dtype=torch.float64)
    kv_SK = torch.randn(num_rows, KEY_WIDTH, generator=generator, dtype=torch.float64)
    return Problem(q_NHK, kv_SK, rows_NC, positions_NC, count_N, DenseWindows(plan=plan, positions_NC=positions_NC))


def count_window_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sequences of each dense product that runs."""
    calls: list[int] = []
    original = sparse_attention._window_backward

    def counted(rows, positions_NC, window, scale):  # type: ignore[no-untyped-def]
        calls.append(window.rows_BT.shape[0])
        return original(rows, positions_NC, window, scale)

    monkeypatch.setattr(sparse_attention, "_window_backward", counted)
    return calls


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("lengths", [(1,), (17,), (40, 3, 28, 39, 9), (16, 16)])
def test_attend_dense_backward_equals_reference(
    monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    problem = make_problem(lengths)
    wanted = problem.gradients("reference", torch.float64, None)
    calls = count_window_calls(monkeypatch)
    poison_fresh_memory(monkeypatch)
    got = problem.gradients("torch", dtype, problem.windows)
    assert calls
    for value, truth in zip(got, wanted, strict=True):
        size = max(1.0, float(truth.abs().max()))
        torch.testing.assert_close(value.double(), truth, rtol=0, atol=tolerance * size)


def test_attend_windows_change_no_forward_bit_and_gradients_by_rounding_alone() -> None:
    problem = make_problem((40, 3, 28, 39, 9))
    dense = problem.gradients("torch", torch.float32, problem.windows)
    gathered = problem.gradients("torch", torch.float32, None)
    assert torch.equal(dense[0], gathered[0])
    for one, other in zip(dense[1:], gathered[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_attend_dense_backward_chunks_of_one_sequence_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem((20, 20, 19, 18))
    whole = problem.gradients("torch", torch.float64, problem.windows)
    calls = count_window_calls(monkeypatch)
    monkeypatch.setattr(sparse_attention, "CHUNK_ELEMENTS", 1)
    cut = problem.gradients("torch", torch.float64, problem.windows)
    assert calls == [1] * 4
    for one, other in zip(cut, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_attend_long_windows_are_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond 8 · C = 40 keys dense products no longer pay."""
    calls = count_window_calls(monkeypatch)
    for length, wanted in ((40, True), (41, False)):
        problem = make_problem((length,))
        assert problem.windows.worth_it() is wanted
        problem.gradients("torch", torch.float32, problem.windows)
    assert calls == [1]


def test_attend_dense_backward_gives_padding_rows_and_unselected_keys_nothing() -> None:
    problem = make_problem((9, 4))
    unselected = sorted(set(range(16)) - set(problem.rows_NC.flatten().tolist()))
    _, grad_q, grad_kv = problem.gradients("torch", torch.float64, problem.windows)
    assert not grad_q[13:].any()
    assert unselected
    assert not grad_kv[unselected].any()
