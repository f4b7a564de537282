"""Triton's log-probability head against the row-by-row softmax in float64. Tolerance: float32 2e-5 (logits of order 10)."""

import pytest
import torch
from torch import Tensor

from tests.kernels.head.test_logprob import Problem, make_problem
from tests.kernels.triton_here import require_triton
from tests.poison import poison_fresh_memory

DEVICE = require_triton()

from samepath.kernels.backend import Backend
from samepath.kernels.head import triton_logprob
from samepath.kernels.head.logprob import SupportRows, head_logprobs

SHAPES = [(1, 2, 3), (7, 16, 33), (50, 24, 101)]
"""(N rows, D width, V vocabulary)."""


class DeviceProblem(Problem):
    """A problem whose upstream gradient stands on the device."""

    def run(self, backend: Backend, dtype: torch.dtype) -> tuple[Tensor, ...]:
        hidden_ND = self.hidden_ND.to(dtype).detach().requires_grad_()
        weight_VD = self.weight_VD.to(dtype).detach().requires_grad_()
        results = head_logprobs(
            hidden_ND, weight_VD, self.targets_N, self.temperature_N.to(dtype), self.support, backend
        )
        upstream = torch.linspace(-1, 2, len(results[0]), dtype=dtype, device=DEVICE)
        grads = torch.autograd.grad(results[0], (hidden_ND, weight_VD), upstream)
        return *(result.detach() for result in results), *grads


def on_device(problem: Problem) -> Problem:
    support = problem.support
    if support is not None:
        support = SupportRows(counts_N=support.counts_N.to(DEVICE), ids=support.ids.to(DEVICE))
    return DeviceProblem(
        problem.hidden_ND.to(DEVICE),
        problem.weight_VD.to(DEVICE),
        problem.targets_N.to(DEVICE),
        problem.temperature_N.to(DEVICE),
        support,
    )


@pytest.mark.parametrize("with_support", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_head_logprobs_equal_reference_forward_and_gradients(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], with_support: bool
) -> None:
    problem = on_device(make_problem(shape, with_support))
    wanted = problem.run("reference", torch.float64)
    poison_fresh_memory(monkeypatch)
    monkeypatch.setattr(triton_logprob, "GRADIENT_BYTES", 1)
    monkeypatch.setattr(triton_logprob, "STEP_COLUMNS", 48)
    for got, truth in zip(problem.run("triton", torch.float32), wanted, strict=True):
        torch.testing.assert_close(got.double(), truth, rtol=0, atol=2e-5 * max(1.0, float(truth.abs().max())))


@pytest.mark.parametrize("with_support", [False, True])
def test_head_logprobs_row_groups_change_no_forward_bit(monkeypatch: pytest.MonkeyPatch, with_support: bool) -> None:
    problem = on_device(make_problem((50, 24, 101), with_support))
    whole = problem.run("triton", torch.float32)
    monkeypatch.setattr(triton_logprob, "ROWS_AT_ONCE", 16)
    parts = problem.run("triton", torch.float32)
    for got, wanted in zip(parts, whole, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)])
@pytest.mark.parametrize("vocab_size", [18, 200])
def test_head_logprobs_rows_without_support_have_the_bits_of_a_batch_without_supports(
    vocab_size: int, dtype: torch.dtype
) -> None:
    problem = on_device(make_problem((50, 24, vocab_size), with_support=True))
    assert problem.support is not None
    full_N = problem.support.counts_N == 0
    assert full_N.any()
    arguments = (
        problem.hidden_ND.to(dtype),
        problem.weight_VD.to(dtype),
        problem.targets_N,
        problem.temperature_N.float(),
    )
    alone = triton_logprob.head_logprobs(*arguments, None)
    beside = triton_logprob.head_logprobs(*arguments, problem.support)
    for got, wanted in zip(beside, alone, strict=True):
        assert torch.equal(got[full_N], wanted[full_N])


def test_head_logprobs_support_of_one_is_certain_with_zero_gradient() -> None:
    problem = make_problem((3, 4, 70), with_support=False)
    problem.support = SupportRows(counts_N=torch.ones(3, dtype=torch.int64), ids=problem.targets_N)
    logprobs_N, _, _, grad_hidden, grad_weight = on_device(problem).run("triton", torch.float32)
    assert torch.equal(logprobs_N, torch.zeros_like(logprobs_N))
    assert not grad_hidden.any()
    assert not grad_weight.any()


def test_head_logprobs_target_outside_its_support_is_refused() -> None:
    problem = make_problem((3, 4, 40), with_support=False)
    problem.targets_N = torch.tensor([1, 2, 3])
    problem.support = SupportRows(counts_N=torch.tensor([0, 2, 1]), ids=torch.tensor([1, 5, 3]))
    with pytest.raises(ValueError, match=r"1 of 3 do not \(first: row 1\)"):
        on_device(problem).run("triton", torch.float32)


def test_support_bitmap_sets_the_recorded_tokens_and_all_where_none_are() -> None:
    """Tokens 0, 31 and 32 are bits 0 and 31 of word 0 and bit 0 of word 1."""
    support = SupportRows(counts_N=torch.tensor([3, 0], device=DEVICE), ids=torch.tensor([0, 31, 32], device=DEVICE))
    bitmap = triton_logprob.support_bitmap(support, (0, 2), (0, 40))
    assert bitmap is not None
    assert bitmap.tolist() == [[1 - 2**31, 1], [-1, -1]]


def bfloat16_problem(shape: tuple[int, int, int], with_support: bool) -> Problem:
    """A problem whose numbers are those of bfloat16, temperatures those of float32."""
    problem = make_problem(shape, with_support)
    problem.hidden_ND = problem.hidden_ND.bfloat16().double()
    problem.weight_VD = (problem.weight_VD * 0.1).bfloat16().double()
    problem.temperature_N = problem.temperature_N.float().double()
    return on_device(problem)


def run_bfloat16(problem: Problem, rows: slice = slice(None)) -> tuple[Tensor, ...]:
    """(logprobs, entropy, mass, gradients) of some rows."""
    hidden_ND = problem.hidden_ND[rows].bfloat16().requires_grad_()
    weight_VD = problem.weight_VD.bfloat16().requires_grad_()
    support = problem.support
    if support is not None:
        support = support.select(torch.arange(len(problem.targets_N), device=DEVICE)[rows])
    temperature_N = problem.temperature_N[rows].float()
    results = triton_logprob.head_logprobs(hidden_ND, weight_VD, problem.targets_N[rows], temperature_N, support)
    upstream = torch.linspace(-1, 2, len(problem.targets_N), device=DEVICE)[rows]
    grads = torch.autograd.grad(results[0], (hidden_ND, weight_VD), upstream)
    return *(result.detach() for result in results), *grads


@pytest.mark.gpu
@pytest.mark.parametrize("with_support", [False, True])
@pytest.mark.parametrize("shape", [(300, 256, 5000), (300, 80, 1003), (1, 7168, 257), (129, 64, 640)])
def test_head_logprobs_bfloat16_is_near_and_repeats(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int], with_support: bool
) -> None:
    problem = bfloat16_problem(shape, with_support)
    wanted = problem.run("reference", torch.float64)
    poison_fresh_memory(monkeypatch)
    first = run_bfloat16(problem)
    for got, truth in zip(first[:3], wanted[:3], strict=True):
        torch.testing.assert_close(got.double(), truth, rtol=0, atol=1e-4)
    for got, truth in zip(first[3:], wanted[3:], strict=True):
        assert float((got.double() - truth).norm() / truth.norm()) < 0.01
    for _ in range(100):
        for got, wanted_bits in zip(run_bfloat16(problem)[:3], first[:3], strict=True):
            assert torch.equal(got, wanted_bits)


@pytest.mark.gpu
@pytest.mark.parametrize("with_support", [False, True])
def test_head_logprobs_bfloat16_rows_keep_their_bits_in_any_batch(with_support: bool) -> None:
    problem = bfloat16_problem((300, 256, 5000), with_support)
    whole = run_bfloat16(problem)
    for rows in (slice(0, 1), slice(7, 23), slice(150, 300)):
        for got, wanted in zip(run_bfloat16(problem, rows)[:3], whole[:3], strict=True):
            assert torch.equal(got, wanted[rows])


@pytest.mark.gpu
@pytest.mark.parametrize("with_support", [False, True])
def test_head_logprobs_runs_under_a_cuda_graph(with_support: bool) -> None:
    """A capture refuses whatever waits for the GPU."""
    problem = bfloat16_problem((16, 256, 5000), with_support)
    arguments = (
        problem.hidden_ND.bfloat16(),
        problem.weight_VD.bfloat16(),
        problem.targets_N,
        problem.temperature_N.float(),
        problem.support,
    )
    eager = triton_logprob.head_logprobs(*arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = triton_logprob.head_logprobs(*arguments)
    graph.replay()
    for values, wanted in zip(captured, eager, strict=True):
        assert torch.equal(values, wanted)
