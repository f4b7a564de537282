"""Products of pairs: right for any number of pairs, one that stands alone included, whatever the threads."""

import pytest
import torch

from samepath.kernels.rows.pair_product import pair_product


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("pairs", "rows"), [(1, 1), (1, 5), (1, 8), (1, 48), (3, 6), (1, 0)])
def test_pair_product_is_the_product_and_has_its_gradients(pairs: int, rows: int, threads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(pairs, rows, 20, generator=generator), torch.randn(pairs, 24, 20, generator=generator)
    left.requires_grad_()
    torch.set_num_threads(threads)
    try:
        got = pair_product(left, right.transpose(1, 2))
        out = torch.full((pairs, rows, 24), torch.nan)
        with torch.no_grad():
            assert torch.equal(pair_product(left, right.transpose(1, 2), out=out), got)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(out, got)
    wanted = torch.einsum("bmk,bfk->bmf", left.double(), right.double())
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=1e-5)
    (grad,) = torch.autograd.grad(got.sum(), left)
    torch.testing.assert_close(grad, right.sum(1, keepdim=True).expand_as(grad), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [4, 5, 8, 12, 48])
@pytest.mark.parametrize("columns", [16, 32, 128])
def test_pair_alone_has_the_bits_that_it_has_among_others(rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(3, 64, 576, generator=generator), torch.randn(3, 576, columns, generator=generator)
    wanted = pair_product(left, right)
    torch.set_num_threads(2)
    try:
        assert torch.equal(pair_product(left[1:2, :rows], right[1:2]), wanted[1:2, :rows])
    finally:
        torch.set_num_threads(1)
