"""Rows of tokens carried to their experts' rows and back (Triton): copies, and sums that each token owns.

Bound by the bytes moved. Axes: N tokens, X slots a token, D width, R padded rows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.experts.triton_layout import Layout


@triton.jit(do_not_specialize=["num_tokens"])
def _spread_rows(
    first,
    second,
    first_rows,
    second_rows,
    row_of_pair,
    pair_of_row,
    last_block,
    num_tokens,
    width,
    SLOTS: tl.constexpr,
    TWO: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    SOME_ROWS: tl.constexpr,
):
    """Copy a token's row of one or two matrices to the rows of its pairs; with two, programs behind the tokens set padding to 0."""
    program = tl.program_id(0)
    channel = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    if program < num_tokens:
        place = program.to(tl.int64) * width + channel
        one = tl.load(first + place, mask=channel < width)
        if TWO:
            two = tl.load(second + place, mask=channel < width)
        for slot in tl.static_range(SLOTS):
            row = tl.load(row_of_pair + program * SLOTS + slot).to(tl.int64)
            tl.store(first_rows + row * width + channel, one, mask=channel < width)
            if TWO:
                tl.store(second_rows + row * width + channel, two, mask=channel < width)
    else:
        start = (program - num_tokens) * BLOCK_ROWS
        if start < tl.load(last_block) * BLOCK_ROWS:
            zero = tl.zeros((SOME_ROWS, WIDTH), first_rows.dtype.element_ty)
            for some in range(start, start + BLOCK_ROWS, SOME_ROWS):
                row = some + tl.arange(0, SOME_ROWS)
                pair = tl.load(pair_of_row + row)
                if tl.min(pair, 0) < 0:
                    place = row.to(tl.int64)[:, None] * width + channel[None, :]
                    keep = (pair < 0)[:, None] & (channel < width)[None, :]
                    tl.store(first_rows + place, zero, mask=keep)
                    tl.store(second_rows + place, zero, mask=keep)


def spread_rows(first_ND: Tensor, second_ND: Tensor | None, layout: Layout) -> tuple[Tensor, Tensor]:
    """One or two matrices' token rows at the rows of their pairs `[R, D]`; padding is 0 with two, anything with one."""
    num_tokens, width = first_ND.shape
    first_RD = first_ND.new_empty(layout.num_rows, width)
    second_RD = first_RD if second_ND is None else first_ND.new_empty(layout.num_rows, width)
    blocks = 0 if second_ND is None else layout.num_rows // layout.block_rows
    block = min(1024, triton.next_power_of_2(width))
    if layout.num_rows:
        _spread_rows[(num_tokens + blocks, triton.cdiv(width, block))](
            first_ND,
            first_ND if second_ND is None else second_ND,
            first_RD,
            second_RD,
            layout.row_of_pair,
            layout.pair_of_row,
            layout.first_block_E[-1:],
            num_tokens,
            width,
            SLOTS=layout.num_slots,
            TWO=second_ND is not None,
            WIDTH=block,
            BLOCK_ROWS=layout.block_rows,
            SOME_ROWS=min(8, layout.block_rows),
        )
    return first_RD, second_RD


@triton.jit
def _combine(
    rows,
    gates,
    row_of_pair,
    out,
    width,
    SLOTS: tl.constexpr,
    WIDTH: tl.constexpr,
    GATED: tl.constexpr,
):
    """out[n] = Σ_x gate·row, slot after slot; each token reads its own rows, so nothing is added by atomics."""
    token = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    total = tl.zeros((WIDTH,), tl.float32)
    for slot in tl.static_range(SLOTS):
        row = tl.load(row_of_pair + token * SLOTS + slot).to(tl.int64)
        value = tl.load(rows + row * width + channel, mask=channel < width, other=0.0).to(tl.float32)
        if GATED:
            value = value * tl.load(gates + token * SLOTS + slot).to(tl.float32)
        total += value
    tl.store(out + token * width + channel, total.to(out.dtype.element_ty), mask=channel < width)


def combine(rows_RD: Tensor, gates_NX: Tensor | None, layout: Layout) -> Tensor:
    """[N, D] sum of each token's rows in slot order, times the gates if given."""
    return _combined(rows_RD, gates_NX, layout.row_of_pair, layout.num_slots)


def gated_sum(rows_RD: Tensor, gates_NX: Tensor, rows_NX: Tensor) -> Tensor:
    """`combine` of rows that stand as `rows_NX` says."""
    rows = rows_NX.to(torch.int32).flatten()
    return _combined(rows_RD.contiguous(), gates_NX.contiguous(), rows, rows_NX.shape[1])


def _combined(rows_RD: Tensor, gates_NX: Tensor | None, row_of_pair: Tensor, num_slots: int) -> Tensor:
    num_tokens = row_of_pair.shape[0] // num_slots
    width = rows_RD.shape[1]
    out_ND = rows_RD.new_empty(num_tokens, width)
    block = min(1024, triton.next_power_of_2(width))
    if num_tokens:
        _combine[(num_tokens, triton.cdiv(width, block))](
            rows_RD,
            rows_RD if gates_NX is None else gates_NX,
            row_of_pair,
            out_ND,
            width,
            SLOTS=num_slots,
            WIDTH=block,
            GATED=gates_NX is not None,
        )
    return out_ND
