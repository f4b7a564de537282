"""Linear map with one fixed order of additions a row (Triton): inner width never split, tiles that do not show in the bits.

Gradients of weights are sums over the batch and leave the promise aside, so the matrix library computes them.
Axes: N rows, D input width, O output width.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.gpu.loading import interpreting
from samepath.kernels.gpu.tiles import (
    GROUP_TILES,
    Tiles,
    default_tiles,
    fits_hopper,
    operand_type,
    tile_place,
)


@triton.jit
def _linear(
    x,
    weight,
    out,
    num_rows,
    num_columns,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    GROUP: tl.constexpr,
    OPERAND: tl.constexpr,
):
    row_tile, column_tile = tile_place(num_columns, COLUMNS, GROUP, tl.cdiv(num_rows, ROWS))
    row = row_tile * ROWS + tl.arange(0, ROWS)
    column = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    accumulator = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, width, INNER):
        step = first + tl.arange(0, INNER)
        inside = (step < width)[None, :]
        a = tl.load(
            x + row.to(tl.int64)[:, None] * width + step[None, :], mask=(row < num_rows)[:, None] & inside, other=0.0
        )
        b = tl.load(
            weight + column.to(tl.int64)[:, None] * width + step[None, :],
            mask=(column < num_columns)[:, None] & inside,
            other=0.0,
        )
        accumulator = tl.dot(a.to(OPERAND), tl.trans(b.to(OPERAND)), accumulator, input_precision="ieee")
    place = row.to(tl.int64)[:, None] * num_columns + column[None, :]
    keep = (row < num_rows)[:, None] & (column < num_columns)[None, :]
    tl.store(out + place, accumulator.to(out.dtype.element_ty), mask=keep)


FEW_PROGRAMS = 132
"""Multiprocessors of an H200: what fits them at once is bound by the length of one program, not by the number."""


def linear_tiles(num_rows: int, num_columns: int, dtype: torch.dtype) -> Tiles:
    """Tiles of x · weightᵀ by its size: small ones for the few rows of a decoding pass.

    Every element is one sum over the inner width, first to last, 16 products at a time, whatever the tile, so in bfloat16 a row's bits do not
    depend on the choice (measured on an H200, and tested there).
    """
    if interpreting() or dtype != torch.bfloat16:
        return default_tiles(dtype)
    row_tiles = triton.cdiv(num_rows, 64)
    if row_tiles * triton.cdiv(num_columns, 32) <= FEW_PROGRAMS:
        return Tiles(rows=64, columns=32, inner=128, num_warps=4, num_stages=4)
    programs = row_tiles * triton.cdiv(num_columns, 64)
    if programs <= 2 * FEW_PROGRAMS:
        return Tiles(rows=64, columns=64, inner=128, num_warps=4, num_stages=3)
    if programs <= 5 * FEW_PROGRAMS:
        return Tiles(rows=64, columns=64, inner=64, num_warps=4, num_stages=4)
    return default_tiles(dtype)


def linear(x_ND: Tensor, weight_OD: Tensor, out_type: torch.dtype | None = None) -> Tensor:
    """x · weightᵀ in `out_type` (x's own if not given), with gradients."""
    out_NO: Tensor = _Linear.apply(x_ND, weight_OD, out_type or x_ND.dtype)
    return out_NO


class _Linear(torch.autograd.Function):
    """Forward by fixed tiles."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_OD: Tensor, out_type: torch.dtype) -> Tensor:
        x_ND, weight_OD = x_ND.contiguous(), weight_OD.contiguous()
        ctx.save_for_backward(x_ND, weight_OD)
        if fits_hopper(x_ND, weight_OD):
            # Gluon has no interpreter, and older Triton no Gluon.
            from samepath.kernels.rows.hopper_product import product as hopper_product

            result: Tensor = hopper_product(x_ND, weight_OD, out_type)
            return result
        out_NO = torch.empty(x_ND.shape[0], weight_OD.shape[0], dtype=out_type, device=x_ND.device)
        tiles = linear_tiles(x_ND.shape[0], weight_OD.shape[0], x_ND.dtype)
        programs = triton.cdiv(x_ND.shape[0], tiles.rows) * triton.cdiv(weight_OD.shape[0], tiles.columns)
        if programs:
            _linear[(programs,)](
                x_ND,
                weight_OD,
                out_NO,
                x_ND.shape[0],
                weight_OD.shape[0],
                x_ND.shape[1],
                ROWS=tiles.rows,
                COLUMNS=tiles.columns,
                GROUP=GROUP_TILES,
                OPERAND=operand_type(x_ND.dtype),
                **tiles.arguments(),
            )
        return out_NO

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, weight_OD = ctx.saved_tensors
        grad_NO = grads[0].to(x_ND.dtype)
        return grad_NO @ weight_OD, grad_NO.T @ x_ND, None
