"""Triton's products of each head against float64, on strided views, and each row alone against the same row in a batch."""

import pytest
import torch
from torch import Tensor

from tests.kernels.triton_here import require_triton
from tests.poison import poison_fresh_memory

DEVICE = require_triton()

from samepath.kernels.backend import Backend
from samepath.kernels.rows.head_product import head_product

SHAPES = [(1, 1, 3, 5), (17, 3, 40, 33), (50, 2, 16, 70)]
"""(N rows, H heads, K inner width, M outer width)."""


def make_inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    num_rows, heads, inner, outer = shape
    x_NHK = torch.randn(num_rows, heads, inner, generator=generator, dtype=torch.float64)
    return x_NHK.to(DEVICE), torch.randn(heads, inner, outer, generator=generator, dtype=torch.float64).to(DEVICE)


def run(inputs: tuple[Tensor, Tensor], dtype: torch.dtype, backend: Backend) -> list[Tensor]:
    x_NHK, weight_HKM = (tensor.to(dtype).detach().requires_grad_() for tensor in inputs)
    out_NHM = head_product(x_NHK, weight_HKM, backend)
    upstream = torch.linspace(-1, 1, out_NHM.numel(), dtype=torch.float64, device=DEVICE).view(out_NHM.shape)
    return [out_NHM.detach(), *torch.autograd.grad(out_NHM, (x_NHK, weight_HKM), upstream.to(dtype))]


@pytest.mark.parametrize("shape", SHAPES)
def test_head_product_equals_float64(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    inputs = make_inputs(shape)
    wanted = run(inputs, torch.float64, "torch")
    poison_fresh_memory(monkeypatch)
    for got, truth in zip(run(inputs, torch.float32, "triton"), wanted, strict=True):
        torch.testing.assert_close(got.double(), truth, rtol=0, atol=1e-5 * max(1.0, float(truth.abs().max())))


def test_head_product_takes_strided_views() -> None:
    """As the network gives them: a part of every head's channels, and the other half of one weight, transposed."""
    x_NHK, weight_HKM = make_inputs((20, 3, 24, 40))
    wide = torch.cat([x_NHK, x_NHK], -1).float()
    turned = weight_HKM.float().transpose(1, 2).contiguous().transpose(1, 2)
    got = head_product(wide[..., 24:], turned, "triton")
    truth = head_product(x_NHK, weight_HKM, "torch")
    torch.testing.assert_close(got.double(), truth, rtol=0, atol=1e-4)


def test_head_product_rows_do_not_depend_on_their_neighbours() -> None:
    """In whole tiles: the interpreter's own products depend on a row's place in its tile."""
    x_NHK, weight_HKM = (tensor.float() for tensor in make_inputs((50, 2, 40, 20)))
    whole = head_product(x_NHK, weight_HKM, "triton")
    for rows in (slice(0, 16), slice(16, 48), slice(32, 50)):
        assert torch.equal(head_product(x_NHK[rows], weight_HKM, "triton"), whole[rows])


@pytest.mark.gpu
def test_head_product_bfloat16_any_row_count_gives_equal_bits() -> None:
    generator = torch.Generator(device="cuda").manual_seed(0)
    x_NHK = torch.randn(1000, 16, 128, generator=generator, device="cuda").bfloat16()
    weight_HKM = torch.randn(16, 128, 512, generator=generator, device="cuda").bfloat16() / 11
    whole = head_product(x_NHK, weight_HKM, "triton")
    truth = head_product(x_NHK.double(), weight_HKM.double(), "torch")
    assert float((whole.double() - truth).norm() / truth.norm()) < 4e-3
    for start, stop in [(0, 1), (7, 8), (100, 357)]:
        assert torch.equal(head_product(x_NHK[start:stop], weight_HKM, "triton"), whole[start:stop])


def test_head_product_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"weight \[H, K, M\]"):
        head_product(torch.zeros(2, 3, 4), torch.zeros(3, 5, 6), "torch")
