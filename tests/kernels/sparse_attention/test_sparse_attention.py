"""Sparse attention against one dense masked softmax in float64, forward and backward.

Tolerances: float64 agrees to 1e-10; float32 to 1e-5 relative to the largest value (a few hundred roundings of 6e-8).
"""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from samepath.kernels.backend import Backend
from samepath.kernels.sparse_attention import sparse_attention
from samepath.kernels.sparse_attention.sparse_attention import attend
from tests.poison import poison_fresh_memory

SHAPES = [(1, 1, 1, 2, 1, 1), (5, 7, 3, 6, 4, 3), (13, 40, 4, 24, 16, 9), (33, 21, 5, 11, 11, 17)]
"""(N rows, S keys, H heads, K key width, V value width, C selected)."""


@dataclass
class Problem:
    q_NHK: Tensor
    kv_SK: Tensor
    indices_NC: Tensor
    count_N: Tensor
    value_width: int

    def run(self, backend: Backend, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """(out, lse, mass, grad of q, grad of kv) for a fixed upstream gradient."""
        q_NHK, kv_SK = (tensor.to(dtype).detach().requires_grad_() for tensor in (self.q_NHK, self.kv_SK))
        scale, width = self.q_NHK.shape[2] ** -0.5, self.value_width
        out, lse, mass = attend(
            q_NHK, kv_SK, self.indices_NC, self.count_N, scale=scale, value_width=width, backend=backend
        )
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(dtype)
        grads = torch.autograd.grad(out, (q_NHK, kv_SK), upstream)
        return out.detach(), lse, mass, *grads


def make_problem(shape: tuple[int, ...], seed: int = 0) -> Problem:
    """Random keys and sets; row counts run from 0 to C, the tail is −1."""
    num_rows, num_keys, num_heads, key_width, value_width, num_selected = shape
    generator = torch.Generator().manual_seed(seed)
    indices_NC = torch.full((num_rows, num_selected), -1, dtype=torch.int32)
    count_N = torch.randint(0, min(num_selected, num_keys) + 1, (num_rows,), generator=generator, dtype=torch.int32)
    count_N[-1] = min(num_selected, num_keys)
    if num_rows > 1:
        count_N[0] = 0
    for row, count in enumerate(count_N.tolist()):
        chosen = torch.randperm(num_keys, generator=generator)[:count].sort().values
        indices_NC[row, :count] = chosen.to(torch.int32)
    q_NHK = torch.randn(num_rows, num_heads, key_width, generator=generator, dtype=torch.float64) * 2
    kv_SK = torch.randn(num_keys, key_width, generator=generator, dtype=torch.float64)
    return Problem(q_NHK, kv_SK, indices_NC, count_N, value_width)


def assert_near(got: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert got.shape == wanted.shape
    finite = wanted.isfinite()
    assert torch.equal(got.isfinite(), finite)
    if finite.any():
        size = max(1.0, float(wanted[finite].abs().max()))
        assert float((got[finite].double() - wanted[finite]).abs().max()) <= tolerance * size


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("shape", SHAPES)
def test_attend_torch_equals_reference_forward_and_gradients(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    problem = make_problem(shape)
    wanted = problem.run("reference", torch.float64)
    poison_fresh_memory(monkeypatch)
    for got, truth in zip(problem.run("torch", dtype), wanted, strict=True):
        assert got.dtype == dtype
        assert_near(got, truth, tolerance)


@pytest.mark.parametrize("elements", [1, 500, 3000])
def test_attend_chunk_boundaries_change_no_bit(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    problem = make_problem(SHAPES[2])
    whole = problem.run("torch", torch.float32)
    monkeypatch.setattr(sparse_attention, "CHUNK_ELEMENTS", elements)
    out, lse, mass, grad_q, grad_kv = problem.run("torch", torch.float32)
    for got, wanted in zip((out, lse, mass, grad_q, grad_kv), whole, strict=True):
        assert torch.equal(got, wanted)


def test_attend_gradcheck_passes_in_float64() -> None:
    problem = make_problem((4, 5, 2, 4, 3, 3))
    q_NHK, kv_SK = problem.q_NHK.requires_grad_(), problem.kv_SK.requires_grad_()

    def function(q: Tensor, kv: Tensor) -> Tensor:
        return attend(q, kv, problem.indices_NC, problem.count_N, scale=0.7, value_width=3, backend="torch")[0]

    assert torch.autograd.gradcheck(function, (q_NHK, kv_SK))


def test_attend_two_keys_equals_hand_worked_softmax() -> None:
    """Scores ln 3 and 0 give ¾ and ¼; values 8 and 4 give 7; LSE is ln 4."""
    q_NHK = torch.tensor([[[0.0, 2.0]]], dtype=torch.float64)
    kv_SK = torch.tensor([[8.0, math.log(3)], [4.0, 0.0], [100.0, 9.0]], dtype=torch.float64)
    indices_NC, count_N = torch.tensor([[0, 1]], dtype=torch.int32), torch.tensor([2], dtype=torch.int32)
    for backend in ("reference", "torch"):
        out, lse, mass = attend(q_NHK, kv_SK, indices_NC, count_N, scale=0.5, value_width=1, backend=backend)
        torch.testing.assert_close(out, torch.tensor([[[7.0]]], dtype=torch.float64))
        torch.testing.assert_close(lse, torch.tensor([[math.log(4)]], dtype=torch.float64))
        torch.testing.assert_close(mass, torch.tensor([[0.75, 0.25]], dtype=torch.float64))


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_attend_row_without_keys_gives_zero_and_minus_infinity(backend: Backend) -> None:
    problem = make_problem(SHAPES[1])
    problem.count_N[:] = 0
    problem.indices_NC[:] = -1
    out, lse, mass, grad_q, grad_kv = problem.run(backend, torch.float32)
    assert torch.equal(lse, torch.full_like(lse, -torch.inf))
    for tensor in (out, mass, grad_q, grad_kv):
        assert torch.equal(tensor, torch.zeros_like(tensor))


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_attend_tail_gives_key_zero_no_gradient(backend: Backend) -> None:
    """The −1 tail is gathered from key 0 and masked: nothing may leak into it."""
    problem = make_problem((6, 9, 2, 4, 4, 5))
    problem.indices_NC = torch.tensor([[3, 5, -1, -1, -1]] * 6, dtype=torch.int32)
    problem.count_N[:] = 2
    *_, grad_kv = problem.run(backend, torch.float32)
    touched = grad_kv.abs().sum(1) > 0
    assert touched.nonzero().flatten().tolist() == [3, 5]


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_attend_mass_sums_to_number_of_heads(backend: Backend) -> None:
    problem = make_problem(SHAPES[2])
    _, _, mass_NC, *_ = problem.run(backend, torch.float64)
    wanted = torch.where(problem.count_N > 0, 4.0, 0.0).double()
    torch.testing.assert_close(mass_NC.sum(1), wanted)


def test_attend_lse_and_mass_carry_no_gradient() -> None:
    problem = make_problem(SHAPES[1])
    for backend in ("reference", "torch"):
        _, lse, mass = attend(
            problem.q_NHK.requires_grad_(),
            problem.kv_SK,
            problem.indices_NC,
            problem.count_N,
            scale=1.0,
            value_width=4,
            backend=backend,
        )
        assert not lse.requires_grad
        assert not mass.requires_grad


def test_attend_huge_scores_stay_finite() -> None:
    problem = make_problem(SHAPES[2])
    problem.q_NHK *= 1e4
    wanted = problem.run("reference", torch.float64)
    for got, truth in zip(problem.run("torch", torch.float64), wanted, strict=True):
        assert_near(got, truth, 1e-10)
    assert all(bool(tensor.isfinite().all()) for tensor in problem.run("torch", torch.float32)[3:])


def test_attend_rows_alone_equal_rows_in_batch_bit_for_bit() -> None:
    problem = make_problem((40, 60, 4, 24, 16, 9))
    out, lse, mass, *_ = problem.run("torch", torch.float32)
    for rows in (slice(0, 1), slice(7, 8), slice(10, 27), slice(39, 40)):
        part = attend(
            problem.q_NHK[rows].float(),
            problem.kv_SK.float(),
            problem.indices_NC[rows],
            problem.count_N[rows],
            scale=24**-0.5,
            value_width=16,
            backend="torch",
        )
        for got, wanted in zip(part, (out, lse, mass), strict=True):
            assert torch.equal(got, wanted[rows])


def test_attend_thread_count_changes_no_bit_of_result_or_gradient() -> None:
    problem = make_problem((200, 300, 8, 48, 32, 64))
    single = problem.run("torch", torch.float32)
    torch.set_num_threads(2)
    try:
        double = problem.run("torch", torch.float32)
    finally:
        torch.set_num_threads(1)
    for got, wanted in zip(double, single, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize(
    ("changes", "value_width", "message"),
    [
        ({"kv_SK": torch.zeros(9, 3)}, 4, r"kv \[S,K\]"),
        ({"indices_NC": torch.zeros(5, 3, dtype=torch.int32)}, 4, r"indices \[N,C\]"),
        ({"count_N": torch.zeros(7, dtype=torch.int32)}, 4, r"count \[N\]"),
        ({}, 0, "value_width must be in 1 … 4"),
        ({}, 5, "value_width must be in 1 … 4"),
    ],
)
def test_attend_bad_shapes_are_refused(changes: dict[str, Tensor], value_width: int, message: str) -> None:
    problem = make_problem((6, 9, 2, 4, 4, 5))
    for name, tensor in changes.items():
        setattr(problem, name, tensor)
    with pytest.raises(ValueError, match=message):
        attend(
            problem.q_NHK,
            problem.kv_SK,
            problem.indices_NC,
            problem.count_N,
            scale=1.0,
            value_width=value_width,
            backend="torch",
        )
