"""The fused norm and its gradients against float64, against the separate operations, and each row alone against the same row in a batch."""

import pytest
import torch
from torch import Tensor

from tests.kernels.triton_here import require_triton
from tests.poison import poison_fresh_memory

DEVICE = require_triton()

from samepath.kernels.backend import Backend
from samepath.kernels.rows import triton_rms_norm
from samepath.kernels.rows.dense_rows import add_norm, rms_norm

EPS = 1e-6
SHAPES = [(1, 3), (17, 40), (50, 64), (3, 4100)]
"""(N rows, D width); a row of the last is longer than one step of the forward."""


def make_inputs(num_rows: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, what is added, weight, and the gradients of both results, float64."""
    generator = torch.Generator().manual_seed(num_rows)
    shapes = [(num_rows, width), (num_rows, width), (width,), (num_rows, width), (num_rows, width)]
    made = [torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE) for shape in shapes]
    return made[0], made[1], made[2], made[3], made[4]


def run(inputs: tuple[Tensor, ...], dtype: torch.dtype, backend: Backend, *, adds: bool) -> list[Tensor]:
    """Sum and norm, then the gradients of x, what was added, and the weight."""
    x_ND, added_ND, weight_D, grad_total_ND, grad_out_ND = (one.to(dtype).detach().requires_grad_() for one in inputs)
    total_ND, out_ND = add_norm(x_ND, added_ND if adds else None, weight_D, EPS, backend)
    wanted = (x_ND, added_ND, weight_D) if adds else (x_ND, weight_D)
    grads = torch.autograd.grad((total_ND, out_ND), wanted, (grad_total_ND.detach(), grad_out_ND.detach()))
    return [total_ND.detach(), out_ND.detach(), *grads]


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_add_norm_equals_float64(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], adds: bool) -> None:
    inputs = make_inputs(*shape)
    wanted = run(inputs, torch.float64, "torch", adds=adds)
    poison_fresh_memory(monkeypatch)
    for got, truth in zip(run(inputs, torch.float32, "triton", adds=adds), wanted, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), truth, rtol=0, atol=1e-5 * max(1.0, float(truth.abs().max())))


# Triton's interpreter cuts off where a GPU rounds to bfloat16.
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)])
@pytest.mark.parametrize("shape", SHAPES)
def test_add_norm_has_the_bits_of_a_sum_and_its_norm(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x_ND, added_ND, weight_D, *_ = (one.to(dtype) for one in make_inputs(*shape))
    total_ND, out_ND = add_norm(x_ND, added_ND, weight_D, EPS, "triton")
    assert torch.equal(total_ND, x_ND + added_ND)
    assert torch.equal(out_ND, rms_norm(x_ND + added_ND, weight_D, EPS, "triton"))
    total_ND, out_ND = add_norm(x_ND, None, weight_D, EPS, "triton")
    assert torch.equal(total_ND, x_ND)
    assert torch.equal(out_ND, rms_norm(x_ND, weight_D, EPS, "triton"))


def test_add_norm_with_one_result_used_gives_that_results_gradient() -> None:
    x_ND, added_ND, weight_D, grad_ND, _ = (one.float().requires_grad_() for one in make_inputs(5, 16))
    upstream_ND = grad_ND.detach()
    total_ND, _ = add_norm(x_ND, added_ND, weight_D, EPS, "triton")
    for got in torch.autograd.grad(total_ND, (x_ND, added_ND), upstream_ND):
        assert torch.equal(got, upstream_ND)
    _, out_ND = add_norm(x_ND, added_ND, weight_D, EPS, "triton")
    alone_ND = (x_ND + added_ND).detach().requires_grad_()
    wanted = torch.autograd.grad(rms_norm(alone_ND, weight_D, EPS, "triton"), (alone_ND, weight_D), upstream_ND)
    got_x_ND, got_added_ND, got_D = torch.autograd.grad(out_ND, (x_ND, added_ND, weight_D), upstream_ND)
    assert torch.equal(got_x_ND, wanted[0])
    assert torch.equal(got_added_ND, wanted[0])
    assert torch.equal(got_D, wanted[1])


def test_rms_norm_of_a_part_of_wider_rows_equals_that_of_a_copy() -> None:
    whole_ND = torch.randn(9, 48, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    weight_D = torch.linspace(0.5, 2, 32, device=DEVICE)
    for part_ND in (whole_ND[:, :32], whole_ND[:, 16:], whole_ND[:, 3:35], whole_ND.T[:32].T, whole_ND[::3, :32]):
        strided_ND, copied_ND = (one.detach().requires_grad_() for one in (part_ND, part_ND.clone().contiguous()))
        results = [rms_norm(one, weight_D, EPS, "triton") for one in (strided_ND, copied_ND)]
        assert torch.equal(*results)
        grads = [
            torch.autograd.grad(out.square().sum(), one)[0]
            for out, one in zip(results, (strided_ND, copied_ND), strict=True)
        ]
        assert torch.equal(*grads)


def gradients(x_ND: Tensor, weight_D: Tensor, upstream_ND: Tensor) -> tuple[Tensor, ...]:
    x_ND, weight_D = x_ND.detach().requires_grad_(), weight_D.detach().requires_grad_()
    return torch.autograd.grad(rms_norm(x_ND, weight_D, EPS, "triton"), (x_ND, weight_D), upstream_ND)


def test_rms_norm_gradient_of_a_row_does_not_depend_on_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    # Few programs, so that each has several rows here as on a GPU.
    monkeypatch.setattr(triton_rms_norm, "MAX_PROGRAMS", 4)
    x_ND, upstream_ND, weight_D, *_ = (one.float() for one in make_inputs(50, 64))
    whole_ND, summed_D = gradients(x_ND, weight_D, upstream_ND)
    for rows in (slice(0, 1), slice(0, 16), slice(16, 48), slice(33, 50)):
        assert torch.equal(gradients(x_ND[rows], weight_D, upstream_ND[rows])[0], whole_ND[rows])
    assert torch.equal(gradients(x_ND, weight_D, upstream_ND)[1], summed_D)


def test_rms_norm_of_no_rows_gives_a_weight_gradient_of_zeros() -> None:
    x_ND, weight_D = torch.zeros(0, 8, device=DEVICE), torch.ones(8, device=DEVICE)
    grad_ND, grad_D = gradients(x_ND, weight_D, x_ND)
    assert grad_ND.shape == (0, 8)
    assert torch.equal(grad_D, torch.zeros_like(weight_D))


@pytest.mark.gpu
@pytest.mark.parametrize("width", [128, 576, 2048, 7168])
def test_rms_norm_gradients_in_bfloat16_at_real_sizes(width: int) -> None:
    """Against float64; a row alone, in any part of the batch and in 20 repeats has equal bits."""
    generator = torch.Generator(device="cuda").manual_seed(0)
    x_ND, upstream_ND = torch.randn(2, 5000, width, generator=generator, device="cuda").bfloat16()
    weight_D = torch.randn(width, generator=generator, device="cuda").bfloat16()
    whole_ND, summed_D = gradients(x_ND, weight_D, upstream_ND)
    exact = [one.double().requires_grad_() for one in (x_ND, weight_D)]
    truth = torch.autograd.grad(rms_norm(exact[0], exact[1], EPS, "torch"), exact, upstream_ND.double())
    for got, wanted in zip((whole_ND, summed_D), truth, strict=True):
        assert float((got.double() - wanted).norm() / wanted.norm()) < 3e-3
    for start, stop in [(0, 1), (7, 8), (100, 357), (1000, 5000)]:
        assert torch.equal(gradients(x_ND[start:stop], weight_D, upstream_ND[start:stop])[0], whole_ND[start:stop])
    for _ in range(20):
        assert torch.equal(gradients(x_ND, weight_D, upstream_ND)[1], summed_D)
