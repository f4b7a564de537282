"""P and dS of sparse attention for Hopper at the published widths (Gluon): the products that need the keys as right operands.

A program takes all keys of a row for 128 heads. Queries stay in shared memory, output gradients, as left operands, in registers; the keys pass
through a ring of 64 channels a slot, gathered once for all heads and both products. One warpgroup gathers, each of the others has 64 heads.

Keys are gathered in an order in which what a thread holds of a row of P, 2 of every 8 keys, becomes 8 neighbours: 16-byte stores, nothing moves.

Axes: N query rows, S key rows, H heads (padded), K key width, V value width, C selected keys.
"""

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import async_copy, mbarrier

from samepath.kernels.gpu.gluon import block_barrier
from samepath.kernels.sparse_attention.hopper_forward import LOG2_E
from samepath.kernels.sparse_attention.hopper_gather import MAIN, copy_rows
from samepath.kernels.sparse_attention.hopper_ring import (
    HEADS,
    KEYS,
    PART,
    PARTS,
    copy_queries,
    gather_parts,
    head_blocks,
    make_ring,
    slot_of,
)

VALUE_PARTS = gl.constexpr(8)
"""Slots whose channels belong to the value."""


@gluon.jit
def _neighbours(values, LAYOUT: gl.constexpr):
    """Put the keys back into their order; every value stays in its thread."""
    ROWS: gl.constexpr = values.shape[0]
    WIDTH: gl.constexpr = values.shape[1]
    grouped = values.reshape([ROWS, WIDTH // 32, 4, 4, 2]).permute([0, 1, 3, 2, 4])
    return gl.convert_layout(grouped.reshape([ROWS, WIDTH]), LAYOUT)


@gluon.jit
def _left_parts(grad_out, rows, live, ring, FIRST: gl.constexpr, BLOCK: gl.constexpr):
    """Four parts of a warpgroup's output gradients as left operands, through four slots of the ring."""
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 64, 16])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, SCORES, 2)
    for part in gl.static_range(4):
        copy_rows(grad_out, rows, live, ring.index(BLOCK * 4 + part), (FIRST + part) * PART, MAIN, PART, COPY)
    async_copy.commit_group()
    async_copy.wait_group(0)
    block_barrier()
    first = ring.index(BLOCK * 4).load(LEFT)
    second = ring.index(BLOCK * 4 + 1).load(LEFT)
    third = ring.index(BLOCK * 4 + 2).load(LEFT)
    fourth = ring.index(BLOCK * 4 + 3).load(LEFT)
    block_barrier()
    return first, second, third, fourth


@gluon.jit
def _score_heads(row_values, results, shared, barriers, BLOCK: gl.constexpr):
    """Role of a warpgroup: P and dS of its 64 heads."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 64, 16])
    # What the products' layout becomes when keys are back in their order.
    STORE: gl.constexpr = gl.DistributedLinearLayout(
        [[0, 1], [0, 2], [0, 4], [8, 0], [0, 32]],
        [[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]],
        [[16, 0], [32, 0]],
        [],
        [64, 64],
    )
    q, grad_out, lse, delta, q_row, live_heads, count, scale = row_values
    p_rows, ds_rows, padded_heads = results
    queries, ring = shared
    full, empty = barriers
    first_head = BLOCK * HEADS
    heads = copy_queries(q, q_row, live_heads, queries, BLOCK)
    front = _left_parts(grad_out, q_row + heads, heads < live_heads, ring, 0, BLOCK)
    back = _left_parts(grad_out, q_row + heads, heads < live_heads, ring, 4, BLOCK)
    upstream = front + back
    hopper.fence_async_shared()
    block_barrier()
    for slot in gl.static_range(PARTS):
        mbarrier.arrive(empty.index(slot), count=1)
    zero = gl.zeros([HEADS, KEYS], gl.float32, SCORES)
    row_head = first_head + gl.arange(0, HEADS, gl.SliceLayout(1, SCORES))
    # A padded head must give P = 0 without NaN.
    lse_H = gl.load(lse + q_row + row_head, mask=row_head < live_heads, other=float("inf")) * LOG2_E
    delta_H = gl.load(delta + q_row + row_head, mask=row_head < live_heads, other=0.0) * scale
    key = slot_of(gl.arange(0, KEYS, gl.SliceLayout(0, SCORES)))
    store_head = first_head + gl.arange(0, HEADS, gl.SliceLayout(1, STORE))
    store_key = gl.arange(0, KEYS, gl.SliceLayout(0, STORE))
    place = gl.expand_dims(store_head * KEYS, 1) + gl.expand_dims(store_key, 0)
    for tile in range((count + KEYS - 1) // KEYS):
        scores, grads = zero, zero
        # 0 always, but the compiler cannot know: it would keep all 72 addresses of operands in registers.
        nothing = tile >> 26
        for part in gl.static_range(PARTS):
            # What asynchronous copies wrote, and no register, needs no fence before the tensor cores read it.
            mbarrier.wait(full.index(part), tile & 1)
            keys = ring.index(part + nothing).permute((1, 0))
            query_part = queries.index(BLOCK * PARTS + part + nothing)
            scores = hopper.warpgroup_mma(query_part, keys, scores, use_acc=part > 0, is_async=True)
            if part < VALUE_PARTS:
                grads = hopper.warpgroup_mma(upstream[part], keys, grads, use_acc=part > 0, is_async=True)
            if part > 0:
                # All but this part's products are done.
                scores, grads = hopper.warpgroup_mma_wait(2 if part < VALUE_PARTS else 1, deps=[scores, grads])
                mbarrier.arrive(empty.index(part - 1), count=1)
        scores, grads = hopper.warpgroup_mma_wait(0, deps=[scores, grads])
        mbarrier.arrive(empty.index(PARTS - 1), count=1)
        probs = gl.exp2(scores * (scale * LOG2_E) - gl.expand_dims(lse_H, 1))
        probs = gl.where(gl.expand_dims(tile * KEYS + key < count, 0), probs, 0.0)
        # Keys that are not live are rows of zeros, so dS is 0 with P.
        grads = probs * (grads * scale - gl.expand_dims(delta_H, 1))
        here = place + tile * (padded_heads * KEYS)
        gl.store(p_rows + here, _neighbours(probs.to(gl.bfloat16), STORE))
        gl.store(ds_rows + here, _neighbours(grads.to(gl.bfloat16), STORE))


@gluon.jit
def _attention_scores(
    q,
    kv,
    indices,
    counts,
    lse,
    scale,
    grad_out,
    delta,
    probs,
    grads,
    num_heads,
    num_selected,
    num_tiles,
    BLOCKS: gl.constexpr,
):
    row = gl.program_id(1).to(gl.int64)
    first_head = gl.program_id(0) * (BLOCKS * HEADS)
    padded_heads = gl.num_programs(0) * (BLOCKS * HEADS)
    q_row = row * num_heads + first_head
    queries, ring, full, empty = make_ring(BLOCKS)
    count = gl.load(counts + row)
    rows_of = indices + row * num_selected
    first = (row * num_tiles * padded_heads + first_head) * KEYS
    row_values = (q, grad_out, lse, delta, q_row, num_heads - first_head, count, scale)
    results = (probs + first, grads + first, padded_heads)
    shared = (queries, ring)
    barriers = (full, empty)
    if BLOCKS == 2:
        gl.warp_specialize(
            [
                (_score_heads, (row_values, results, shared, barriers, 0)),
                (_score_heads, (row_values, results, shared, barriers, 1)),
                (gather_parts, (kv, rows_of, count, ring, barriers)),
            ],
            [4, 4],
            [232, 40],
        )
    else:
        gl.warp_specialize(
            [
                (_score_heads, (row_values, results, shared, barriers, 0)),
                (gather_parts, (kv, rows_of, count, ring, barriers)),
            ],
            [4],
            [40],
        )


def attention_scores(
    q_NHK: Tensor,
    kv_SK: Tensor,
    indices_NC: Tensor,
    count_N: Tensor,
    lse_NH: Tensor,
    scale: float,
    grad_out_NHV: Tensor,
    delta_NH: Tensor,
) -> tuple[Tensor, Tensor]:
    """(P, dS), bfloat16 [N, tiles, H, keys of a tile]; heads padded to whole programs, and tiles beyond a row's count are not written."""
    num_rows, num_heads, _ = q_NHK.shape
    programs, blocks = head_blocks(num_heads)
    num_selected = indices_NC.shape[1]
    num_tiles = triton.cdiv(num_selected, KEYS.value)
    shape = (num_rows, num_tiles, programs * blocks * HEADS.value, KEYS.value)
    probs, grads = (torch.empty(shape, dtype=q_NHK.dtype, device=q_NHK.device) for _ in range(2))
    _attention_scores[(programs, num_rows)](
        q_NHK,
        kv_SK,
        indices_NC,
        count_N,
        lse_NH,
        scale,
        grad_out_NHV,
        delta_NH,
        probs,
        grads,
        num_heads,
        num_selected,
        num_tiles,
        BLOCKS=blocks,
        num_warps=4,
    )
    return probs, grads
