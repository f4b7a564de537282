"""Segments of a row's keys and their softmax (Triton): how two are merged, and how those of a decoded token, computed side by side, become one.

Axes: N query rows, H query heads, V value width; B of a window as in `window.py`; M (query, head) rows of one sequence and key head.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.gpu.row_parts import LOG2_E, load_parts, no_parts, split_width, store_parts
from samepath.kernels.window import Window

LOWEST = tl.constexpr(-1e30)
"""Maximum of no scores: finite, so that a row without keys gives 0 and no NaN."""


@triton.jit
def scaled_add(x, factor_M, y):
    """x · factor + y row by row, rounded once: the same bits wherever it is compiled."""
    return tl.fma(x, tl.broadcast_to(factor_M[:, None], x.shape), y)


@triton.jit
def no_keys(ROWS: tl.constexpr, VALUE: tl.constexpr):
    """(values, rest of the values, maximum, sum) of no keys."""
    out, out_rest = no_parts(ROWS, VALUE)
    return out, out_rest, tl.full((ROWS,), LOWEST, tl.float32), tl.zeros((ROWS,), tl.float32)


@triton.jit
def merge(state, added, VALUE: tl.constexpr):
    """One softmax of two segments'."""
    out, out_rest, top, total = state
    new_out, new_rest, new_top, new_total = added
    best = tl.maximum(top, new_top)
    old, new = tl.exp2(top - best), tl.exp2(new_top - best)
    out = scaled_add(out, old, new_out * new[:, None])
    if VALUE.rest:
        out_rest = scaled_add(out_rest, old, new_rest * new[:, None])
    return out, out_rest, best, tl.fma(total, old, new_total * new)


@triton.jit
def store_result(state, out, lse, places, live, VALUE: tl.constexpr):
    """Divide by the sum and store the rows that exist."""
    values, rest, top, total = state
    share = 1.0 / tl.where(total > 0, total, 1.0)
    tl.store(lse + places, (top + tl.log2(tl.where(total > 0, total, 1.0))) / LOG2_E, mask=live)
    store_parts(out, places, live, VALUE.total, values, rest, share[:, None], VALUE)


@triton.jit
def store_segment(state, parts, place, live, VALUE: tl.constexpr):
    """Store one segment's sums as they are."""
    values, rest, top, total = state
    partial, tops, totals = parts
    tl.store(tops + place, top, mask=live)
    tl.store(totals + place, total, mask=live)
    store_parts(partial, place, live, VALUE.total, values, rest, 1.0, VALUE)


@triton.jit
def _merge_segments(
    partial,
    tops,
    totals,
    rows_BT,
    ends_BT,
    out,
    lse,
    num_rows,
    num_heads,
    VALUE: tl.constexpr,
    ROWS: tl.constexpr,
    SEGMENT: tl.constexpr,
):
    """Merge the segments of some (sequence, head) rows of a decoding window in their order."""
    place = (tl.full((), 0, tl.int64) + tl.program_id(0)) * ROWS + tl.arange(0, ROWS)
    inside = place < num_rows
    end = tl.load(ends_BT + place // num_heads, mask=inside, other=0).to(tl.int32)
    row = tl.load(rows_BT + place // num_heads, mask=inside, other=0).to(tl.int64)
    state = no_keys(ROWS, VALUE)
    for first in range(0, tl.max(end, 0), SEGMENT):
        live = first < end
        at = (first // SEGMENT) * (tl.full((), 0, tl.int64) + num_rows) + place
        values, rest = load_parts(partial, at, live, VALUE.total, VALUE, tl.float32)
        top = tl.load(tops + at, mask=live, other=LOWEST)
        total = tl.load(totals + at, mask=live, other=0.0)
        state = merge(state, (values, rest, top, total), VALUE)
    store_result(state, out, lse, row * num_heads + place % num_heads, end > 0, VALUE)


def merge_window(
    window: Window, parts: tuple[Tensor, Tensor, Tensor], segment: int, out_NHV: Tensor, lse_NH: Tensor
) -> None:
    """Write output and LSE of a decoding window from the (values, maxima, sums) of its segments of so many keys [segments, B, H, …]."""
    rows, num_heads = 16, out_NHV.shape[1]
    num_rows = window.rows_BT.numel() * num_heads
    _merge_segments[(triton.cdiv(num_rows, rows),)](
        *parts,
        window.rows_BT,
        window.ends_BT,
        out_NHV,
        lse_NH,
        num_rows,
        num_heads,
        VALUE=split_width(out_NHV.shape[2]),
        ROWS=rows,
        SEGMENT=segment,
    )


def room_for_segments(num_segments: int, num_sequences: int, out_NHV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the segments of one token a sequence put their (values, maxima, sums)."""
    shape = (num_segments, num_sequences, *out_NHV.shape[1:])
    values, tops, totals = (
        torch.empty(size, dtype=torch.float32, device=out_NHV.device) for size in (shape, shape[:3], shape[:3])
    )
    return values, tops, totals
