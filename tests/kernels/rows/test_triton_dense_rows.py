"""Triton's linear map, RMS norm and router scores against float64, and each row alone against the same row in a batch."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.kernels.triton_here import require_triton
from tests.poison import poison_fresh_memory

DEVICE = require_triton()

from samepath.kernels.backend import Backend
from samepath.kernels.rows import triton_dense_rows
from samepath.kernels.rows.dense_rows import float32_linear, linear, rms_norm, router_scores

SHAPES = [(1, 3, 5), (17, 40, 33), (50, 64, 20)]
"""(N rows, D width, O outputs)."""

Operation = Callable[[Tensor, Tensor, Backend], Tensor]


def norm(x_ND: Tensor, weight_OD: Tensor, backend: Backend) -> Tensor:
    return rms_norm(x_ND, weight_OD[0], 1e-6, backend)


OPERATIONS = {"linear": linear, "router": router_scores, "norm": norm}


def make_inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    num_rows, width, outputs = shape
    x_ND = torch.randn(num_rows, width, generator=generator, dtype=torch.float64)
    return x_ND.to(DEVICE), torch.randn(outputs, width, generator=generator, dtype=torch.float64).to(DEVICE)


def run(operation: Operation, inputs: tuple[Tensor, Tensor], dtype: torch.dtype, backend: Backend) -> list[Tensor]:
    x_ND, weight_OD = (tensor.to(dtype).detach().requires_grad_() for tensor in inputs)
    out = operation(x_ND, weight_OD, backend)
    upstream = torch.linspace(-1, 1, out.numel(), dtype=torch.float64, device=DEVICE).view(out.shape).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, (x_ND, weight_OD), upstream)]


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_dense_rows_equal_float64(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], name: str) -> None:
    inputs = make_inputs(shape)
    wanted = run(OPERATIONS[name], inputs, torch.float64, "torch")
    poison_fresh_memory(monkeypatch)
    for got, truth in zip(run(OPERATIONS[name], inputs, torch.float32, "triton"), wanted, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), truth, rtol=0, atol=1e-5 * max(1.0, float(truth.abs().max())))


@pytest.mark.parametrize("name", OPERATIONS)
def test_dense_rows_do_not_depend_on_their_neighbours(name: str) -> None:
    x_ND, weight_OD = (tensor.float() for tensor in make_inputs((50, 64, 20)))
    whole = OPERATIONS[name](x_ND, weight_OD, "triton")
    for rows in (slice(0, 16), slice(16, 48), slice(32, 50)):
        assert torch.equal(OPERATIONS[name](x_ND[rows], weight_OD, "triton"), whole[rows])


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPERATIONS)
def test_dense_rows_bfloat16_any_row_count_gives_equal_bits(name: str) -> None:
    generator = torch.Generator(device="cuda").manual_seed(0)
    x_ND = torch.randn(3000, 1536, generator=generator, device="cuda").bfloat16()
    weight_OD = torch.randn(700, 1536, generator=generator, device="cuda").bfloat16() / 32
    whole = OPERATIONS[name](x_ND, weight_OD, "triton")
    truth = OPERATIONS[name](x_ND.double(), weight_OD.double(), "torch")
    assert float((whole.double() - truth).norm() / truth.norm()) < 4e-3
    for start, stop in [(0, 1), (7, 8), (100, 357), (1000, 3000)]:
        assert torch.equal(OPERATIONS[name](x_ND[start:stop], weight_OD, "triton"), whole[start:stop])


@pytest.mark.gpu
@pytest.mark.parametrize(("width", "num_columns"), [(1024, 512), (2816, 1024), (1024, 5632), (520, 17), (40, 200)])
def test_linear_tiles_by_size_do_not_show_in_the_bits(width: int, num_columns: int) -> None:
    """From one row to many, through every choice of tiles."""
    generator = torch.Generator(device="cuda").manual_seed(0)
    x_ND = torch.randn(8192, width, generator=generator, device="cuda").bfloat16()
    weight_OD = torch.randn(num_columns, width, generator=generator, device="cuda").bfloat16() / 32
    whole_NO = float32_linear(x_ND, weight_OD, "triton")
    for num_rows in (1, 16, 64, 100, 256, 512, 1024, 2048, 4096):
        assert torch.equal(float32_linear(x_ND[-num_rows:], weight_OD, "triton"), whole_NO[-num_rows:]), num_rows


def test_linear_tiles_grow_with_the_number_of_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_dense_rows, "interpreting", lambda: False)
    found = [triton_dense_rows.linear_tiles(num_rows, 1024, torch.bfloat16) for num_rows in (16, 256, 512, 2048, 8192)]
    assert [(tiles.rows, tiles.columns, tiles.inner) for tiles in found[:4]] == [
        (64, 32, 128), (64, 32, 128), (64, 64, 128), (64, 64, 64),
    ]  # fmt: skip
    assert found[4] == triton_dense_rows.default_tiles(torch.bfloat16)
    assert triton_dense_rows.linear_tiles(16, 1024, torch.float32) == triton_dense_rows.default_tiles(torch.float32)
