"""Attention over all keys of a window (Triton), forward: online softmax over key tiles; one program some (query, head) rows of one key head.

The query heads that share a key head stand with their queries in one tile, so that few heads or a single decoded token fill a product too.
A row's keys are read in tiles that count from its first key, and tiles in segments of `SEGMENT` keys, each with its own softmax, which are merged
in order: decoding computes the segments side by side and gets the same bits. A tile behind a row's end leaves every bit of the row as it is.

Axes: N query rows, H query heads, G key heads, S rows of the store, W row width, K key width, V value width; B, T of a window as in
`window.py`; M (query, head) rows of one sequence and key head, head by head within a query.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.dense_attention.triton_segments import (
    merge,
    merge_window,
    no_keys,
    room_for_segments,
    store_result,
    store_segment,
)
from samepath.kernels.gpu.loading import interpreting
from samepath.kernels.gpu.row_parts import LOG2_E, add_product, load_parts, score_rows, split_width
from samepath.kernels.gpu.tiles import on_hopper, operand_type
from samepath.kernels.window import AttentionPlan, Window

SEGMENT = 2048
"""Keys that share one softmax before segments are merged. It decides a row's rounding, so it is one number for prefill, decode and learner."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """Shape of the products. `keys` decides rounding; the others change the speed alone."""

    rows: int = 128
    """(Query, head) rows per program, at least 64 on the tensor cores: they must take one form of product."""
    keys: int = 64
    """Keys a tile."""
    num_warps: int = 8
    """Warps a program; all of them lie along the rows."""
    num_stages: int = 2
    """Key tiles in flight."""


@triton.jit
def tile_rows(rows, ends, first, num_queries, shared, group, num_heads, ROWS: tl.constexpr):
    """(place of each row in [N·H], number of keys it sees) of a tile of one sequence's (query, head) rows; 0 keys for rows that do not exist."""
    place = first + tl.arange(0, ROWS)
    query = place // shared
    inside = query < num_queries
    end = tl.load(ends + query, mask=inside, other=0).to(tl.int32)
    row = tl.load(rows + query, mask=inside, other=0).to(tl.int64)
    return row * num_heads + group * shared + place % shared, end


@triton.jit
def _add_tiles(
    state,
    q_main,
    q_rest,
    store,
    table,
    end,
    begin,
    stop,
    low,
    high,
    factor,
    row_width,
    value_start,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    KEYS: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """Add the key tiles from `begin` to `stop` to a segment's (values, rest of the values, maximum, sum)."""
    out, out_rest, top, total = state
    slots = tl.arange(0, KEYS)
    key_rows = tl.load(table + begin + slots, mask=begin + slots < high, other=0)
    for first in range(begin, stop, KEYS):
        live = first + slots < high
        scores, _, _ = score_rows(q_main, q_rest, store, key_rows, live, row_width, KEY, OPERAND)
        v_main, v_rest = load_parts(store + value_start, key_rows, live, row_width, VALUE, OPERAND)
        # Read ahead, so that the gather of the next tile waits for no index.
        key_rows = tl.load(table + first + KEYS + slots, mask=first + KEYS + slots < high, other=0)
        if first + KEYS > low:
            scores = tl.where((first + slots)[None, :] < end[:, None], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1) * factor)
        rescale = tl.exp2(top - new_top)
        lowered = tl.broadcast_to(-new_top[:, None], scores.shape)
        probs = tl.exp2(tl.fma(scores, tl.full(scores.shape, factor, tl.float32), lowered))
        total = tl.fma(total, rescale, tl.sum(probs, 1))
        top = new_top
        factors = rescale[:, None]
        out, out_rest = add_product(probs.to(OPERAND), v_main, v_rest, out * factors, out_rest * factors, VALUE)
    return out, out_rest, top, total


@triton.jit
def _attend_forward(
    q,
    store,
    tables,
    out,
    lse,
    parts,
    scale,
    sizes,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    SEGMENT: tl.constexpr,
    SPLIT: tl.constexpr,
    ONE: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """All segments of a tile of rows, or with SPLIT one segment of it, whose sums go to `parts`."""
    rows_BT, ends_BT, keys_BS = tables
    num_queries, num_keys, num_heads, shared, group_stride, row_width, value_start = sizes
    group = tl.program_id(1)
    zero = tl.full((), 0, tl.int64)
    if SPLIT:
        segments = tl.cdiv(num_keys, SEGMENT)
        sequence = zero + tl.program_id(2) // segments
        tile = tl.program_id(0)
    else:
        sequence = zero + tl.program_id(2)
        # The last rows see most keys: they start first.
        tile = tl.num_programs(0) - 1 - tl.program_id(0)
    rows, ends = rows_BT + sequence * num_queries, ends_BT + sequence * num_queries
    places, end = tile_rows(rows, ends, tile * ROWS, num_queries, shared, group, num_heads, ROWS)
    live = end > 0
    q_main, q_rest = load_parts(q, places, live, KEY.total, KEY, OPERAND)
    high = tl.max(end, 0)
    # Up to here every row of the tile sees every key.
    low = tl.min(tl.where(live, end, high), 0) // KEYS * KEYS
    factor = scale * LOG2_E
    keys = store + group * group_stride
    table = keys_BS + sequence * num_keys
    state = no_keys(ROWS, VALUE)
    begin = 0
    last = high
    if SPLIT:
        begin = tl.program_id(2) % segments * SEGMENT
        last = tl.minimum(begin + SEGMENT, high)
    for first in range(begin, last, SEGMENT):
        stop = tl.minimum(first + SEGMENT, high)
        added = no_keys(ROWS, VALUE)
        added = _add_tiles(
            added, q_main, q_rest, keys, table, end, first, stop, low, high, factor, row_width, value_start,
            KEY, VALUE, KEYS, OPERAND,
        )  # fmt: skip
        if ONE:
            state = added
        else:
            state = merge(state, added, VALUE)
    if SPLIT:
        # The rows of one sequence and segment stand together, head by head.
        place = (tl.program_id(2) % segments * (zero + tl.num_programs(2) // segments) + sequence) * num_heads
        place += group * shared + tl.arange(0, ROWS)
        if begin < high:
            store_segment(state, parts, place, live, VALUE)
    else:
        store_result(state, out, lse, places, live, VALUE)


def attend_forward(
    q_NHK: Tensor,
    rows_GSW: Tensor,
    plan: AttentionPlan,
    scale: float,
    value_start: int,
    value_width: int,
    tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor]:
    """(out_NHV in q's type, lse_NH float32 natural logarithm); rows without keys give 0 and −inf."""
    num_rows, num_heads, _ = q_NHK.shape
    # Rows that stand in no window are written by no program.
    out_NHV = torch.zeros(num_rows, num_heads, value_width, dtype=q_NHK.dtype, device=q_NHK.device)
    lse_NH = torch.full((num_rows, num_heads), -torch.inf, dtype=torch.float32, device=q_NHK.device)
    q_NHK, rows_GSW = q_NHK.contiguous(), rows_GSW.contiguous()
    for window in plan.windows:
        if window.rows_BT.numel():
            _attend_window(q_NHK, rows_GSW, window, scale, value_start, out_NHV, lse_NH, tiles)
    return out_NHV, lse_NH


def _attend_window(
    q_NHK: Tensor,
    rows_GSW: Tensor,
    window: Window,
    scale: float,
    value_start: int,
    out_NHV: Tensor,
    lse_NH: Tensor,
    tiles: Tiles | None,
) -> None:
    (num_sequences, num_queries), num_keys = window.rows_BT.shape, window.keys_BS.shape[1]
    num_groups, num_heads = rows_GSW.shape[0], q_NHK.shape[1]
    shared = num_heads // num_groups
    segments = triton.cdiv(num_keys, SEGMENT)
    split = num_queries == 1 and segments > 1 and shared <= 64
    parts = room_for_segments(segments, num_sequences, out_NHV) if split else (out_NHV, lse_NH, lse_NH)
    tables = (window.rows_BT, window.ends_BT, window.keys_BS)
    sizes = (num_queries, num_keys, num_heads, shared, rows_GSW.stride(0), rows_GSW.shape[2], value_start)
    walk = {"SEGMENT": SEGMENT, "SPLIT": split, "ONE": split or segments == 1}
    programs = (num_groups, num_sequences * (segments if split else 1))
    if tiles is None and fits_hopper(q_NHK, rows_GSW, value_start, out_NHV.shape[2]):
        groups = 1 if num_queries * shared <= 64 else 2
        grid = (triton.cdiv(num_queries * shared, 64 * groups), *programs)
        # Gluon has no interpreter, and older Triton no Gluon.
        from samepath.kernels.dense_attention.hopper_forward import launch_forward

        arguments = (q_NHK, rows_GSW, *tables, out_NHV, lse_NH, *parts, scale, *sizes)
        launch_forward(arguments, grid, out_NHV.shape[2], groups, walk)
    else:
        tiles = tiles or default_tiles(q_NHK, num_queries * shared)
        _attend_forward[(triton.cdiv(num_queries * shared, tiles.rows), *programs)](
            q_NHK,
            rows_GSW,
            tables,
            out_NHV,
            lse_NH,
            parts,
            scale,
            sizes,
            KEY=split_width(q_NHK.shape[2]),
            VALUE=split_width(out_NHV.shape[2]),
            **walk,
            ROWS=tiles.rows,
            KEYS=tiles.keys,
            OPERAND=operand_type(q_NHK.dtype),
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
        )
    if split:
        merge_window(window, parts, SEGMENT, out_NHV, lse_NH)


def fits_hopper(q_NHK: Tensor, rows_GSW: Tensor, value_start: int, value_width: int) -> bool:
    """Whether the kernel written for Hopper serves this call: bfloat16, K = V = 64 or 128, compute capability 9."""
    widths = q_NHK.shape[2] == value_width and value_width in (64, 128)
    aligned = rows_GSW.shape[2] % 16 == 0 and value_start % 16 == 0
    return q_NHK.dtype == torch.bfloat16 and widths and aligned and on_hopper(q_NHK)


def default_tiles(q_NHK: Tensor, num_rows: int) -> Tiles:
    """Tiles for this type and the number of (query, head) rows of a sequence and key head."""
    if interpreting():
        return Tiles(rows=16, keys=16)
    if q_NHK.dtype == torch.float32:
        return Tiles(rows=32, keys=32, num_warps=4, num_stages=1)
    if num_rows <= 64:
        return Tiles(rows=64, num_warps=4)
    return Tiles()
