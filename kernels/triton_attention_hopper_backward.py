"""Key gradients of sparse attention for Hopper at the published widths (Gluon); the rest is `triton_attention_backward`'s.

Queries and output gradients of 64 heads stay in shared memory, and one tile of keys. Warps have roles: one warpgroup gathers, one takes the
scores and dP (which need the keys), two compute dKV = dSᵀ·Q + Pᵀ·dO (which does not) and write it. They hand over through barriers: `full` and
`empty` of the key tile, `ready` and `taken` of P and dS.

Axes: N query rows, S key rows, H heads, K key width, V value width, C selected keys, P pairs of a row chunk.
"""

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import async_copy, mbarrier

from samepath.kernels.triton_attention_hopper import HEADS, KEYS, LOG2_E, MAIN, REST, copy_key_rows, copy_rows
from samepath.kernels.triton_gluon import block_barrier


@gluon.jit
def _rename(values):
    """Order the channels of each 32 so that what a thread holds, 2 of every 8, becomes 8 neighbours: 16-byte stores, nothing moves.

    Channel 8·j + 2·l + b of a group stands at 8·l + 2·j + b; `triton_attention_backward` reads it back so.
    """
    ROWS: gl.constexpr = values.shape[0]
    WIDTH: gl.constexpr = values.shape[1]
    grouped = values.reshape([ROWS, WIDTH // 32, 4, 4, 2])
    return grouped.permute([0, 1, 3, 2, 4]).reshape([ROWS, WIDTH])


@gluon.jit
def _write_pairs(target, rows_of, block_place, count, slots, values, first, LAYOUT: gl.constexpr, ATOMIC: gl.constexpr):
    """Add a tile of key gradients to the keys' rows, or store it as the pairs' rows; `slots` are the tile's places in the row."""
    channel = gl.expand_dims(first + gl.arange(0, values.shape[1], gl.SliceLayout(0, LAYOUT)), 0)
    live = slots < count
    mask = gl.expand_dims(live, 1)
    if ATOMIC:
        place = gl.load(rows_of + slots, mask=live, other=0).to(gl.int64) * (MAIN + REST)
        gl.atomic_add(target + gl.expand_dims(place, 1) + channel, values, mask=mask, sem="relaxed")
    else:
        place = (block_place + slots) * (MAIN + REST)
        rounded = gl.convert_layout(_rename(values.to(target.dtype.element_ty)), LAYOUT)
        gl.store(target + gl.expand_dims(place, 1) + channel, rounded, mask=mask)


@gluon.jit
def _gather_tiles(kv, rows_of, count, k_main, k_rest, full, empty):
    """Role of one warpgroup: copy each tile of keys when the last one has been read."""
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    slots = gl.arange(0, KEYS, gl.SliceLayout(1, COPY))
    for tile in range((count + KEYS - 1) // KEYS):
        live = tile * KEYS + slots < count
        rows = gl.load(rows_of + tile * KEYS + slots, mask=live, other=0)
        mbarrier.wait(empty, (tile & 1) ^ 1)
        copy_rows(kv, rows, live, k_main, 0, MAIN + REST, MAIN, COPY)
        copy_rows(kv, rows, live, k_rest, MAIN, MAIN + REST, REST, COPY)
        # Each thread arrives when its own copies have landed.
        async_copy.mbarrier_arrive(full, increment_count=False)


@gluon.jit
def _score_tiles(
    lines,
    row_place,
    block_place,
    live_heads,
    num_heads,
    count,
    scale,
    grad_scores,
    mass,
    queries,
    keys,
    shared,
    barriers,
):
    """Role of one warpgroup: P and dS of each tile; dS and the mass also go to memory."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 64, 16])
    lse_line, delta_line = lines
    q_main, q_rest, o_main = queries
    k_main, k_rest = keys
    p_shared, ds_shared = shared
    full, empty, ready, taken = barriers
    zero = gl.zeros([KEYS, HEADS], gl.float32, SCORES)
    head = gl.arange(0, HEADS, gl.SliceLayout(0, SCORES))
    key = gl.arange(0, KEYS, gl.SliceLayout(1, SCORES))
    for tile in range((count + KEYS - 1) // KEYS):
        slots = tile * KEYS + key
        live = slots < count
        mbarrier.wait(full, tile & 1)
        hopper.fence_async_shared()
        scores = hopper.warpgroup_mma(k_main, q_main.permute((1, 0)), zero, use_acc=False, is_async=True)
        scores = hopper.warpgroup_mma(k_rest, q_rest.permute((1, 0)), scores, is_async=True)
        grads = hopper.warpgroup_mma(k_main, o_main.permute((1, 0)), zero, use_acc=False, is_async=True)
        scores, grads = hopper.warpgroup_mma_wait(0, deps=[scores, grads])
        block_barrier()
        mbarrier.arrive(empty, count=1)
        lse_H = lse_line.load(gl.SliceLayout(0, SCORES))
        probs = gl.exp2(scores * (scale * LOG2_E) - gl.expand_dims(lse_H, 0))
        probs = gl.where(gl.expand_dims(live, 1), probs, 0.0)
        delta_H = delta_line.load(gl.SliceLayout(0, SCORES))
        rounded = (probs * (grads - gl.expand_dims(delta_H, 0)) * scale).to(gl.bfloat16)
        mbarrier.wait(taken, (tile & 1) ^ 1)
        p_shared.store(probs.to(gl.bfloat16))
        ds_shared.store(rounded)
        hopper.fence_async_shared()
        block_barrier()
        mbarrier.arrive(ready, count=1)
        gl.store(mass + block_place + slots, gl.sum(probs, 1), mask=live)
        place = (row_place + gl.expand_dims(slots, 1)) * num_heads + gl.expand_dims(head, 0)
        keep = gl.expand_dims(live, 1) & gl.expand_dims(head < live_heads, 0)
        gl.store(grad_scores + place, rounded, mask=keep)


@gluon.jit
def _key_gradients(target, rows_of, block_place, count, queries, shared, barriers, ATOMIC: gl.constexpr):
    """Role of two warpgroups: dKV = dSᵀ·Q + Pᵀ·dO of each tile, written while the next tile is scored."""
    WIDE: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 2], instr_shape=[16, 128, 16])
    NARROW: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 2], instr_shape=[16, 32, 16])
    # What the products' layouts become when channels are renamed as `_rename` does.
    EIGHTS: gl.constexpr = gl.DistributedLinearLayout(
        [[0, 1], [0, 2], [0, 4], [8, 0], [0, 32], [0, 64], [0, 256]],
        [[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]],
        [[16, 0], [32, 0], [0, 128]],
        [],
        [64, 512],
    )
    EIGHTS_REST: gl.constexpr = gl.DistributedLinearLayout(
        [[0, 1], [0, 2], [0, 4], [8, 0]],
        [[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]],
        [[16, 0], [32, 0], [0, 32]],
        [],
        [64, 64],
    )
    MAIN_STORE: gl.constexpr = WIDE if ATOMIC else EIGHTS
    REST_STORE: gl.constexpr = NARROW if ATOMIC else EIGHTS_REST
    q_main, q_rest, o_main = queries
    p_shared, ds_shared = shared
    _full, _empty, ready, taken = barriers
    zero_wide = gl.zeros([KEYS, MAIN], gl.float32, WIDE)
    zero = gl.zeros([KEYS, REST], gl.float32, NARROW)
    main_key = gl.arange(0, KEYS, gl.SliceLayout(1, MAIN_STORE))
    rest_key = gl.arange(0, KEYS, gl.SliceLayout(1, REST_STORE))
    for tile in range((count + KEYS - 1) // KEYS):
        first = tile * KEYS
        mbarrier.wait(ready, tile & 1)
        hopper.fence_async_shared()
        wide = hopper.warpgroup_mma(ds_shared, q_main, zero_wide, use_acc=False, is_async=True)
        wide = hopper.warpgroup_mma(p_shared, o_main, wide, is_async=True)
        narrow = hopper.warpgroup_mma(ds_shared, q_rest, zero, use_acc=False, is_async=True)
        wide, narrow = hopper.warpgroup_mma_wait(0, deps=[wide, narrow])
        block_barrier()
        mbarrier.arrive(taken, count=1)
        _write_pairs(target, rows_of, block_place, count, first + main_key, wide, 0, MAIN_STORE, ATOMIC)
        _write_pairs(target, rows_of, block_place, count, first + rest_key, narrow, MAIN, REST_STORE, ATOMIC)


@gluon.jit
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
    first_row,
    num_rows,
    num_heads,
    num_selected,
    ATOMIC: gl.constexpr,
):
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [8, 1], [1, 0])
    SHARED: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    LINE: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    SPREAD: gl.constexpr = gl.BlockedLayout([1], [32], [8], [0])
    TYPE: gl.constexpr = gl.bfloat16
    row = gl.program_id(1).to(gl.int64) + first_row
    first_head = gl.program_id(0) * HEADS
    live_heads = num_heads - first_head
    q_row = row * num_heads + first_head
    q_main = gl.allocate_shared_memory(TYPE, [HEADS, MAIN], SHARED)
    q_rest = gl.allocate_shared_memory(TYPE, [HEADS, REST], SHARED)
    o_main = gl.allocate_shared_memory(TYPE, [HEADS, MAIN], SHARED)
    k_main = gl.allocate_shared_memory(TYPE, [KEYS, MAIN], SHARED)
    k_rest = gl.allocate_shared_memory(TYPE, [KEYS, REST], SHARED)
    p_shared = gl.allocate_shared_memory(TYPE, [KEYS, HEADS], SHARED)
    ds_shared = gl.allocate_shared_memory(TYPE, [KEYS, HEADS], SHARED)
    lse_line = gl.allocate_shared_memory(gl.float32, [HEADS], LINE)
    delta_line = gl.allocate_shared_memory(gl.float32, [HEADS], LINE)
    full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    taken = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    # All 128 gathering threads arrive.
    mbarrier.init(full, count=128)
    mbarrier.init(empty, count=1)
    mbarrier.init(ready, count=1)
    mbarrier.init(taken, count=1)
    heads = gl.arange(0, HEADS, gl.SliceLayout(1, COPY))
    copy_rows(grad_out, q_row + heads, heads < live_heads, o_main, 0, MAIN, MAIN, COPY)
    copy_key_rows(q, q_row + heads, heads < live_heads, q_main, q_rest, COPY)
    line = gl.arange(0, HEADS, SPREAD)
    # A padded head must give P = 0 without NaN.
    lse_line.store(gl.load(lse + q_row + line, mask=line < live_heads, other=float("inf")) * LOG2_E)
    delta_line.store(gl.load(delta + q_row + line, mask=line < live_heads, other=0.0))
    async_copy.wait_group(0)
    hopper.fence_async_shared()
    block_barrier()
    count = gl.load(counts + row)
    rows_of = indices + row * num_selected
    block_place = (gl.program_id(0).to(gl.int64) * num_rows + gl.program_id(1)) * num_selected
    queries = (q_main, q_rest, o_main)
    shared = (p_shared, ds_shared)
    barriers = (full, empty, ready, taken)
    scored = (
        (lse_line, delta_line),
        row * num_selected,
        block_place,
        live_heads,
        num_heads,
        count,
        scale,
        grad_scores + first_head,
        mass,
        queries,
        (k_main, k_rest),
        shared,
        barriers,
    )
    gl.warp_specialize(
        [
            (_key_gradients, (target, rows_of, block_place, count, queries, shared, barriers, ATOMIC)),
            (_score_tiles, scored),
            (_gather_tiles, (kv, rows_of, count, k_main, k_rest, full, empty)),
        ],
        [4, 4],
        [136, 24],
    )


def backward_keys(arguments: tuple[Tensor | float | int, ...], grid: tuple[int, int], atomic: bool) -> None:
    """Run the kernel on the arguments of `triton_attention_backward`'s, in its order."""
    _backward_keys[grid](*arguments, ATOMIC=atomic, num_warps=8)
