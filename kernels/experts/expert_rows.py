"""The two ends of a layer of experts: tokens copied to a row for each slot, and the rows that experts gave weighted by their gates and added.

Axes: N tokens, X experts chosen a token, R rows, D width.
"""

from typing import Any

import torch
from torch import Tensor

from samepath.kernels.backend import Backend
from samepath.kernels.gpu.loading import fused_kernels


def spread_tokens(x_ND: Tensor, rows_NX: Tensor) -> Tensor:
    """`[R, D]`: each token at the row of each of its slots, with gradient, a token's rows added in slot order. `rows_NX` names every row once."""
    rows_RD: Tensor = _SpreadTokens.apply(x_ND, rows_NX)  # type: ignore[no-untyped-call]
    return rows_RD


def gated_sum(y_RD: Tensor, gates_NX: Tensor, rows_NX: Tensor, backend: Backend) -> Tensor:
    """Σ_x gate_x · y[row_x], `[N, D]`, slot after slot, with gradients for rows and gates; the bits of `expert_product` from the same rows.

    `rows_NX` names every row of `y_RD` once. Raises ValueError if it cannot.
    """
    if rows_NX.numel() != len(y_RD) or rows_NX.shape != gates_NX.shape:
        raise ValueError(
            f"gated_sum needs a row for each token and slot; got {len(y_RD)} rows for {tuple(rows_NX.shape)}, gates {tuple(gates_NX.shape)}"
        )
    summed_ND: Tensor = _GatedSum.apply(y_RD, gates_NX, rows_NX, backend)  # type: ignore[no-untyped-call]
    return summed_ND


def add_slots(y_NXD: Tensor, gates_NX: Tensor) -> Tensor:
    """Σ_x gate_x · y_x in slot order, `[N, D]`."""
    out_ND = y_NXD[:, 0] * gates_NX[:, :1]
    for slot in range(1, gates_NX.shape[1]):
        out_ND = out_ND + y_NXD[:, slot] * gates_NX[:, slot : slot + 1]
    return out_ND


class _GatedSum(torch.autograd.Function):
    """Written out because a fused backend has the forward alone."""

    @staticmethod
    def forward(ctx: Any, y_RD: Tensor, gates_NX: Tensor, rows_NX: Tensor, backend: Backend) -> Tensor:
        ctx.save_for_backward(y_RD, gates_NX, rows_NX)
        fused = fused_kernels(backend, "gated_sum", y_RD, gates_NX, rows_NX)
        if fused is not None:
            return fused.gated_sum(y_RD, gates_NX, rows_NX)
        return add_slots(y_RD[rows_NX], gates_NX)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        y_RD, gates_NX, rows_NX = ctx.saved_tensors
        grad_N1D = gradients[0][:, None]
        grad_gates_NX = (y_RD[rows_NX] * grad_N1D).sum(-1, dtype=gates_NX.dtype)
        grad_y_NXD = (grad_N1D * gates_NX[..., None]).to(y_RD.dtype)
        grad_y_RD = torch.empty_like(y_RD).index_copy_(0, rows_NX.flatten(), grad_y_NXD.flatten(0, 1))
        return grad_y_RD, grad_gates_NX, None, None


class _SpreadTokens(torch.autograd.Function):
    """Written out because indexing would add a token's rows in the order of the rows."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, rows_NX: Tensor) -> Tensor:
        ctx.save_for_backward(rows_NX)
        token_R = rows_NX.flatten().argsort() // rows_NX.shape[1]
        return x_ND.index_select(0, token_R)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (rows_NX,) = ctx.saved_tensors
        return gradients[0][rows_NX].sum(1), None
