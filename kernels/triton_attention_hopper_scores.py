"""P, dS and the attention mass of sparse attention for Hopper at the published widths (Gluon): the products that need the keys.

A program takes all keys of a row for 128 heads. The queries stay in shared memory and the output gradients, as left operands, in registers; the
keys pass through a ring of 64 channels a slot, gathered once for both products. One warpgroup gathers, each of the others has 64 heads.

Keys are gathered in an order in which what a thread holds of a row of P, 2 of every 8 keys, becomes 8 neighbours: 16-byte stores, nothing moves.

Axes: N query rows, S key rows, H heads (padded), K key width, V value width, C selected keys (padded to tiles).
"""

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import async_copy, mbarrier

from samepath.kernels.triton_attention_hopper import LOG2_E, MAIN, REST, copy_rows
from samepath.kernels.triton_gluon import block_barrier

HEADS = gl.constexpr(64)
"""Heads a warpgroup."""
KEYS = gl.constexpr(64)
"""Keys a tile."""
PART = gl.constexpr(64)
"""Channels of a slot of the ring."""
PARTS = gl.constexpr(9)
"""Slots: the ring holds one tile of MAIN + REST channels."""
GROUP = gl.constexpr(3)
"""Slots that are handed over together."""
VALUE_PARTS = gl.constexpr(8)
"""Slots whose channels belong to the value."""


@gluon.jit
def _slot_of(column):
    """Which key of a tile stands in a column of the products: column 8·j + 2·l + b of 32 is key 8·l + 2·j + b."""
    return column // 32 * 32 + column % 8 // 2 * 8 + column % 32 // 8 * 2 + column % 2


@gluon.jit
def _neighbours(values, LAYOUT: gl.constexpr):
    """Put the keys back into their order; every value stays in its thread."""
    ROWS: gl.constexpr = values.shape[0]
    WIDTH: gl.constexpr = values.shape[1]
    grouped = values.reshape([ROWS, WIDTH // 32, 4, 4, 2]).permute([0, 1, 3, 2, 4])
    return gl.convert_layout(grouped.reshape([ROWS, WIDTH]), LAYOUT)


@gluon.jit
def _gather_parts(kv, rows_of, count, ring, full, empty):
    """Role of one warpgroup: copy the parts of tile after tile into the ring."""
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    column = gl.arange(0, KEYS, gl.SliceLayout(1, COPY))
    slots = _slot_of(column)
    rows = gl.load(rows_of + slots, mask=slots < count, other=0)
    for tile in range((count + KEYS - 1) // KEYS):
        live = slots < count
        ahead = slots + KEYS
        rows_ahead = gl.load(rows_of + ahead, mask=ahead < count, other=0)
        for part in gl.static_range(PARTS):
            # The first arrivals on `empty` say that the ring has served its other purpose.
            if part % GROUP == 0:
                mbarrier.wait(empty.index(part // GROUP), tile & 1)
            copy_rows(kv, rows, live, ring.index(part), part * PART, MAIN + REST, PART, COPY)
            # Each thread arrives when its own copies have landed.
            if part % GROUP == GROUP - 1:
                async_copy.mbarrier_arrive(full.index(part // GROUP), increment_count=False)
        slots = ahead
        rows = rows_ahead


@gluon.jit
def _upstream_parts(grad_out, rows, live, ring, FIRST: gl.constexpr, BLOCK: gl.constexpr):
    """Four parts of a warpgroup's output gradients as left operands; each warpgroup has four slots of the ring for that."""
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
def _score_heads(row_values, mass_row, shared, BLOCK: gl.constexpr, MASS_ONLY: gl.constexpr):
    """Role of a warpgroup: P and dS of its 64 heads, or their mass."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 64, 16])
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    STORE: gl.constexpr = gl.DistributedLinearLayout(
        [[0, 1], [0, 2], [0, 4], [8, 0], [0, 32]],
        [[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]],
        [[16, 0], [32, 0]],
        [],
        [64, 64],
    )
    q, grad_out, lse, delta, q_row, live_heads, count, scale, p_rows, ds_rows = row_values
    padded_heads, queries, ring, full, empty = shared
    LINE: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    first_head = BLOCK * HEADS
    heads = first_head + gl.arange(0, HEADS, gl.SliceLayout(1, COPY))
    for part in gl.static_range(PARTS):
        target = queries.index(BLOCK * PARTS + part)
        copy_rows(q, q_row + heads, heads < live_heads, target, part * PART, MAIN + REST, PART, COPY)
    # Left operands come through the ring, which has only half the room.
    if not MASS_ONLY:
        front = _upstream_parts(grad_out, q_row + heads, heads < live_heads, ring, 0, BLOCK)
        back = _upstream_parts(grad_out, q_row + heads, heads < live_heads, ring, 4, BLOCK)
        upstream = front + back
    async_copy.commit_group()
    async_copy.wait_group(0)
    hopper.fence_async_shared()
    block_barrier()
    for group in gl.static_range(PARTS // GROUP):
        mbarrier.arrive(empty.index(group), count=1)
    zero = gl.zeros([HEADS, KEYS], gl.float32, SCORES)
    row_head = first_head + gl.arange(0, HEADS, gl.SliceLayout(1, SCORES))
    # A padded head must give P = 0 without NaN.
    lse_H = gl.load(lse + q_row + row_head, mask=row_head < live_heads, other=float("inf")) * LOG2_E
    delta_H = gl.load(delta + q_row + row_head, mask=row_head < live_heads, other=0.0) * scale
    slot = _slot_of(gl.arange(0, KEYS, gl.SliceLayout(0, SCORES)))
    line_slot = _slot_of(gl.arange(0, KEYS, LINE))
    store_head = first_head + gl.arange(0, HEADS, gl.SliceLayout(1, STORE))
    store_key = gl.arange(0, KEYS, gl.SliceLayout(0, STORE))
    place = gl.expand_dims(store_head * KEYS, 1) + gl.expand_dims(store_key, 0)
    for tile in range((count + KEYS - 1) // KEYS):
        scores = zero
        grads = zero
        # 0 always, but the compiler cannot know: it would keep all 72 addresses of operands in registers.
        nothing = tile >> 26
        for part in gl.static_range(PARTS):
            # What asynchronous copies wrote, and no register, needs no fence before the tensor cores read it.
            if part % GROUP == 0:
                mbarrier.wait(full.index(part // GROUP), tile & 1)
            keys = ring.index(part + nothing).permute((1, 0))
            query_part = queries.index(BLOCK * PARTS + part + nothing)
            scores = hopper.warpgroup_mma(query_part, keys, scores, use_acc=part > 0, is_async=True)
            if not MASS_ONLY and part < VALUE_PARTS:
                grads = hopper.warpgroup_mma(upstream[part], keys, grads, use_acc=part > 0, is_async=True)
            if part % GROUP == GROUP - 1 and part >= GROUP:
                # All but this group's products are done.
                if MASS_ONLY:
                    scores = hopper.warpgroup_mma_wait(GROUP, deps=[scores])
                elif part < VALUE_PARTS:
                    scores, grads = hopper.warpgroup_mma_wait(2 * GROUP, deps=[scores, grads])
                else:
                    scores, grads = hopper.warpgroup_mma_wait(2 * GROUP - 1, deps=[scores, grads])
                mbarrier.arrive(empty.index(part // GROUP - 1), count=1)
        if MASS_ONLY:
            scores = hopper.warpgroup_mma_wait(0, deps=[scores])
        else:
            scores, grads = hopper.warpgroup_mma_wait(0, deps=[scores, grads])
        mbarrier.arrive(empty.index(PARTS // GROUP - 1), count=1)
        live = tile * KEYS + slot < count
        probs = gl.exp2(scores * (scale * LOG2_E) - gl.expand_dims(lse_H, 1))
        probs = gl.where(gl.expand_dims(live, 0), probs, 0.0)
        if MASS_ONLY:
            gl.store(
                mass_row + tile * KEYS + line_slot,
                gl.convert_layout(gl.sum(probs, 0), LINE),
                mask=tile * KEYS + line_slot < count,
            )
        else:
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
    mass,
    num_heads,
    num_selected,
    num_tiles,
    BLOCKS: gl.constexpr,
    MASS_ONLY: gl.constexpr,
):
    SHARED: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    row = gl.program_id(1).to(gl.int64)
    num_rows = gl.num_programs(1)
    first_head = gl.program_id(0) * (BLOCKS * HEADS)
    padded_heads = gl.num_programs(0) * (BLOCKS * HEADS)
    q_row = row * num_heads + first_head
    live_heads = num_heads - first_head
    queries = gl.allocate_shared_memory(gl.bfloat16, [BLOCKS * PARTS, HEADS, PART], SHARED)
    ring = gl.allocate_shared_memory(gl.bfloat16, [PARTS, KEYS, PART], SHARED)
    full = gl.allocate_shared_memory(gl.int64, [PARTS // GROUP, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [PARTS // GROUP, 1], mbarrier.MBarrierLayout())
    for group in gl.static_range(PARTS // GROUP):
        # All 128 gathering threads arrive.
        mbarrier.init(full.index(group), count=128)
        mbarrier.init(empty.index(group), count=BLOCKS)
    count = gl.load(counts + row)
    rows_of = indices + row * num_selected
    block_rows = (row * num_tiles * padded_heads + first_head) * KEYS
    p_rows = probs + block_rows
    ds_rows = grads + block_rows
    # Each warpgroup has a line of its own.
    line = (gl.program_id(0) * BLOCKS * num_rows + gl.program_id(1)).to(gl.int64) * num_selected
    ours = (q, grad_out, lse, delta, q_row, live_heads, count, scale, p_rows, ds_rows)
    shared = (padded_heads, queries, ring, full, empty)
    lines = mass + line
    other_lines = lines + num_rows.to(gl.int64) * num_selected
    if BLOCKS == 2:
        gl.warp_specialize(
            [
                (_score_heads, (ours, lines, shared, 0, MASS_ONLY)),
                (_score_heads, (ours, other_lines, shared, 1, MASS_ONLY)),
                (_gather_parts, (kv, rows_of, count, ring, full, empty)),
            ],
            [4, 4],
            [216, 72] if MASS_ONLY else [232, 40],
        )
    else:
        gl.warp_specialize(
            [
                (_score_heads, (ours, lines, shared, 0, MASS_ONLY)),
                (_gather_parts, (kv, rows_of, count, ring, full, empty)),
            ],
            [4],
            [40],
        )


def head_blocks(num_heads: int) -> tuple[int, int]:
    """(programs a row, warpgroups of 64 heads in each)."""
    return (1, 1) if num_heads <= HEADS.value else (triton.cdiv(num_heads, 2 * HEADS.value), 2)


def _run(
    q_NHK: Tensor,
    kv_SK: Tensor,
    indices_NC: Tensor,
    count_N: Tensor,
    lse_NH: Tensor,
    scale: float,
    upstream: tuple[Tensor, Tensor],
    results: tuple[Tensor, Tensor, Tensor],
    mass_only: bool,
) -> None:
    programs, blocks = head_blocks(q_NHK.shape[1])
    _attention_scores[(programs, q_NHK.shape[0])](
        q_NHK,
        kv_SK,
        indices_NC,
        count_N,
        lse_NH,
        scale,
        *upstream,
        *results,
        q_NHK.shape[1],
        indices_NC.shape[1],
        triton.cdiv(indices_NC.shape[1], KEYS.value),
        BLOCKS=blocks,
        MASS_ONLY=mass_only,
        num_warps=4,
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
    num_tiles = triton.cdiv(indices_NC.shape[1], KEYS.value)
    shape = (num_rows, num_tiles, programs * blocks * HEADS.value, KEYS.value)
    probs, grads = (torch.empty(shape, dtype=q_NHK.dtype, device=q_NHK.device) for _ in range(2))
    upstream = (grad_out_NHV, delta_NH)
    _run(q_NHK, kv_SK, indices_NC, count_N, lse_NH, scale, upstream, (probs, grads, lse_NH), False)
    return probs, grads


def attention_mass(
    q_NHK: Tensor, kv_SK: Tensor, indices_NC: Tensor, count_N: Tensor, lse_NH: Tensor, scale: float
) -> Tensor:
    """float32 [N, C], as `triton_attention_mass.attention_mass`."""
    num_rows, num_heads, _ = q_NHK.shape
    programs, blocks = head_blocks(num_heads)
    mass = torch.zeros(programs * blocks, num_rows, indices_NC.shape[1], dtype=torch.float32, device=q_NHK.device)
    _run(q_NHK, kv_SK, indices_NC, count_N, lse_NH, scale, (q_NHK, lse_NH), (q_NHK, q_NHK, mass), True)
    return mass.sum(0)
