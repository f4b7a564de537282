"""The gated sum of rows against a loop in float64, and the bits of the expert product that ends with it."""

import pytest
import torch
from torch import Tensor

from samepath.kernels.backend import Backend
from samepath.kernels.experts.expert_product import expert_product
from samepath.kernels.experts.expert_rows import gated_sum, spread_tokens
from tests.kernels.experts.test_expert_product import make_problem
from tests.kernels.triton_here import require_triton

DEVICE = require_triton()


def made(tokens: int, slots: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows, gates, places and the gradient of the sum."""
    generator = torch.Generator().manual_seed(tokens)
    rows_NX = torch.randperm(tokens * slots, generator=generator).view(tokens, slots)
    y_RD, gates_NX, upstream_ND = (
        torch.randn(*sizes, generator=generator, dtype=torch.float64)
        for sizes in ((tokens * slots, width), (tokens, slots), (tokens, width))
    )
    return y_RD, gates_NX, rows_NX, upstream_ND


@pytest.mark.parametrize("sizes", [(1, 1, 3), (7, 3, 5), (0, 2, 4)])
def test_gated_sum_is_that_of_a_loop_forward_and_gradients(sizes: tuple[int, int, int]) -> None:
    y_RD, gates_NX, rows_NX, upstream_ND = made(*sizes)
    inputs = y_RD.requires_grad_(), gates_NX.requires_grad_()
    summed_ND = gated_sum(*inputs, rows_NX, "torch")
    wanted_ND = torch.zeros_like(upstream_ND)
    grad_y_RD, grad_gates_NX = torch.zeros_like(y_RD), torch.zeros_like(gates_NX)
    with torch.no_grad():
        for token, rows in enumerate(rows_NX.tolist()):
            for slot, row in enumerate(rows):
                wanted_ND[token] += gates_NX[token, slot] * y_RD[row]
                grad_y_RD[row] = gates_NX[token, slot] * upstream_ND[token]
                grad_gates_NX[token, slot] = (y_RD[row] * upstream_ND[token]).sum()
    torch.testing.assert_close(summed_ND, wanted_ND, rtol=0, atol=1e-12)
    grads = torch.autograd.grad(summed_ND, inputs, upstream_ND)
    for got, wanted in zip(grads, (grad_y_RD, grad_gates_NX), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


def test_spread_tokens_worked_by_hand() -> None:
    x_ND = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    rows_RD = spread_tokens(x_ND, torch.tensor([[3, 0], [1, 2]]))
    assert rows_RD.tolist() == [[1, 2], [3, 4], [3, 4], [1, 2]]
    (grad_ND,) = torch.autograd.grad(rows_RD, x_ND, torch.tensor([[1.0, 0], [10, 0], [100, 0], [1000, 5]]))
    assert grad_ND.tolist() == [[1001, 5], [110, 0]]
    assert spread_tokens(x_ND[:0], torch.empty(0, 2, dtype=torch.int64)).shape == (0, 2)


@pytest.mark.parametrize(
    ("backend", "dtype"), [("torch", torch.float32), ("triton", torch.float32), ("triton", torch.bfloat16)]
)
def test_gated_sum_of_single_experts_rows_has_the_bits_of_the_product(backend: Backend, dtype: torch.dtype) -> None:
    """What lets rows be computed elsewhere: with a gate of 1 a product is the row itself."""
    problem = make_problem((21, 16, 8, 8, 3))
    device = DEVICE if backend == "triton" else "cpu"
    x_ND, gates_NX, gate_up_EGD, down_EDF = (
        one.to(device, dtype) for one in (problem.x_ND, problem.gates_NX, problem.gate_up_EGD, problem.down_EDF)
    )
    ids_NX = problem.ids_NX.to(device)
    whole_ND = expert_product(x_ND, gates_NX, ids_NX, gate_up_EGD, down_EDF, backend)
    rows_RD = expert_product(
        x_ND.repeat_interleave(3, 0),
        torch.ones(63, 1, dtype=dtype, device=device),
        ids_NX.view(-1, 1),
        gate_up_EGD,
        down_EDF,
        backend,
    )
    rows_NX = torch.arange(63, device=device).view(21, 3)
    assert torch.equal(gated_sum(rows_RD, gates_NX, rows_NX, backend), whole_ND)


def test_gated_sum_refuses_rows_that_are_not_one_a_slot() -> None:
    y_RD, gates_NX, rows_NX, _ = made(4, 2, 3)
    with pytest.raises(ValueError, match="a row for each token and slot"):
        gated_sum(y_RD[:-1], gates_NX, rows_NX, "torch")
