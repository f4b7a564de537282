"""Products of every head's rows with the head's own matrix (Triton): the same tiles for every batch, inner width never split.

Gradients of weights are sums over the batch and leave the promise aside, so the matrix library computes them.
Axes: N rows, H heads, K inner width, M outer width.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.gpu.loading import interpreting
from samepath.kernels.gpu.tiles import Tiles, operand_type


@triton.jit
def _head_product(
    x,
    weight,
    out,
    num_rows,
    num_heads,
    num_inner,
    num_columns,
    x_row,
    x_head,
    x_inner,
    weight_head,
    weight_inner,
    weight_column,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    OPERAND: tl.constexpr,
):
    head = tl.full((), 0, tl.int64) + tl.program_id(2)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    accumulator = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, num_inner, INNER):
        step = first + tl.arange(0, INNER)
        a = tl.load(
            x + row[:, None] * x_row + head * x_head + step[None, :] * x_inner,
            mask=(row < num_rows)[:, None] & (step < num_inner)[None, :],
            other=0.0,
        )
        b = tl.load(
            weight + head * weight_head + step[:, None] * weight_inner + column[None, :] * weight_column,
            mask=(step < num_inner)[:, None] & (column < num_columns)[None, :],
            other=0.0,
        )
        accumulator = tl.dot(a.to(OPERAND), b.to(OPERAND), accumulator, input_precision="ieee")
    place = (row * num_heads + head)[:, None] * num_columns + column[None, :]
    keep = (row < num_rows)[:, None] & (column < num_columns)[None, :]
    tl.store(out + place, accumulator.to(out.dtype.element_ty), mask=keep)


def default_tiles(dtype: torch.dtype) -> Tiles:
    """Tiles that fit the multiprocessor for this type."""
    if interpreting():
        return Tiles(rows=16, columns=32, inner=16)
    if dtype == torch.bfloat16:
        return Tiles(rows=64, columns=128, inner=64, num_warps=4, num_stages=3)
    return Tiles(rows=64, columns=64, inner=32, num_warps=4, num_stages=2)


def head_product(x_NHK: Tensor, weight_HKM: Tensor) -> Tensor:
    """x[:, h] · weight[h] in x's type, with gradients."""
    out_NHM: Tensor = _HeadProduct.apply(x_NHK, weight_HKM)
    return out_NHM


class _HeadProduct(torch.autograd.Function):
    """Forward by fixed tiles."""

    @staticmethod
    def forward(ctx: Any, x_NHK: Tensor, weight_HKM: Tensor) -> Tensor:
        ctx.save_for_backward(x_NHK, weight_HKM)
        num_rows, num_heads, num_inner = x_NHK.shape
        num_columns = weight_HKM.shape[2]
        out_NHM = torch.empty(num_rows, num_heads, num_columns, dtype=x_NHK.dtype, device=x_NHK.device)
        tiles = default_tiles(x_NHK.dtype)
        if out_NHM.numel():
            _head_product[(triton.cdiv(num_rows, tiles.rows), triton.cdiv(num_columns, tiles.columns), num_heads)](
                x_NHK,
                weight_HKM,
                out_NHM,
                num_rows,
                num_heads,
                num_inner,
                num_columns,
                *x_NHK.stride(),
                *weight_HKM.stride(),
                ROWS=tiles.rows,
                COLUMNS=tiles.columns,
                OPERAND=operand_type(x_NHK.dtype),
                **tiles.arguments(),
            )
        return out_NHM

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_NHK, weight_HKM = ctx.saved_tensors
        grad_HNM = grads[0].transpose(0, 1)
        # Written where it is wanted: by head it would be copied by whoever takes it.
        grad_x_NHK = torch.empty(x_NHK.shape, dtype=x_NHK.dtype, device=x_NHK.device)
        torch.bmm(grad_HNM, weight_HKM.transpose(1, 2), out=grad_x_NHK.transpose(0, 1))
        grad_weight_HKM = torch.bmm(x_NHK.permute(1, 2, 0), grad_HNM)
        return grad_x_NHK, grad_weight_HKM
