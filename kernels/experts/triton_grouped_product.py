"""Products of rows with the matrix of their own expert (Triton): rows stand grouped by expert, each expert's rows padded to whole tiles.

Plain Triton, for every type and width; `hopper_product` serves the large bfloat16 ones. Unused tiles return at once.
Axes: N tokens, X slots a token, E experts, R padded rows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.experts.triton_layout import Layout
from samepath.kernels.gpu.tiles import GROUP_TILES, Tiles, default_tiles, operand_type, tile_place


@triton.jit
def source_rows(pair_of_row, rows, num_slots, GATHERED: tl.constexpr):
    """(row of the left matrix, which hold a pair) of the given padded rows; GATHERED reads the token's row."""
    pair = tl.load(pair_of_row + rows)
    if GATHERED:
        return tl.where(pair < 0, 0, pair // num_slots).to(tl.int64), pair >= 0
    return rows.to(tl.int64), pair >= 0


@triton.jit
def _grouped_product(
    left,
    right,
    out,
    pair_of_row,
    expert_of_tile,
    num_slots,
    num_tiles,
    num_columns,
    num_inner,
    GATHERED: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    GROUP: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """out[r] = left[source(r)] · right[expert], with right [E, columns, inner] if TRANSPOSED, else [E, inner, columns]."""
    row_tile, column_tile = tile_place(num_columns, COLUMNS, GROUP, num_tiles)
    expert = tl.load(expert_of_tile + row_tile)
    if expert >= 0:
        rows = row_tile * ROWS + tl.arange(0, ROWS)
        source, live = source_rows(pair_of_row, rows, num_slots, GATHERED)
        column = column_tile * COLUMNS + tl.arange(0, COLUMNS)
        inner = tl.arange(0, INNER)
        matrix = right + expert.to(tl.int64) * num_columns * num_inner
        accumulator = tl.zeros((ROWS, COLUMNS), tl.float32)
        for first in range(0, num_inner, INNER):
            step = first + inner
            a = tl.load(
                left + source[:, None] * num_inner + step[None, :],
                mask=live[:, None] & (step < num_inner)[None, :],
                other=0.0,
            )
            if TRANSPOSED:
                b = tl.load(
                    matrix + column[:, None] * num_inner + step[None, :],
                    mask=(column < num_columns)[:, None] & (step < num_inner)[None, :],
                    other=0.0,
                )
                b = tl.trans(b)
            else:
                b = tl.load(
                    matrix + step[:, None] * num_columns + column[None, :],
                    mask=(step < num_inner)[:, None] & (column < num_columns)[None, :],
                    other=0.0,
                )
            accumulator = tl.dot(a.to(OPERAND), b.to(OPERAND), accumulator, input_precision="ieee")
        place = rows.to(tl.int64)[:, None] * num_columns + column[None, :]
        tl.store(out + place, accumulator.to(out.dtype.element_ty), mask=(column < num_columns)[None, :])


def grouped_product(
    left: Tensor, right: Tensor, layout: Layout, *, gathered: bool, transposed: bool, tiles: Tiles | None = None
) -> Tensor:
    """[R, columns]: each padded row times its expert's matrix; rows of unused tiles hold anything.

    Args:
        left: [N, inner] tokens if `gathered`, else [R, inner] rows. right: [E, columns, inner] if `transposed`, else [E, inner, columns].
    """
    tiles = tiles or default_tiles(left.dtype)
    num_inner = left.shape[1]
    num_columns = right.shape[1] if transposed else right.shape[2]
    out = torch.empty(layout.num_rows, num_columns, dtype=left.dtype, device=left.device)
    num_tiles = layout.expert_of_tile.shape[0]
    if num_tiles:
        _grouped_product[(num_tiles * triton.cdiv(num_columns, tiles.columns),)](
            left,
            right,
            out,
            layout.pair_of_row,
            layout.expert_of_tile,
            layout.num_slots,
            num_tiles,
            num_columns,
            num_inner,
            GATHERED=gathered,
            TRANSPOSED=transposed,
            ROWS=layout.block_rows,
            COLUMNS=tiles.columns,
            GROUP=GROUP_TILES,
            OPERAND=operand_type(left.dtype),
            **tiles.arguments(),
        )
    return out


@triton.jit
def _grouped_outer_product(
    left,
    right,
    out,
    pair_of_row,
    first_block,
    num_slots,
    height,
    width,
    LEFT_GATHERED: tl.constexpr,
    RIGHT_GATHERED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    GROUP: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """out[e] = Σ over the rows r of expert e of left[r]ᵀ · right[r]."""
    expert = tl.program_id(1)
    row_tile, column_tile = tile_place(width, COLUMNS, GROUP, tl.cdiv(height, ROWS))
    start = tl.load(first_block + expert) * BLOCK_ROWS
    stop = tl.load(first_block + expert + 1) * BLOCK_ROWS
    row = row_tile * ROWS + tl.arange(0, ROWS)
    column = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    accumulator = tl.zeros((ROWS, COLUMNS), tl.float32)
    # Read a step ahead, so that the loads of a step wait for no index. Padding, and what is past the end, counts as zero.
    inner = start + tl.arange(0, INNER)
    pair = tl.load(pair_of_row + inner, mask=inner < stop, other=-1)
    for _ in range(start, stop, INNER):
        live = (pair >= 0)[:, None]
        token = tl.where(pair < 0, 0, pair // num_slots).to(tl.int64)
        left_row = token if LEFT_GATHERED else inner.to(tl.int64)
        right_row = token if RIGHT_GATHERED else inner.to(tl.int64)
        a = tl.load(left + left_row[:, None] * height + row[None, :], mask=live & (row < height)[None, :], other=0.0)
        b = tl.load(
            right + right_row[:, None] * width + column[None, :], mask=live & (column < width)[None, :], other=0.0
        )
        inner += INNER
        pair = tl.load(pair_of_row + inner, mask=inner < stop, other=-1)
        accumulator = tl.dot(tl.trans(a.to(OPERAND)), b.to(OPERAND), accumulator, input_precision="ieee")
    place = (expert.to(tl.int64) * height + row)[:, None] * width + column[None, :]
    keep = (row < height)[:, None] & (column < width)[None, :]
    tl.store(out + place, accumulator.to(out.dtype.element_ty), mask=keep)


def grouped_outer_product(
    left: Tensor,
    right: Tensor,
    layout: Layout,
    *,
    left_gathered: bool = False,
    right_gathered: bool = False,
    tiles: Tiles | None = None,
) -> Tensor:
    """[E, left width, right width]: each expert's sum of outer products over its rows, in row order; zero for unused experts."""
    tiles = tiles or default_tiles(left.dtype)
    num_experts = layout.first_block_E.shape[0] - 1
    height, width = left.shape[1], right.shape[1]
    out = torch.empty(num_experts, height, width, dtype=left.dtype, device=left.device)
    grid = (triton.cdiv(height, tiles.rows) * triton.cdiv(width, tiles.columns), num_experts)
    _grouped_outer_product[grid](
        left,
        right,
        out,
        layout.pair_of_row,
        layout.first_block_E,
        layout.num_slots,
        height,
        width,
        LEFT_GATHERED=left_gathered,
        RIGHT_GATHERED=right_gathered,
        BLOCK_ROWS=layout.block_rows,
        ROWS=tiles.rows,
        COLUMNS=tiles.columns,
        GROUP=GROUP_TILES,
        OPERAND=operand_type(left.dtype),
        **tiles.arguments(),
    )
    return out
