"""Rotary embedding in one kernel has the bits of the separate operations."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.kernels.triton_here import require_triton
from tests.poison import poison_fresh_memory

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
    # Channels behind the table's stay as they are.
    wanted = rotate(whole, cos_NQ[:, None], sin_NQ[:, None])
    assert torch.equal(wanted[..., 2 * half :], whole[..., 2 * half :])
    assert torch.equal(rotate(whole, cos_NQ[:, None], sin_NQ[:, None], "triton"), wanted)


@pytest.mark.parametrize("rotate", [rotate_interleaved, rotate_halves])
@pytest.mark.parametrize(("heads", "half"), [(1, 4), (3, 6), (16, 16)])
def test_rotate_gradient_equals_float64(
    monkeypatch: pytest.MonkeyPatch, rotate: Callable[..., Tensor], heads: int, half: int
) -> None:
    generator = torch.Generator().manual_seed(heads)
    whole = torch.randn(7, heads, 2 * half + 5, generator=generator, dtype=torch.float64).to(DEVICE)
    table = torch.randn(7, 2, half, generator=generator, dtype=torch.float64).to(DEVICE)
    upstream = torch.randn(7, heads, 2 * half, generator=generator, dtype=torch.float64).to(DEVICE)
    single, exact = whole.float().requires_grad_(), whole.requires_grad_()
    cos_N1Q, sin_N1Q = table[:, :1], table[:, 1:]
    (wanted,) = torch.autograd.grad(rotate(exact[..., 5:], cos_N1Q, sin_N1Q), exact, upstream)
    poison_fresh_memory(monkeypatch)
    rotated = rotate(single[..., 5:], cos_N1Q.float(), sin_N1Q.float(), "triton")
    (got,) = torch.autograd.grad(rotated, single, upstream.float())
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=1e-5)
    longer = torch.cat([upstream, upstream[..., :5]], -1)
    (wanted,) = torch.autograd.grad(rotate(exact, cos_N1Q, sin_N1Q), exact, longer)
    (through,) = torch.autograd.grad(rotate(single, cos_N1Q.float(), sin_N1Q.float(), "triton"), single, longer.float())
    torch.testing.assert_close(through.double(), wanted, rtol=0, atol=1e-5)
    # What flows back may be a part of wider rows, or one number for all.
    wider = torch.cat([upstream.float(), upstream.float()], -1)[..., : 2 * half]
    rotated = rotate(single[..., 5:], cos_N1Q.float(), sin_N1Q.float(), "triton")
    assert torch.equal(torch.autograd.grad(rotated, single, wider, retain_graph=True)[0], got)
    (summed,) = torch.autograd.grad(rotated.sum(), single)
    (wanted,) = torch.autograd.grad(rotate(exact[..., 5:], cos_N1Q, sin_N1Q).sum(), exact)
    torch.testing.assert_close(summed.double(), wanted, rtol=0, atol=1e-5)
