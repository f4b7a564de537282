"""Sparse attention of grouped key heads against loops in float64, and its refusals."""

import pytest
import torch
from torch import Tensor

from samepath.kernels.backend import Backend
from samepath.kernels.sparse_attention.grouped import grouped_attend, grouped_rows

ROWS, KEYS, HEADS, GROUPS, WIDTH, SELECTED = 16, 20, 6, 3, 8, 5


def inputs() -> tuple[list[Tensor], Tensor, Tensor]:
    """([queries, keys, values], selected rows, their number): one row has no key, one fewer than selected."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(ROWS, HEADS, WIDTH), (KEYS, GROUPS, WIDTH), (KEYS, GROUPS, WIDTH)]
    leaves = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    indices_NC = torch.stack([torch.randperm(KEYS, generator=generator)[:SELECTED] for _ in range(ROWS)]).int()
    count_N = torch.full((ROWS,), SELECTED, dtype=torch.int32)
    count_N[3], count_N[7] = 0, 2
    indices_NC[torch.arange(SELECTED) >= count_N[:, None]] = -1
    return leaves, indices_NC, count_N


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_grouped_attend_and_gradients_equal_loops_over_heads(backend: Backend) -> None:
    (q, k, v), indices_NC, count_N = inputs()
    outs, mass = [], torch.zeros(ROWS, SELECTED, dtype=torch.float64)
    for row, count in enumerate(count_N.tolist()):
        keys = indices_NC[row, :count].long()
        heads = []
        for head in range(HEADS):
            group = head // (HEADS // GROUPS)
            probs = (k[keys, group] @ q[row, head] * 0.3).softmax(0)
            mass[row, :count] += probs.detach()
            heads.append(probs @ v[keys, group])
        outs.append(torch.stack(heads))
    wanted = torch.stack(outs)
    got, mass_NC = grouped_attend(
        q, grouped_rows(torch.cat([k, v], -1).transpose(0, 1)), indices_NC, count_N, scale=0.3, backend=backend
    )
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(mass_NC, mass, rtol=0, atol=1e-12)
    assert not got[3].any()
    grad = torch.randn(got.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for ours, theirs in zip(
        torch.autograd.grad(got, (q, k, v), grad), torch.autograd.grad(wanted, (q, k, v), grad), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_grouped_attend_refuses_rows_that_do_not_fit() -> None:
    (q, k, v), indices_NC, count_N = inputs()
    rows = grouped_rows(torch.cat([k, v], -1).transpose(0, 1))
    with pytest.raises(ValueError, match=r"rows \[G,S,2K\] with G dividing H; got \(16, 6, 8\), \(3, 20, 15\)"):
        grouped_attend(q, rows[..., :15], indices_NC, count_N, scale=1.0, backend="torch")
    with pytest.raises(ValueError, match=r"got \(16, 5, 8\)"):
        grouped_attend(q[:, :5], rows, indices_NC, count_N, scale=1.0, backend="torch")
