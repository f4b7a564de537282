"""Rotary embedding in one kernel has the bits of the separate operations."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.kernels.triton_here import require_triton

DEVICE = require_triton()

from samepath.model.network.rope import rotate_halves, rotate_interleaved


# Triton's interpreter cuts off where a GPU rounds to bfloat16.
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)])
@pytest.mark.parametrize("rotate", [rotate_interleaved, rotate_halves])
@pytest.mark.parametrize(("heads", "half"), [(1, 4), (3, 6), (16, 16), (128, 32)])
def test_rotate_fused_equals_the_separate_operations(
    rotate: Callable[..., Tensor], heads: int, half: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(heads)
    whole = torch.randn(7, heads, 2 * half + 5, generator=generator).to(dtype).to(DEVICE)
    table = torch.randn(7, 2, half, generator=generator).to(dtype).to(DEVICE)
    # Parts of wider rows, as the network has them.
    x_NHK, cos_NQ, sin_NQ = whole[..., 5:], table[:, 0], table[:, 1]
    wanted = rotate(x_NHK, cos_NQ[:, None], sin_NQ[:, None])
    assert torch.equal(rotate(x_NHK, cos_NQ[:, None], sin_NQ[:, None], "triton"), wanted)
    assert torch.equal(rotate(x_NHK[:, 0], cos_NQ, sin_NQ, "triton"), rotate(x_NHK[:, 0], cos_NQ, sin_NQ))


def test_rotate_with_gradient_takes_operations_that_have_one() -> None:
    x_NK = torch.randn(3, 8, device=DEVICE, requires_grad=True)
    table = torch.randn(3, 2, 4, device=DEVICE)
    rotate_halves(x_NK, table[:, 0], table[:, 1], "triton").sum().backward()
    assert x_NK.grad is not None
    assert bool((x_NK.grad != 0).any())
