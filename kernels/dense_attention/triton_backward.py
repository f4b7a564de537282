"""Attention over all keys of a window (Triton), backward: key gradients by tiles of keys, then query gradients by tiles of rows.

Both kernels recompute the probabilities from the forward's LSE; nothing is added by atomics. A key's gradient within a sequence is one program's sum
over the queries in order; where several sequences of a window may share rows of the store, each writes its own and those of a row are added
in order; windows follow one another.

Axes: N query rows, H query heads, G key heads, S rows of the store, W row width, V value width; B, T, S of a window as in `window.py`.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.dense_attention.triton_forward import (
    fits_hopper,
    key_shape,
    load_parts,
    score_keys,
    tile_rows,
    value_shape,
)
from samepath.kernels.gpu.loading import interpreting
from samepath.kernels.gpu.tiles import operand_type
from samepath.kernels.sparse_attention.triton_backward import add_pairs_in_order, row_deltas
from samepath.kernels.sparse_attention.triton_forward import LOG2_E
from samepath.kernels.window import AttentionPlan, Window

PAIR_BYTES = 1 << 30
"""Memory for the key gradients of the sequences of one window that are worked on at once."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedRows:
    """What the forward leaves for the backward, all contiguous."""

    q_NHK: Tensor
    rows_GSW: Tensor
    out_NHV: Tensor
    lse_NH: Tensor
    plan: AttentionPlan
    scale: float
    value_start: int


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
def add_part(target, place, live, values, first, stride, WIDTH: tl.constexpr, STOP: tl.constexpr, ADD: tl.constexpr):
    """Store or add channels first … of some rows' gradients; no other program has these rows."""
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
    rows_BT,
    ends_BT,
    keys_BS,
    lse,
    delta,
    target,
    scale,
    num_queries,
    num_keys,
    num_heads,
    shared,
    group_stride,
    row_width,
    value_start,
    KEY_WIDTH: tl.constexpr,
    KEY_MAIN: tl.constexpr,
    KEY_REST: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    VALUE_MAIN: tl.constexpr,
    VALUE_REST: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PAIRS: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """Gradients of one tile of keys of one sequence and key head: with PAIRS stored by sequence and place, else added to the rows' own."""
    zero = tl.full((), 0, tl.int64)
    group = tl.program_id(1)
    sequence = zero + tl.program_id(2)
    first_key = tl.program_id(0) * KEYS
    slots = first_key + tl.arange(0, KEYS)
    rows = rows_BT + sequence * num_queries
    ends = ends_BT + sequence * num_queries
    low, high, longest = seeing_queries(ends, num_queries, first_key)
    live = slots < longest
    key_rows = tl.load(keys_BS + sequence * num_keys + slots, mask=live, other=0)
    keys = store + group * group_stride
    k_main, k_rest = load_parts(keys, key_rows, live, row_width, KEY_WIDTH, KEY_MAIN, KEY_REST, OPERAND)
    v_main, v_rest = load_parts(
        keys + value_start, key_rows, live, row_width, VALUE_WIDTH, VALUE_MAIN, VALUE_REST, OPERAND
    )
    grad_k = tl.zeros((KEYS, KEY_MAIN), tl.float32)
    grad_v = tl.zeros((KEYS, VALUE_MAIN), tl.float32)
    if KEY_REST:
        grad_k_rest = tl.zeros((KEYS, KEY_REST), tl.float32)
    if VALUE_REST:
        grad_v_rest = tl.zeros((KEYS, VALUE_REST), tl.float32)
    places, end = tile_rows(rows, ends, low * shared, num_queries, shared, group, num_heads, ROWS)
    for first in range(low * shared, high * shared, ROWS):
        lse_M = tl.load(lse + places, mask=end > 0, other=float("inf")) * LOG2_E
        delta_M = tl.load(delta + places, mask=end > 0, other=0.0)
        q_main, q_rest = load_parts(q, places, end > 0, KEY_WIDTH, KEY_WIDTH, KEY_MAIN, KEY_REST, OPERAND)
        o_main, o_rest = load_parts(
            grad_out, places, end > 0, VALUE_WIDTH, VALUE_WIDTH, VALUE_MAIN, VALUE_REST, OPERAND
        )
        seen = slots[:, None] < end[None, :]
        places, end = tile_rows(rows, ends, first + ROWS, num_queries, shared, group, num_heads, ROWS)
        scores = tl.dot(k_main, tl.trans(q_main), input_precision="ieee")
        grad_probs = tl.dot(v_main, tl.trans(o_main), input_precision="ieee")
        if KEY_REST:
            scores = tl.dot(k_rest, tl.trans(q_rest), scores, input_precision="ieee")
        if VALUE_REST:
            grad_probs = tl.dot(v_rest, tl.trans(o_rest), grad_probs, input_precision="ieee")
        probs = tl.where(seen, tl.exp2(scores * (scale * LOG2_E) - lse_M[None, :]), 0.0)
        p, ds = probs.to(OPERAND), (probs * (grad_probs - delta_M[None, :])).to(OPERAND)
        grad_v = tl.dot(p, o_main, grad_v, input_precision="ieee")
        grad_k = tl.dot(ds, q_main, grad_k, input_precision="ieee")
        if VALUE_REST:
            grad_v_rest = tl.dot(p, o_rest, grad_v_rest, input_precision="ieee")
        if KEY_REST:
            grad_k_rest = tl.dot(ds, q_rest, grad_k_rest, input_precision="ieee")
    place = (sequence * num_keys + slots if PAIRS else key_rows) * tl.num_programs(1) + group
    add_part(target, place, live, grad_k * scale, 0, row_width, KEY_MAIN, KEY_WIDTH, not PAIRS)
    add_part(target, place, live, grad_v, value_start, row_width, VALUE_MAIN, VALUE_WIDTH, not PAIRS)
    if KEY_REST:
        add_part(
            target, place, live, grad_k_rest * scale, KEY_MAIN, row_width, KEY_REST, KEY_WIDTH - KEY_MAIN, not PAIRS
        )
    if VALUE_REST:
        first_rest = value_start + VALUE_MAIN
        add_part(
            target, place, live, grad_v_rest, first_rest, row_width, VALUE_REST, VALUE_WIDTH - VALUE_MAIN, not PAIRS
        )


@triton.jit
def _backward_queries(
    q,
    store,
    grad_out,
    rows_BT,
    ends_BT,
    keys_BS,
    lse,
    delta,
    grad_q,
    scale,
    num_queries,
    num_keys,
    num_heads,
    shared,
    group_stride,
    row_width,
    value_start,
    KEY_WIDTH: tl.constexpr,
    KEY_MAIN: tl.constexpr,
    KEY_REST: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    VALUE_MAIN: tl.constexpr,
    VALUE_REST: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """Gradients of one tile of (query, head) rows."""
    zero = tl.full((), 0, tl.int64)
    group = tl.program_id(1)
    sequence = zero + tl.program_id(2)
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    places, end = tile_rows(
        rows_BT + sequence * num_queries,
        ends_BT + sequence * num_queries,
        tile * ROWS,
        num_queries,
        shared,
        group,
        num_heads,
        ROWS,
    )
    live = end > 0
    q_main, q_rest = load_parts(q, places, live, KEY_WIDTH, KEY_WIDTH, KEY_MAIN, KEY_REST, OPERAND)
    o_main, o_rest = load_parts(grad_out, places, live, VALUE_WIDTH, VALUE_WIDTH, VALUE_MAIN, VALUE_REST, OPERAND)
    lse_M = tl.load(lse + places, mask=live, other=float("inf")) * LOG2_E
    delta_M = tl.load(delta + places, mask=live, other=0.0)
    high = tl.max(end, 0)
    keys = store + group * group_stride
    table = keys_BS + sequence * num_keys
    grad = tl.zeros((ROWS, KEY_MAIN), tl.float32)
    if KEY_REST:
        grad_rest = tl.zeros((ROWS, KEY_REST), tl.float32)
    slots = tl.arange(0, KEYS)
    key_rows = tl.load(table + slots, mask=slots < high, other=0)
    for first in range(0, high, KEYS):
        inside = first + slots < high
        scores, k_main, k_rest = score_keys(
            q_main, q_rest, keys, key_rows, inside, row_width, KEY_WIDTH, KEY_MAIN, KEY_REST, OPERAND
        )
        grad_probs, _, _ = score_keys(
            o_main, o_rest, keys + value_start, key_rows, inside, row_width, VALUE_WIDTH, VALUE_MAIN, VALUE_REST, OPERAND
        )  # fmt: skip
        key_rows = tl.load(table + first + KEYS + slots, mask=first + KEYS + slots < high, other=0)
        probs = tl.exp2(scores * (scale * LOG2_E) - lse_M[:, None])
        probs = tl.where((first + slots)[None, :] < end[:, None], probs, 0.0)
        ds = (probs * (grad_probs - delta_M[:, None])).to(OPERAND)
        grad = tl.dot(ds, k_main, grad, input_precision="ieee")
        if KEY_REST:
            grad_rest = tl.dot(ds, k_rest, grad_rest, input_precision="ieee")
    channel = tl.arange(0, KEY_MAIN)
    target = grad_q + places[:, None] * KEY_WIDTH
    keep = live[:, None] & (channel < KEY_WIDTH)[None, :]
    tl.store(target + channel[None, :], (grad * scale).to(grad_q.dtype.element_ty), mask=keep)
    if KEY_REST:
        channel = KEY_MAIN + tl.arange(0, KEY_REST)
        keep = live[:, None] & (channel < KEY_WIDTH)[None, :]
        tl.store(target + channel[None, :], (grad_rest * scale).to(grad_q.dtype.element_ty), mask=keep)


def attend_backward(
    saved: SavedRows, grad_out_NHV: Tensor, tiles: BackwardTiles | None = None
) -> tuple[Tensor, Tensor]:
    """Gradients of the queries and of the key rows `[G, S, W]`, in their types; equal calls give equal bits."""
    q_NHK, rows_GSW = saved.q_NHK, saved.rows_GSW
    num_groups, num_rows, width = rows_GSW.shape
    grad_q_NHK = torch.zeros_like(q_NHK)
    sums_SGW = torch.zeros(num_rows, num_groups, width, dtype=torch.float32, device=rows_GSW.device)
    hopper = tiles is None and fits_hopper(q_NHK, rows_GSW, saved.value_start, grad_out_NHV.shape[2])
    # The kernels written for Hopper add Σ dO·O themselves.
    delta_NH = saved.lse_NH if hopper or not grad_out_NHV.numel() else row_deltas(saved.out_NHV, grad_out_NHV)
    for window in saved.plan.windows:
        num_sequences, num_keys = window.keys_BS.shape
        step = max(1, PAIR_BYTES // (4 * num_keys * num_groups * width))
        for start in range(0, num_sequences, step):
            part = _Part(window, slice(start, start + step))
            _window_gradients(saved, grad_out_NHV, delta_NH, part, (grad_q_NHK, sums_SGW), tiles)
    return grad_q_NHK, sums_SGW.transpose(0, 1).to(rows_GSW.dtype)


class _Part:
    """Tables of some sequences of a window."""

    def __init__(self, window: Window, sequences: slice) -> None:
        self.rows_BT = window.rows_BT[sequences]
        self.ends_BT = window.ends_BT[sequences]
        self.keys_BS = window.keys_BS[sequences]
        self.apart = window.apart


def _window_gradients(
    saved: SavedRows,
    grad_out_NHV: Tensor,
    delta_NH: Tensor,
    part: _Part,
    gradients: tuple[Tensor, Tensor],
    tiles: BackwardTiles | None,
) -> None:
    """Write the query gradients of some sequences and add their key gradients."""
    grad_q_NHK, sums_SGW = gradients
    (num_sequences, num_queries), num_keys = part.rows_BT.shape, part.keys_BS.shape[1]
    num_groups, width = sums_SGW.shape[1:]
    num_heads = saved.q_NHK.shape[1]
    # One sequence has each row at most once; several may share some.
    pairs = num_sequences > 1 and not part.apart
    target = sums_SGW
    if pairs:
        target = torch.empty(num_sequences, num_keys, num_groups, width, dtype=torch.float32, device=sums_SGW.device)
    inputs = (
        saved.q_NHK,
        saved.rows_GSW,
        grad_out_NHV,
        part.rows_BT,
        part.ends_BT,
        part.keys_BS,
        saved.lse_NH,
        delta_NH,
    )
    sizes = (
        num_queries,
        num_keys,
        num_heads,
        num_heads // num_groups,
        saved.rows_GSW.stride(0),
        width,
        saved.value_start,
    )
    if tiles is None and fits_hopper(saved.q_NHK, saved.rows_GSW, saved.value_start, grad_out_NHV.shape[2]):
        # Gluon has no interpreter, and older Triton no Gluon.
        from samepath.kernels.dense_attention.hopper_backward import backward

        backward(inputs[:6], (saved.out_NHV, saved.lse_NH), (grad_q_NHK, target), saved.scale, sizes[3:], pairs)
    else:
        _launch_both(inputs, sizes, (grad_q_NHK, target), saved.scale, grad_out_NHV.shape[2], tiles, pairs)
    if pairs:
        longest_B = part.ends_BT.amax(1)
        add_pairs_in_order(target.view(-1, num_groups * width), part.keys_BS, longest_B, 1, sums_SGW.flatten(1))


def _launch_both(
    inputs: tuple[Tensor, ...],
    sizes: tuple[int, ...],
    targets: tuple[Tensor, Tensor],
    scale: float,
    value_width: int,
    tiles: BackwardTiles | None,
    pairs: bool,
) -> None:
    q_NHK = inputs[0]
    num_queries, num_keys, num_heads, shared = sizes[:4]
    num_groups, num_sequences = num_heads // shared, inputs[3].shape[0]
    shape = {**key_shape(q_NHK.shape[2]), **value_shape(value_width), "OPERAND": operand_type(q_NHK.dtype)}
    tiles = tiles or default_tiles(q_NHK)
    by_keys, by_rows = tiles.by_keys, tiles.by_rows
    _backward_keys[(triton.cdiv(num_keys, by_keys.keys), num_groups, num_sequences)](
        *inputs,
        targets[1],
        scale,
        *sizes,
        **shape,
        ROWS=by_keys.rows,
        KEYS=by_keys.keys,
        PAIRS=pairs,
        num_warps=by_keys.num_warps,
        num_stages=by_keys.num_stages,
    )
    blocks = triton.cdiv(num_queries * shared, by_rows.rows)
    _backward_queries[(blocks, num_groups, num_sequences)](
        *inputs,
        targets[0],
        scale,
        *sizes,
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
