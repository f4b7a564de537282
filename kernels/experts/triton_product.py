"""Routed experts on the Triton backend: grouped SwiGLU and a combine that each token owns, forward and backward.

Large bfloat16 widths on Hopper take the products of `hopper_product` on copied rows; all others gather on load.
Axes: N tokens, D width, E experts, F expert width, X experts chosen a token, R padded rows.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.experts.triton_grouped_product import grouped_outer_product, grouped_product, source_rows
from samepath.kernels.experts.triton_layout import Layout, group_rows
from samepath.kernels.experts.triton_rows import combine, spread_rows
from samepath.kernels.gpu.loading import interpreting
from samepath.kernels.gpu.tiles import (
    GROUP_TILES,
    Tiles,
    default_tiles,
    on_hopper,
    operand_type,
    tile_place,
)


def expert_product(x_ND: Tensor, gates_NX: Tensor, ids_NX: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor) -> Tensor:
    """Σ_x gate_x · Expert_{id_x}(token) as `expert_product.expert_product` describes."""
    out_ND: Tensor = _ExpertProduct.apply(x_ND, gates_NX, ids_NX, gate_up_EGD, down_EDF)
    return out_ND


def fits_hopper(x_ND: Tensor, down_EDF: Tensor) -> bool:
    """Whether the products written for Hopper serve these widths: bfloat16, D a multiple of 64, F of 128, compute capability 9.

    By the widths alone, never by the number of rows, so that a row's bits do not depend on its batch.
    """
    widths = down_EDF.shape[1] % 64 == 0 and down_EDF.shape[2] % 128 == 0
    return x_ND.dtype == torch.bfloat16 and widths and on_hopper(x_ND)


@triton.jit
def _gated_units(
    x,
    gate_up,
    hidden,
    products,
    pair_of_row,
    expert_of_tile,
    num_slots,
    num_tiles,
    num_units,
    width,
    KEEP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    GROUP: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """hidden = SiLU(x·Wgᵀ) · (x·Wuᵀ) of each padded row; KEEP also writes both products, for the backward."""
    row_tile, column_tile = tile_place(num_units, COLUMNS, GROUP, num_tiles)
    expert = tl.load(expert_of_tile + row_tile)
    if expert >= 0:
        rows = row_tile * ROWS + tl.arange(0, ROWS)
        source, live = source_rows(pair_of_row, rows, num_slots, True)
        column = column_tile * COLUMNS + tl.arange(0, COLUMNS)
        matrix = gate_up + expert.to(tl.int64) * 2 * num_units * width
        gate = tl.zeros((ROWS, COLUMNS), tl.float32)
        up = tl.zeros((ROWS, COLUMNS), tl.float32)
        for first in range(0, width, INNER):
            step = first + tl.arange(0, INNER)
            inside = (step < width)[None, :]
            a = tl.load(x + source[:, None] * width + step[None, :], mask=live[:, None] & inside, other=0.0)
            place = column[:, None] * width + step[None, :]
            keep = (column < num_units)[:, None] & inside
            b = tl.load(matrix + place, mask=keep, other=0.0)
            gate = tl.dot(a.to(OPERAND), tl.trans(b.to(OPERAND)), gate, input_precision="ieee")
            b = tl.load(matrix + num_units * width + place, mask=keep, other=0.0)
            up = tl.dot(a.to(OPERAND), tl.trans(b.to(OPERAND)), up, input_precision="ieee")
        keep = (column < num_units)[None, :]
        place = rows.to(tl.int64)[:, None] * num_units + column[None, :]
        tl.store(hidden + place, (gate / (1.0 + tl.exp(-gate)) * up).to(hidden.dtype.element_ty), mask=keep)
        if KEEP:
            place = rows.to(tl.int64)[:, None] * 2 * num_units + column[None, :]
            tl.store(products + place, gate.to(products.dtype.element_ty), mask=keep)
            tl.store(products + num_units + place, up.to(products.dtype.element_ty), mask=keep)


@triton.jit
def _gated_units_backward(
    products,
    grad_hidden,
    gates,
    pair_of_row,
    last_block,
    grad_products,
    scaled_hidden,
    grad_gates,
    num_units,
    BLOCK_ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Per padded row: gradients of both products, gate·hidden, and the gate's own gradient Σ hidden·grad_hidden; 0 on padding."""
    row = tl.program_id(0).to(tl.int64)
    if row < tl.load(last_block) * BLOCK_ROWS:
        pair = tl.load(pair_of_row + row)
        weight = tl.load(gates + pair, mask=pair >= 0, other=0.0).to(tl.float32)
        end = tl.where(pair >= 0, num_units, 0)
        total = tl.zeros((WIDTH,), tl.float32)
        for first in range(0, num_units, WIDTH):
            unit = first + tl.arange(0, WIDTH)
            inside = unit < num_units
            keep = unit < end
            gate = tl.load(products + row * 2 * num_units + unit, mask=keep, other=0.0).to(tl.float32)
            up = tl.load(products + (row * 2 + 1) * num_units + unit, mask=keep, other=0.0).to(tl.float32)
            upstream = tl.load(grad_hidden + row * num_units + unit, mask=keep, other=0.0).to(tl.float32)
            share = 1.0 / (1.0 + tl.exp(-gate))
            silu = gate * share
            total += silu * up * upstream
            scaled = (weight * silu * up).to(scaled_hidden.dtype.element_ty)
            tl.store(scaled_hidden + row * num_units + unit, scaled, mask=inside)
            upstream = upstream * weight
            # d SiLU = σ·(1 + g·(1 − σ))
            grad_gate = (upstream * up * (share + silu * (1.0 - share))).to(grad_products.dtype.element_ty)
            tl.store(grad_products + row * 2 * num_units + unit, grad_gate, mask=inside)
            grad_up = (upstream * silu).to(grad_products.dtype.element_ty)
            tl.store(grad_products + (row * 2 + 1) * num_units + unit, grad_up, mask=inside)
        tl.store(grad_gates + pair, tl.sum(total, 0).to(grad_gates.dtype.element_ty), mask=pair >= 0)


def gated_units(
    x_ND: Tensor, gate_up_EGD: Tensor, layout: Layout, keep: bool, tiles: Tiles | None = None
) -> tuple[Tensor, Tensor]:
    """(hidden [R, F], both products [R, 2F], or [0, 2F] unless they are kept)."""
    tiles = tiles or default_tiles(x_ND.dtype)
    columns = tiles.columns // 2
    num_units = gate_up_EGD.shape[1] // 2
    hidden = torch.empty(layout.num_rows, num_units, dtype=x_ND.dtype, device=x_ND.device)
    products = hidden.new_empty(layout.num_rows if keep else 0, 2 * num_units)
    num_tiles = layout.expert_of_tile.shape[0]
    if num_tiles:
        _gated_units[(num_tiles * triton.cdiv(num_units, columns),)](
            x_ND,
            gate_up_EGD,
            hidden,
            products,
            layout.pair_of_row,
            layout.expert_of_tile,
            layout.num_slots,
            num_tiles,
            num_units,
            x_ND.shape[1],
            KEEP=keep,
            ROWS=layout.block_rows,
            COLUMNS=columns,
            GROUP=GROUP_TILES,
            OPERAND=operand_type(x_ND.dtype),
            **tiles.arguments(),
        )
    return hidden, products


def units_backward(
    products: Tensor, grad_hidden: Tensor, gates_NX: Tensor, layout: Layout
) -> tuple[Tensor, Tensor, Tensor]:
    """(gradients of both products [R, 2F], gate·hidden [R, F], gradient of the gates [N, X])."""
    grad_products, scaled_hidden = torch.empty_like(products), torch.empty_like(grad_hidden)
    grad_gates_NX = torch.empty_like(gates_NX)
    num_units = grad_hidden.shape[1]
    if layout.num_rows:
        _gated_units_backward[(layout.num_rows,)](
            products,
            grad_hidden,
            gates_NX,
            layout.pair_of_row,
            layout.first_block_E[-1:],
            grad_products,
            scaled_hidden,
            grad_gates_NX,
            num_units,
            BLOCK_ROWS=layout.block_rows,
            WIDTH=min(512, triton.next_power_of_2(num_units)),
            num_warps=2 if not interpreting() else 1,
        )
    return grad_products, scaled_hidden, grad_gates_NX


class _ExpertProduct(torch.autograd.Function):
    """Keeps both first products; hidden units, and the copies of rows on Hopper, are made again in the backward."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, gates_NX: Tensor, ids_NX: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor
    ) -> Tensor:
        x_ND, gates_NX = x_ND.contiguous(), gates_NX.contiguous()
        gate_up_EGD, down_EDF = gate_up_EGD.contiguous(), down_EDF.contiguous()
        keep = any(ctx.needs_input_grad)
        if ids_NX.numel() and fits_hopper(x_ND, down_EDF):
            # Gluon has no interpreter, and older Triton no Gluon.
            import samepath.kernels.experts.hopper_product as hopper
            from samepath.kernels.experts.hopper_producer import BLOCK, CONSUMERS

            layout = group_rows(ids_NX, gate_up_EGD.shape[0], BLOCK.value, CONSUMERS.value)
            x_RD, _ = spread_rows(x_ND, None, layout)
            hidden_RF, products = hopper.gated_units(x_RD, gate_up_EGD, layout, keep)
            y_RD = hopper.grouped_product(hidden_RF, down_EDF, layout, transposed=True)
        else:
            layout = group_rows(ids_NX, gate_up_EGD.shape[0], default_tiles(x_ND.dtype).rows)
            hidden_RF, products = gated_units(x_ND, gate_up_EGD, layout, keep)
            y_RD = grouped_product(hidden_RF, down_EDF, layout, gathered=False, transposed=True)
        if keep:
            ctx.save_for_backward(x_ND, gates_NX, products, gate_up_EGD, down_EDF)
            ctx.layout = layout
        return combine(y_RD, gates_NX, layout)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, gates_NX, products, gate_up_EGD, down_EDF = ctx.saved_tensors
        layout: Layout = ctx.layout
        grad_out_ND = grads[0].contiguous()
        if layout.num_rows and fits_hopper(x_ND, down_EDF):
            # Gluon has no interpreter, and older Triton no Gluon.
            import samepath.kernels.experts.hopper_product as hopper

            grad_y_RD, x_RD = spread_rows(grad_out_ND, x_ND, layout)
            grad_hidden = hopper.grouped_product(grad_y_RD, down_EDF, layout, transposed=False)
            grad_products, scaled_hidden, grad_gates_NX = units_backward(products, grad_hidden, gates_NX, layout)
            grad_down_EDF = hopper.grouped_outer_product(grad_y_RD, scaled_hidden, layout)
            grad_gate_up_EGD = hopper.grouped_outer_product(grad_products, x_RD, layout)
            grad_x_RD = hopper.grouped_product(grad_products, gate_up_EGD, layout, transposed=False)
        else:
            grad_hidden = grouped_product(grad_out_ND, down_EDF, layout, gathered=True, transposed=False)
            grad_products, scaled_hidden, grad_gates_NX = units_backward(products, grad_hidden, gates_NX, layout)
            grad_down_EDF = grouped_outer_product(grad_out_ND, scaled_hidden, layout, left_gathered=True)
            grad_gate_up_EGD = grouped_outer_product(grad_products, x_ND, layout, right_gathered=True)
            grad_x_RD = grouped_product(grad_products, gate_up_EGD, layout, gathered=False, transposed=False)
        return combine(grad_x_RD, None, layout), grad_gates_NX, None, grad_gate_up_EGD, grad_down_EDF
