"""Attention over all keys of a window (Triton): the kernels of the gradients, of the keys by tiles of keys and of the queries by tiles of rows.

Both recompute the probabilities from the forward's LSE; nothing is added by atomics.

Axes: N query rows, H query heads, G key heads, S rows of the store, W row width, V value width; B, T, S of a window as in `window.py`; M (query, head)
rows of one sequence and key head.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.dense_attention.triton_forward import tile_rows
from samepath.kernels.gpu.loading import interpreting
from samepath.kernels.gpu.row_parts import (
    LOG2_E,
    add_product,
    load_parts,
    no_part,
    no_parts,
    score_rows,
    split_width,
    store_parts,
)
from samepath.kernels.gpu.tiles import operand_type

SCAN = tl.constexpr(1024)
"""Ends that are read at once to find the queries that see a tile of keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """Shape of the products of one kernel."""

    rows: int = 64
    """(Query, head) rows a tile."""
    keys: int = 128
    """Keys a tile."""
    num_warps: int = 8
    """Warps a program."""
    num_stages: int = 2
    """Tiles in flight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackwardTiles:
    """Shapes of both kernels."""

    by_keys: Tiles
    """Key gradients: keys stay, rows pass."""
    by_rows: Tiles
    """Query gradients: rows stay, keys pass."""


@triton.jit
def seeing_queries(ends, num_queries, first_key):
    """(first query that sees the key, last one + 1, largest end) of a sequence; an empty range if none does."""
    low = num_queries
    high = 0
    longest = 0
    for start in range(0, num_queries, SCAN):
        query = start + tl.arange(0, SCAN)
        end = tl.load(ends + query, mask=query < num_queries, other=0).to(tl.int32)
        low = tl.minimum(low, tl.min(tl.where(end > first_key, query, num_queries), 0))
        high = tl.maximum(high, tl.max(tl.where(end > first_key, query + 1, 0), 0))
        longest = tl.maximum(longest, tl.max(end, 0))
    return low, high, longest


@triton.jit
def add_rows(target, place, live, values, first, stride, WIDTH: tl.constexpr, STOP: tl.constexpr, ADD: tl.constexpr):
    """Store or add channels first … of some rows' gradients, at most STOP of them; no other program has these rows."""
    channel = tl.arange(0, WIDTH)
    pointers = target + place[:, None] * stride + first + channel[None, :]
    keep = live[:, None] & (channel < STOP)[None, :]
    if ADD:
        values += tl.load(pointers, mask=keep, other=0.0)
    tl.store(pointers, values, mask=keep)


@triton.jit
def _backward_keys(
    q,
    store,
    grad_out,
    tables,
    lse,
    delta,
    target,
    scale,
    sizes,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PAIRS: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """Gradients of one tile of keys of one sequence and key head: with PAIRS stored by sequence and place, else added to the rows' own."""
    rows_BT, ends_BT, keys_BS = tables
    num_queries, num_keys, num_heads, shared, group_stride, row_width, value_start = sizes
    zero = tl.full((), 0, tl.int64)
    group = tl.program_id(1)
    sequence = zero + tl.program_id(2)
    first_key = tl.program_id(0) * KEYS
    slots = first_key + tl.arange(0, KEYS)
    rows, ends = rows_BT + sequence * num_queries, ends_BT + sequence * num_queries
    low, high, longest = seeing_queries(ends, num_queries, first_key)
    live = slots < longest
    key_rows = tl.load(keys_BS + sequence * num_keys + slots, mask=live, other=0)
    keys = store + group * group_stride
    k_main, k_rest = load_parts(keys, key_rows, live, row_width, KEY, OPERAND)
    v_main, v_rest = load_parts(keys + value_start, key_rows, live, row_width, VALUE, OPERAND)
    grad_k, grad_v = no_part(KEYS, KEY.main), no_part(KEYS, VALUE.main)
    if KEY.rest:
        grad_k_rest = no_part(KEYS, KEY.rest)
    if VALUE.rest:
        grad_v_rest = no_part(KEYS, VALUE.rest)
    places, end = tile_rows(rows, ends, low * shared, num_queries, shared, group, num_heads, ROWS)
    for first in range(low * shared, high * shared, ROWS):
        lse_M = tl.load(lse + places, mask=end > 0, other=float("inf")) * LOG2_E
        delta_M = tl.load(delta + places, mask=end > 0, other=0.0)
        q_main, q_rest = load_parts(q, places, end > 0, KEY.total, KEY, OPERAND)
        o_main, o_rest = load_parts(grad_out, places, end > 0, VALUE.total, VALUE, OPERAND)
        seen = slots[:, None] < end[None, :]
        places, end = tile_rows(rows, ends, first + ROWS, num_queries, shared, group, num_heads, ROWS)
        scores = tl.dot(k_main, tl.trans(q_main), input_precision="ieee")
        grad_probs = tl.dot(v_main, tl.trans(o_main), input_precision="ieee")
        if KEY.rest:
            scores = tl.dot(k_rest, tl.trans(q_rest), scores, input_precision="ieee")
        if VALUE.rest:
            grad_probs = tl.dot(v_rest, tl.trans(o_rest), grad_probs, input_precision="ieee")
        probs = tl.where(seen, tl.exp2(scores * (scale * LOG2_E) - lse_M[None, :]), 0.0)
        p, ds = probs.to(OPERAND), (probs * (grad_probs - delta_M[None, :])).to(OPERAND)
        grad_v = tl.dot(p, o_main, grad_v, input_precision="ieee")
        grad_k = tl.dot(ds, q_main, grad_k, input_precision="ieee")
        if VALUE.rest:
            grad_v_rest = tl.dot(p, o_rest, grad_v_rest, input_precision="ieee")
        if KEY.rest:
            grad_k_rest = tl.dot(ds, q_rest, grad_k_rest, input_precision="ieee")
    place = (sequence * num_keys + slots if PAIRS else key_rows) * tl.num_programs(1) + group
    add_rows(target, place, live, grad_k * scale, 0, row_width, KEY.main, KEY.total, not PAIRS)
    add_rows(target, place, live, grad_v, value_start, row_width, VALUE.main, VALUE.total, not PAIRS)
    if KEY.rest:
        add_rows(
            target, place, live, grad_k_rest * scale, KEY.main, row_width, KEY.rest, KEY.total - KEY.main, not PAIRS
        )
    if VALUE.rest:
        first_rest = value_start + VALUE.main
        add_rows(
            target, place, live, grad_v_rest, first_rest, row_width, VALUE.rest, VALUE.total - VALUE.main, not PAIRS
        )


@triton.jit
def _backward_queries(
    q,
    store,
    grad_out,
    tables,
    lse,
    delta,
    grad_q,
    scale,
    sizes,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """Gradients of one tile of (query, head) rows."""
    rows_BT, ends_BT, keys_BS = tables
    num_queries, num_keys, num_heads, shared, group_stride, row_width, value_start = sizes
    zero = tl.full((), 0, tl.int64)
    group = tl.program_id(1)
    sequence = zero + tl.program_id(2)
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    rows, ends = rows_BT + sequence * num_queries, ends_BT + sequence * num_queries
    places, end = tile_rows(rows, ends, tile * ROWS, num_queries, shared, group, num_heads, ROWS)
    live = end > 0
    q_main, q_rest = load_parts(q, places, live, KEY.total, KEY, OPERAND)
    o_main, o_rest = load_parts(grad_out, places, live, VALUE.total, VALUE, OPERAND)
    lse_M = tl.load(lse + places, mask=live, other=float("inf")) * LOG2_E
    delta_M = tl.load(delta + places, mask=live, other=0.0)
    high = tl.max(end, 0)
    keys = store + group * group_stride
    table = keys_BS + sequence * num_keys
    grad, grad_rest = no_parts(ROWS, KEY)
    slots = tl.arange(0, KEYS)
    key_rows = tl.load(table + slots, mask=slots < high, other=0)
    for first in range(0, high, KEYS):
        inside = first + slots < high
        scores, k_main, k_rest = score_rows(q_main, q_rest, keys, key_rows, inside, row_width, KEY, OPERAND)
        grad_probs, _, _ = score_rows(o_main, o_rest, keys + value_start, key_rows, inside, row_width, VALUE, OPERAND)
        key_rows = tl.load(table + first + KEYS + slots, mask=first + KEYS + slots < high, other=0)
        probs = tl.exp2(scores * (scale * LOG2_E) - lse_M[:, None])
        probs = tl.where((first + slots)[None, :] < end[:, None], probs, 0.0)
        ds = (probs * (grad_probs - delta_M[:, None])).to(OPERAND)
        grad, grad_rest = add_product(ds, k_main, k_rest, grad, grad_rest, KEY)
    store_parts(grad_q, places, live, KEY.total, grad, grad_rest, scale, KEY)


def launch_gradients(
    inputs: tuple[Tensor, ...],
    sizes: tuple[int, ...],
    targets: tuple[Tensor, Tensor],
    scale: float,
    value_width: int,
    tiles: BackwardTiles | None,
    pairs: bool,
) -> None:
    """Both kernels: write the query gradients; store or add the key gradients.

    Args:
        inputs: q, store, grad_out, rows_BT, ends_BT, keys_BS, lse, delta. targets: of the queries, of the keys.
        sizes: num_queries, num_keys, num_heads, shared, group_stride, row_width, value_start.
    """
    q_NHK = inputs[0]
    operands, tables, rows = inputs[:3], inputs[3:6], inputs[6:]
    num_queries, num_keys, num_heads, shared = sizes[:4]
    num_groups, num_sequences = num_heads // shared, inputs[3].shape[0]
    shape = {
        "KEY": split_width(q_NHK.shape[2]),
        "VALUE": split_width(value_width),
        "OPERAND": operand_type(q_NHK.dtype),
    }
    tiles = tiles or default_tiles(q_NHK)
    by_keys, by_rows = tiles.by_keys, tiles.by_rows
    _backward_keys[(triton.cdiv(num_keys, by_keys.keys), num_groups, num_sequences)](
        *operands,
        tables,
        *rows,
        targets[1],
        scale,
        sizes,
        **shape,
        ROWS=by_keys.rows,
        KEYS=by_keys.keys,
        PAIRS=pairs,
        num_warps=by_keys.num_warps,
        num_stages=by_keys.num_stages,
    )
    blocks = triton.cdiv(num_queries * shared, by_rows.rows)
    _backward_queries[(blocks, num_groups, num_sequences)](
        *operands,
        tables,
        *rows,
        targets[0],
        scale,
        sizes,
        **shape,
        ROWS=by_rows.rows,
        KEYS=by_rows.keys,
        num_warps=by_rows.num_warps,
        num_stages=by_rows.num_stages,
    )


def default_tiles(q_NHK: Tensor) -> BackwardTiles:
    """Tiles that fit the multiprocessor for this type."""
    if interpreting():
        return BackwardTiles(by_keys=Tiles(rows=16, keys=16), by_rows=Tiles(rows=16, keys=16))
    if q_NHK.dtype == torch.float32:
        small = Tiles(rows=32, keys=32, num_warps=4, num_stages=1)
        return BackwardTiles(by_keys=small, by_rows=small)
    return BackwardTiles(by_keys=Tiles(), by_rows=Tiles(rows=128, keys=64))
