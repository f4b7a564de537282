"""Sparse attention backward (Triton): key gradients and attention mass from one pass over each row's tiles, then query gradients.

The first kernel recomputes the probabilities with keys as rows (Pᵀ, dSᵀ), so that both are ready as left operands of dKV = dSᵀ·Q + Pᵀ·dO, and
leaves dS in memory; the second multiplies it with the gathered keys. Every product of the backward is thus done once.

Key gradients of one key come from many rows: each (row, key) pair's gradient is written, in the keys' own type, and those of a key are added in row
order. That is deterministic, and faster than float32 atomics, which move twice the bytes.

Axes: N query rows, S key rows, H heads, K key width, V value width, C selected keys, P pairs of a row chunk.
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.gpu.loading import interpreting
from samepath.kernels.gpu.tiles import operand_type
from samepath.kernels.sparse_attention.triton_forward import (
    LOG2_E,
    fits_hopper,
    load_rows,
    row_launches,
    split_width,
)

PAIR_BYTES = 1 << 32
"""Memory for P, dS and the pair gradients of the rows that are worked on at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """Shape of the products; changes the speed and, through the grouping of sums, rounding."""

    heads: int = 64
    """Heads a program at most."""
    keys: int = 64
    """Keys a tile."""
    num_warps: int = 8
    """Warps a program."""
    num_stages: int = 1
    """Key tiles in flight."""
    hopper: bool = False
    """Run the kernels written for Hopper at the published widths, which have tiles of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionGradients:
    """What the backward of one attention call gives."""

    q_NHK: Tensor
    """Gradient of the queries, in their type."""
    kv_SK: Tensor
    """Gradient of the key rows, in their type."""
    mass_NC: Tensor
    """float32 head-summed attention probability of each selected key, 0 in the tail."""


@triton.jit
def _emit_pairs(target, pairs, live, values, first, WIDTH: tl.constexpr, STOP: tl.constexpr):
    """Store channels first … of a tile's key gradients as the pairs' rows."""
    channel = first + tl.arange(0, WIDTH)
    keep = live[:, None] & (channel < STOP)[None, :]
    tl.store(target + pairs[:, None] * STOP + channel[None, :], values.to(target.dtype.element_ty), mask=keep)


@triton.jit
def _backward_keys(
    q,
    kv,
    grad_out,
    indices,
    counts,
    lse,
    delta,
    grad_scores,
    mass,
    target,
    scale,
    num_heads,
    num_selected,
    KEY_WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    HEADS: tl.constexpr,
    KEYS: tl.constexpr,
    OPERAND: tl.constexpr,
):
    zero = tl.full((), 0, tl.int64)
    row = zero + tl.program_id(1)
    head = tl.program_id(0) * HEADS + tl.arange(0, HEADS)
    live_head = head < num_heads
    q_rows = row * num_heads + head
    q_main = load_rows(q, q_rows, 0, KEY_WIDTH, KEY_WIDTH, live_head, MAIN, MAIN <= KEY_WIDTH).to(OPERAND)
    o_main = load_rows(grad_out, q_rows, 0, VALUE_WIDTH, VALUE_WIDTH, live_head, MAIN, MAIN <= VALUE_WIDTH).to(OPERAND)
    if REST:
        q_rest = load_rows(q, q_rows, MAIN, KEY_WIDTH, KEY_WIDTH, live_head, REST, MAIN + REST == KEY_WIDTH).to(OPERAND)
    if VALUE_WIDTH > MAIN:
        o_rest = load_rows(grad_out, q_rows, MAIN, VALUE_WIDTH, VALUE_WIDTH, live_head, REST, False).to(OPERAND)
    # A row without keys has LSE −inf and runs no tile; a padded head must give P = 0 without NaN.
    lse_H = tl.load(lse + q_rows, mask=live_head, other=float("inf")) * LOG2_E
    delta_H = tl.load(delta + q_rows, mask=live_head, other=0.0)
    count = tl.load(counts + row)
    rows_of = indices + row * num_selected
    # Where this (head block, row) writes its mass and its pairs.
    block = (zero + tl.program_id(0)) * tl.num_programs(1) + row
    for first in range(0, count, KEYS):
        slots = first + tl.arange(0, KEYS)
        live = slots < count
        key_rows = tl.load(rows_of + slots, mask=live, other=0).to(tl.int64)
        k_main = load_rows(kv, key_rows, 0, KEY_WIDTH, KEY_WIDTH, live, MAIN, MAIN <= KEY_WIDTH).to(OPERAND)
        scores = tl.dot(k_main, tl.trans(q_main), input_precision="ieee")
        grad_probs = tl.dot(k_main, tl.trans(o_main), input_precision="ieee")
        if REST:
            k_rest = load_rows(kv, key_rows, MAIN, KEY_WIDTH, KEY_WIDTH, live, REST, MAIN + REST == KEY_WIDTH).to(
                OPERAND
            )
            scores = tl.dot(k_rest, tl.trans(q_rest), scores, input_precision="ieee")
            if VALUE_WIDTH > MAIN:
                grad_probs = tl.dot(k_rest, tl.trans(o_rest), grad_probs, input_precision="ieee")
        probs = tl.where(live[:, None], tl.exp2(scores * (scale * LOG2_E) - lse_H[None, :]), 0.0)
        grads = probs * (grad_probs - delta_H[None, :]) * scale
        tl.store(mass + block * num_selected + slots, tl.sum(probs, 1), mask=live)
        place = (row * num_heads + head)[None, :] * num_selected + slots[:, None]
        keep = live[:, None] & live_head[None, :]
        tl.store(grad_scores + place, grads.to(grad_scores.dtype.element_ty), mask=keep)
        pairs = block * num_selected + slots
        p, ds = probs.to(OPERAND), grads.to(OPERAND)
        grad_main = tl.dot(p, o_main, tl.dot(ds, q_main, input_precision="ieee"), input_precision="ieee")
        _emit_pairs(target, pairs, live, grad_main, 0, MAIN, KEY_WIDTH)
        if REST:
            grad_rest = tl.dot(ds, q_rest, input_precision="ieee")
            if VALUE_WIDTH > MAIN:
                grad_rest = tl.dot(p, o_rest, grad_rest, input_precision="ieee")
            _emit_pairs(target, pairs, live, grad_rest, MAIN, REST, KEY_WIDTH)


@triton.jit
def _backward_queries(
    grad_scores,
    kv,
    indices,
    counts,
    grad_q,
    first_column,
    num_heads,
    num_selected,
    KEY_WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    FULL: tl.constexpr,
    HEADS: tl.constexpr,
    KEYS: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """dQ = dS · K for a block of heads and of channels."""
    zero = tl.full((), 0, tl.int64)
    row = zero + tl.program_id(1)
    first_channel = first_column + tl.program_id(0) * COLUMNS
    head = tl.program_id(2) * HEADS + tl.arange(0, HEADS)
    live_head = head < num_heads
    count = tl.load(counts + row)
    rows_of = indices + row * num_selected
    key_rows = tl.load(rows_of + tl.arange(0, KEYS), mask=tl.arange(0, KEYS) < count, other=0)
    accumulator = tl.zeros((HEADS, COLUMNS), tl.float32)
    for first in range(0, count, KEYS):
        slots = first + tl.arange(0, KEYS)
        live = slots < count
        k = load_rows(
            kv, key_rows.to(tl.int64), first_channel, KEY_WIDTH, KEY_WIDTH, live, COLUMNS, KEY_WIDTH % COLUMNS == 0
        )
        place = (row * num_heads + head)[:, None] * num_selected + slots[None, :]
        ds = tl.load(grad_scores + place, mask=live_head[:, None] & live[None, :], other=0.0)
        key_rows = tl.load(rows_of + slots + KEYS, mask=slots + KEYS < count, other=0)
        accumulator = tl.dot(ds.to(OPERAND), k.to(OPERAND), accumulator, input_precision="ieee")
    channel = first_channel + tl.arange(0, COLUMNS)
    place = (row * num_heads + head)[:, None] * KEY_WIDTH + channel[None, :]
    keep = live_head[:, None] & (channel < KEY_WIDTH)[None, :]
    tl.store(grad_q + place, accumulator.to(grad_q.dtype.element_ty), mask=keep)


@triton.jit
def _home(channel, RENAMED: tl.constexpr):
    """Where the channel that stands at a place of a pair belongs; RENAMED as the Hopper kernels write them."""
    if RENAMED:
        return channel // 32 * 32 + channel % 8 // 2 * 8 + channel % 32 // 8 * 2 + channel % 2
    return channel


@triton.jit
def _ordered_sums(
    pairs,
    order,
    bounds,
    before,
    after,
    width,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    FRESH: tl.constexpr,
    RENAMED: tl.constexpr,
):
    """Add, for one key, the pair gradients in the given order to its sum so far, two in flight; FRESH starts from 0."""
    zero = tl.full((), 0, tl.int64)
    key = zero + tl.program_id(0)
    channel = tl.arange(0, MAIN)
    live = channel < width
    start = tl.load(bounds + key)
    stop = tl.load(bounds + key + 1)
    home = key * width + _home(channel, RENAMED)
    if FRESH:
        total = tl.zeros((MAIN,), tl.float32)
    else:
        total = tl.load(before + home, mask=live, other=0.0)
    if REST:
        rest = MAIN + tl.arange(0, REST)
        rest_live = rest < width
        rest_home = key * width + _home(rest, RENAMED)
        if FRESH:
            rest_total = tl.zeros((REST,), tl.float32)
        else:
            rest_total = tl.load(before + rest_home, mask=rest_live, other=0.0)
    for place in range(start, stop, 2):
        # The last of an odd number is read twice and counts once.
        following = zero + place + 1
        share = tl.where(following < stop, 1.0, 0.0)
        one = pairs + tl.load(order + place) * width
        two = pairs + tl.load(order + tl.minimum(following, stop - 1)) * width
        first = tl.load(one + channel, mask=live, other=0.0)
        second = tl.load(two + channel, mask=live, other=0.0)
        if REST:
            rest_first = tl.load(one + rest, mask=rest_live, other=0.0)
            rest_second = tl.load(two + rest, mask=rest_live, other=0.0)
            rest_total = rest_total + rest_first.to(tl.float32) + rest_second.to(tl.float32) * share
        total = total + first.to(tl.float32) + second.to(tl.float32) * share
    tl.store(after + home, total.to(after.dtype.element_ty), mask=live)
    if REST:
        tl.store(after + rest_home, rest_total.to(after.dtype.element_ty), mask=rest_live)


@triton.jit
def _row_deltas(out, grad_out, delta, num_rows, width, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """Σ dO·O of each row and head."""
    row = (tl.full((), 0, tl.int64) + tl.program_id(0)) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDTH)
    place = row[:, None] * width + channel[None, :]
    keep = (row < num_rows)[:, None] & (channel < width)[None, :]
    product = tl.load(out + place, mask=keep, other=0.0).to(tl.float32)
    product *= tl.load(grad_out + place, mask=keep, other=0.0).to(tl.float32)
    tl.store(delta + row, tl.sum(product, 1), mask=row < num_rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedRows:
    """What the forward leaves for the backward, all contiguous."""

    q_NHK: Tensor
    kv_SK: Tensor
    indices_NC: Tensor
    count_N: Tensor
    out_NHV: Tensor
    lse_NH: Tensor
    scale: float


def attend_backward(saved: SavedRows, grad_out_NHV: Tensor, *, tiles: Tiles | None = None) -> AttentionGradients:
    """Gradients of `attend` for the upstream gradient `grad_out_NHV`; equal calls give equal bits."""
    q_NHK, kv_SK = saved.q_NHK, saved.kv_SK
    num_rows, num_selected = saved.indices_NC.shape
    tiles = tiles or default_tiles(q_NHK, grad_out_NHV.shape[2])
    gradients = AttentionGradients(
        q_NHK=torch.empty_like(q_NHK),
        kv_SK=torch.empty_like(kv_SK),
        mass_NC=torch.empty(num_rows, num_selected, dtype=torch.float32, device=kv_SK.device),
    )
    if not num_rows or not num_selected:
        gradients.q_NHK.zero_()
        gradients.kv_SK.zero_()
        return gradients
    pieces = row_launches(num_rows, _rows_at_once(saved, tiles))
    # Sums of several pieces stay in float32 until the last.
    sums_SK = torch.empty(kv_SK.shape if len(pieces) > 1 else (0,), dtype=torch.float32, device=kv_SK.device)
    for number, rows in enumerate(pieces):
        part = replace(
            saved,
            q_NHK=q_NHK[rows],
            indices_NC=saved.indices_NC[rows],
            count_N=saved.count_N[rows],
            out_NHV=saved.out_NHV[rows],
            lse_NH=saved.lse_NH[rows],
        )
        pairs_PK = _backward_rows(part, grad_out_NHV[rows], gradients.q_NHK[rows], gradients.mass_NC[rows], tiles)
        before = None if number == 0 else sums_SK
        after = gradients.kv_SK if number == len(pieces) - 1 else sums_SK
        blocks = pairs_PK.shape[0] // part.indices_NC.numel()
        order = _pair_order(part.indices_NC, part.count_N, blocks, kv_SK.shape[0])
        _sum_pairs(pairs_PK, order, before, after, tiles.hopper)
    return gradients


def _rows_at_once(saved: SavedRows, tiles: Tiles) -> int:
    """Rows of equal pieces whose P, dS and pairs fit into PAIR_BYTES, a multiple of 16 so that every piece is aligned like the first."""
    num_rows, num_heads, key_width = saved.q_NHK.shape
    numbers = num_heads * (2 if tiles.hopper else 1) + num_blocks(num_heads, tiles) * key_width
    most = max(1, PAIR_BYTES // (numbers * saved.indices_NC.shape[1] * saved.kv_SK.element_size()))
    rows = triton.cdiv(num_rows, triton.cdiv(num_rows, most))
    return rows if rows < 16 else min(triton.cdiv(rows, 16), max(1, most // 16)) * 16


def num_blocks(num_heads: int, tiles: Tiles) -> int:
    """Blocks of heads, each with pairs of its own."""
    return triton.cdiv(num_heads, _block_heads(num_heads, tiles))


def _block_heads(num_heads: int, tiles: Tiles) -> int:
    return max(16, min(tiles.heads, triton.next_power_of_2(num_heads)))


def row_deltas(out_NHV: Tensor, grad_out_NHV: Tensor) -> Tensor:
    """float32 Σ dO·O [N, H]."""
    width = out_NHV.shape[2]
    delta_NH = torch.empty(out_NHV.shape[:2], dtype=torch.float32, device=out_NHV.device)
    rows = 4
    _row_deltas[(triton.cdiv(delta_NH.numel(), rows),)](
        out_NHV, grad_out_NHV, delta_NH, delta_NH.numel(), width, WIDTH=triton.next_power_of_2(width), ROWS=rows
    )
    return delta_NH


def _backward_rows(saved: SavedRows, grad_out_NHV: Tensor, grad_q_NHK: Tensor, mass_NC: Tensor, tiles: Tiles) -> Tensor:
    """Write the query gradients and the mass of some rows; return their pair gradients [blocks · N · C, K]."""
    delta_NH = row_deltas(saved.out_NHV, grad_out_NHV)
    rows = (saved.q_NHK, saved.kv_SK, saved.indices_NC, saved.count_N, saved.lse_NH, saved.scale)
    if tiles.hopper:
        # Gluon has no interpreter, and older Triton no Gluon.
        from samepath.kernels.sparse_attention.hopper_backward import backward_rows

        pairs_PK, masses = backward_rows(*rows, grad_out_NHV, delta_NH, grad_q_NHK)
    else:
        pairs_PK, masses = _backward_by_tiles(saved, grad_out_NHV, delta_NH, grad_q_NHK, tiles)
    torch.sum(masses, 0, out=mass_NC)
    return pairs_PK


def _backward_by_tiles(
    saved: SavedRows, grad_out_NHV: Tensor, delta_NH: Tensor, grad_q_NHK: Tensor, tiles: Tiles
) -> tuple[Tensor, Tensor]:
    """(pairs [blocks · N · C, K], mass of each block of heads [blocks, N, C]) by the portable kernels."""
    num_rows, num_heads, key_width = saved.q_NHK.shape
    num_selected = saved.indices_NC.shape[1]
    blocks = num_blocks(num_heads, tiles)
    mass = torch.zeros(blocks, num_rows, num_selected, dtype=torch.float32, device=grad_q_NHK.device)
    grad_scores = torch.empty(num_rows, num_heads, num_selected, dtype=saved.q_NHK.dtype, device=grad_q_NHK.device)
    pairs_PK = torch.empty(mass.numel(), key_width, dtype=saved.kv_SK.dtype, device=grad_q_NHK.device)
    main, rest = split_width(key_width)
    _backward_keys[(blocks, num_rows)](
        saved.q_NHK,
        saved.kv_SK,
        grad_out_NHV,
        saved.indices_NC,
        saved.count_N,
        saved.lse_NH,
        delta_NH,
        grad_scores,
        mass,
        pairs_PK,
        saved.scale,
        num_heads,
        num_selected,
        KEY_WIDTH=key_width,
        VALUE_WIDTH=grad_out_NHV.shape[2],
        MAIN=main,
        REST=rest,
        HEADS=_block_heads(num_heads, tiles),
        KEYS=tiles.keys,
        OPERAND=operand_type(saved.q_NHK.dtype),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    _query_gradients(saved, grad_scores, grad_q_NHK)
    return pairs_PK, mass


def add_pairs_in_order(
    pairs_PK: Tensor, indices_NC: Tensor, count_N: Tensor, blocks: int, sums_SK: Tensor, renamed: bool = False
) -> None:
    """Add the pair gradients [blocks · N · C, K] of each key to its row of the float32 `sums_SK`, by block and then by row."""
    _sum_pairs(pairs_PK, _pair_order(indices_NC, count_N, blocks, sums_SK.shape[0]), sums_SK, sums_SK, renamed)


def _pair_order(indices_NC: Tensor, count_N: Tensor, blocks: int, num_keys: int) -> tuple[Tensor, Tensor]:
    """(pairs sorted by key, where each key's begin [S + 1])."""
    valid_NC = torch.arange(indices_NC.shape[1], device=count_N.device) < count_N[:, None]
    # A radix sort passes over every byte of its keys.
    short = torch.int16 if num_keys < 1 << 15 else torch.int32
    keys_NC = indices_NC.masked_fill(~valid_NC, num_keys).to(short)
    sorted_P = keys_NC.flatten().repeat(blocks).sort(stable=True)
    every = torch.arange(num_keys + 1, dtype=short, device=keys_NC.device)
    return sorted_P.indices, torch.searchsorted(sorted_P.values, every)


def _sum_pairs(
    pairs_PK: Tensor, order: tuple[Tensor, Tensor], before_SK: Tensor | None, after_SK: Tensor, renamed: bool
) -> None:
    """Write to `after_SK` the float32 sums `before_SK` (None: 0) and each key's pairs; both may be the same tensor."""
    num_keys, width = after_SK.shape
    main, rest = split_width(width)
    _ordered_sums[(num_keys,)](
        pairs_PK,
        *order,
        after_SK if before_SK is None else before_SK,
        after_SK,
        width,
        MAIN=main,
        REST=rest,
        FRESH=before_SK is None,
        RENAMED=renamed,
        num_warps=1,
    )


def _query_gradients(saved: SavedRows, grad_scores: Tensor, grad_q_NHK: Tensor) -> None:
    """Blocks of 256 channels and one narrower block for the rest, so that 576 channels cost no padding."""
    num_rows, num_heads, key_width = grad_q_NHK.shape
    wide = not interpreting() and grad_q_NHK.dtype == torch.bfloat16
    heads = max(16, min(triton.next_power_of_2(num_heads), 128 if wide else 16))
    first = 0
    while first < key_width:
        columns = min(256 if wide else 64, max(16, 1 << ((key_width - first).bit_length() - 1)))
        blocks = max(1, (key_width - first) // columns)
        _backward_queries[(blocks, num_rows, triton.cdiv(num_heads, heads))](
            grad_scores,
            saved.kv_SK,
            saved.indices_NC,
            saved.count_N,
            grad_q_NHK,
            first,
            num_heads,
            saved.indices_NC.shape[1],
            KEY_WIDTH=key_width,
            COLUMNS=columns,
            FULL=first + blocks * columns <= key_width,
            HEADS=heads,
            KEYS=64 if wide else 16,
            OPERAND=operand_type(grad_q_NHK.dtype),
            num_warps=8 if wide else 4,
            num_stages=3 if wide else 1,
        )
        first += blocks * columns


def default_tiles(q_NHK: Tensor, value_width: int) -> Tiles:
    """Tiles that fit the multiprocessor for this type and width."""
    if interpreting() or q_NHK.dtype == torch.float32:
        return Tiles(heads=16, keys=16)
    if fits_hopper(q_NHK, value_width):
        return Tiles(heads=128, hopper=True)
    if q_NHK.shape[2] <= 256:
        return Tiles(num_warps=4)
    return Tiles(heads=32, keys=32, num_stages=2)
