"""Attention over all keys for Hopper, backward, at key and value widths of 64 or 128 (Gluon): warps with roles.

Two warpgroups own 64 keys each, free of each other: scores and their gradients stand with keys as rows, so that both go straight from registers into
dV = Pᵀ·dO and dK = dSᵀ·Q. A third warpgroup copies queries, output gradients and a line of numbers per row to them.

Axes: N query rows, H query heads, G key heads, S rows of the store, W row width; B, T, S of a window as in `window.py`; M (query, head) rows of
one sequence and key head, padded to whole tiles.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import async_copy, mbarrier

from samepath.kernels.dense_attention.hopper_forward import gather_keys
from samepath.kernels.gpu.gluon import block_barrier, copy_to_shared

ROWS = gl.constexpr(64)
"""(Query, head) rows a tile."""
KEYS = gl.constexpr(64)
"""Keys of one warpgroup; a program has two."""
QUERY_TILE = 64
"""Keys a tile of the query gradients: with 128 the registers would not last."""
LINE_ROWS = 32
"""Rows of a program that prepares the lines."""
NOWHERE = tl.constexpr(1 << 24)
"""End of a row that does not exist: as a float exact, and larger than that of any row."""
SCAN = gl.constexpr(1024)
"""Ends that are read at once to find the queries that see a tile of keys."""
LOG2_E = gl.constexpr(1.4426950408889634)


@triton.jit
def _row_lines(
    out,
    grad_out,
    lse,
    rows_BT,
    ends_BT,
    places,
    lines,
    num_queries,
    num_padded,
    num_heads,
    shared,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Place in [N·H], LSE in base 2, Σ dO·O and end of each (query, head) row; rows that do not exist have LSE +∞ and the place of row 0."""
    zero = tl.full((), 0, tl.int64)
    group, sequence = tl.program_id(1), zero + tl.program_id(2)
    local = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    query = local // shared
    inside = query < num_queries
    end = tl.load(ends_BT + sequence * num_queries + query, mask=inside, other=0).to(tl.int32)
    row = tl.load(rows_BT + sequence * num_queries + query, mask=inside, other=0).to(tl.int64)
    live = end > 0
    place = tl.where(live, row * num_heads + group * shared + local % shared, 0)
    channel = tl.arange(0, WIDTH)
    at = place[:, None] * WIDTH + channel[None, :]
    product = tl.load(out + at, mask=live[:, None], other=0.0).to(tl.float32)
    product *= tl.load(grad_out + at, mask=live[:, None], other=0.0).to(tl.float32)
    target = (sequence * tl.num_programs(1) + group) * num_padded + local
    count = tl.num_programs(2) * tl.num_programs(1) * (zero + num_padded)
    tl.store(places + target, place)
    base_2 = tl.load(lse + place, mask=live, other=float("inf")) * 1.4426950408889634
    tl.store(lines + target, base_2)
    tl.store(lines + count + target, tl.sum(product, 1))
    # A row that does not exist is hidden by its LSE; a large end keeps it from looking like the edge of a mask.
    tl.store(lines + 2 * count + target, tl.where(live, end, NOWHERE).to(tl.float32))


@gluon.jit
def _copy_rows(source, tiles, WIDTH: gl.constexpr, STAGES: gl.constexpr):
    """Role of one warpgroup: copy tile after tile of queries, output gradients and lines as buffers become empty."""
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [256 // WIDTH, WIDTH // 8], [4, 1], [1, 0])
    LINE: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    q, grad_out, places, lines, num_lines, first_tile, num_tiles = source
    q_tiles, o_tiles, line_tiles, full, empty = tiles
    local = gl.arange(0, ROWS, gl.SliceLayout(1, COPY))
    channel = gl.expand_dims(gl.arange(0, WIDTH, gl.SliceLayout(0, COPY)), 0)
    entry = gl.arange(0, ROWS, LINE)
    for tile in range(num_tiles):
        buffer = tile % STAGES
        first = (first_tile + tile) * ROWS
        place = gl.load(places + first + local)
        offsets = gl.expand_dims(place * WIDTH, 1) + channel
        mbarrier.wait(empty.index(buffer), ((tile // STAGES) & 1) ^ 1)
        copy_to_shared(q_tiles.index(buffer), q + offsets)
        copy_to_shared(o_tiles.index(buffer), grad_out + offsets)
        for line in gl.static_range(3):
            copy_to_shared(line_tiles.index(buffer * 3 + line), lines + line * num_lines + first + entry)
        async_copy.mbarrier_arrive(full.index(buffer), increment_count=False)


@gluon.jit
def _add_pairs(
    source, walk, k_tile, v_tile, tiles, result, WIDTH: gl.constexpr, STAGES: gl.constexpr, PAIRS: gl.constexpr
):
    """Role of one warpgroup: dK and dV of 64 keys over all tiles of rows."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, ROWS, 16])
    GRADS: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, WIDTH, 16])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, GRADS, 2)
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [256 // WIDTH, WIDTH // 8], [4, 1], [1, 0])
    LINE: gl.constexpr = gl.SliceLayout(0, SCORES)
    keys, table, longest, row_width, value_start = source
    first_key, num_tiles, factor, scale = walk
    q_tiles, o_tiles, line_tiles, full, empty = tiles
    slots = first_key + gl.arange(0, KEYS, gl.SliceLayout(1, COPY))
    live = slots < longest
    rows = gl.load(table + slots, mask=live, other=0)
    channel = gl.expand_dims(gl.arange(0, WIDTH, gl.SliceLayout(0, COPY)), 0)
    pointers = keys + gl.expand_dims(rows * row_width, 1) + channel
    copy_to_shared(k_tile, pointers, mask=gl.expand_dims(live, 1))
    copy_to_shared(v_tile, pointers + value_start, mask=gl.expand_dims(live, 1))
    async_copy.commit_group()
    async_copy.wait_group(0)
    hopper.fence_async_shared()
    block_barrier()
    zero = gl.zeros([KEYS, ROWS], gl.float32, SCORES)
    grad_k = gl.zeros([KEYS, WIDTH], gl.float32, GRADS)
    grad_v = gl.zeros([KEYS, WIDTH], gl.float32, GRADS)
    key = gl.expand_dims((first_key + gl.arange(0, KEYS, gl.SliceLayout(1, SCORES))).to(gl.float32), 1)
    for tile in range(num_tiles):
        buffer = tile % STAGES
        mbarrier.wait(full.index(buffer), (tile // STAGES) & 1)
        hopper.fence_async_shared()
        q_tile, o_tile = q_tiles.index(buffer), o_tiles.index(buffer)
        scores = hopper.warpgroup_mma(k_tile, q_tile.permute((1, 0)), zero, use_acc=False, is_async=True)
        grads = hopper.warpgroup_mma(v_tile, o_tile.permute((1, 0)), zero, use_acc=False, is_async=True)
        edge = gl.min(line_tiles.index(buffer * 3 + 2).load(LINE), 0) < first_key + KEYS
        scores, grads = hopper.warpgroup_mma_wait(0, deps=[scores, grads])
        # Numbers of a row are read where they are used: registers are short.
        probs = gl.exp2(scores * factor - gl.expand_dims(line_tiles.index(buffer * 3).load(LINE), 0))
        if edge:
            end = line_tiles.index(buffer * 3 + 2).load(LINE)
            probs = gl.where(key < gl.expand_dims(end, 0), probs, 0.0)
        grads = probs * (grads - gl.expand_dims(line_tiles.index(buffer * 3 + 1).load(LINE), 0))
        p, ds = gl.convert_layout(probs.to(gl.bfloat16), LEFT), gl.convert_layout(grads.to(gl.bfloat16), LEFT)
        grad_v = hopper.warpgroup_mma(p, o_tile, grad_v, is_async=True)
        grad_k = hopper.warpgroup_mma(ds, q_tile, grad_k, is_async=True)
        grad_v, grad_k = hopper.warpgroup_mma_wait(0, deps=[grad_v, grad_k])
        block_barrier()
        mbarrier.arrive(empty.index(buffer), count=1)
    target, first_place, group, num_groups = result
    slots = first_key + gl.arange(0, KEYS, gl.SliceLayout(1, GRADS))
    live = slots < longest
    if PAIRS:
        place = first_place + slots
    else:
        place = gl.load(table + slots, mask=live, other=0)
    channel = gl.expand_dims(gl.arange(0, WIDTH, gl.SliceLayout(0, GRADS)), 0)
    pointers = target + gl.expand_dims((place * num_groups + group) * row_width, 1) + channel
    keep = gl.expand_dims(live, 1)
    grad_k = grad_k * scale
    if not PAIRS:
        # No other program has these rows.
        grad_k += gl.load(pointers, mask=keep, other=0.0)
        grad_v += gl.load(pointers + value_start, mask=keep, other=0.0)
    gl.store(pointers, grad_k, mask=keep)
    gl.store(pointers + value_start, grad_v, mask=keep)


@gluon.jit
def _backward_keys(
    q, store, grad_out, ends_BT, keys_BS, places, lines, target,
    scale, num_queries, num_padded, num_keys, shared, group_stride, row_width, value_start,
    WIDTH: gl.constexpr, STAGES: gl.constexpr, PAIRS: gl.constexpr,
):  # fmt: skip
    SHARED: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    FLAT: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    TILE: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    group = gl.program_id(1)
    sequence = gl.program_id(2).to(gl.int64)
    first_key = gl.program_id(0) * (2 * KEYS)
    ends = ends_BT + sequence * num_queries
    # The queries that see the first of these keys: none before `low`, none from `high` on.
    low, high, longest = num_queries, 0, 0
    for start in range(0, num_queries, SCAN):
        query = start + gl.arange(0, SCAN, TILE)
        end = gl.load(ends + query, mask=query < num_queries, other=0).to(gl.int32)
        low = gl.minimum(low, gl.min(gl.where(end > first_key, query, num_queries), 0))
        high = gl.maximum(high, gl.max(gl.where(end > first_key, query + 1, 0), 0))
        longest = gl.maximum(longest, gl.max(end, 0))
    first_tile = low * shared // ROWS
    num_tiles = gl.maximum((high * shared + ROWS - 1) // ROWS - first_tile, 0)
    of_group = (sequence * gl.num_programs(1) + group) * num_padded
    num_lines = gl.num_programs(2).to(gl.int64) * gl.num_programs(1) * num_padded
    k_tiles = gl.allocate_shared_memory(gl.bfloat16, [2, KEYS, WIDTH], SHARED)
    v_tiles = gl.allocate_shared_memory(gl.bfloat16, [2, KEYS, WIDTH], SHARED)
    q_tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES, ROWS, WIDTH], SHARED)
    o_tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES, ROWS, WIDTH], SHARED)
    line_tiles = gl.allocate_shared_memory(gl.float32, [STAGES * 3, ROWS], FLAT)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for buffer in gl.static_range(STAGES):
        # All 128 copying threads arrive.
        mbarrier.init(full.index(buffer), count=128)
        mbarrier.init(empty.index(buffer), count=2)
    factor = scale * LOG2_E
    source = (store + group.to(gl.int64) * group_stride, keys_BS + sequence * num_keys, longest, row_width, value_start)
    tiles = (q_tiles, o_tiles, line_tiles, full, empty)
    result = (target, sequence * num_keys, group, gl.num_programs(1))
    rows = (q, grad_out, places + of_group, lines + of_group, num_lines, first_tile, num_tiles)
    walk_a = (first_key, num_tiles, factor, scale)
    walk_b = (first_key + KEYS, num_tiles, factor, scale)
    gl.warp_specialize(
        [
            (_add_pairs, (source, walk_a, k_tiles.index(0), v_tiles.index(0), tiles, result, WIDTH, STAGES, PAIRS)),
            (_add_pairs, (source, walk_b, k_tiles.index(1), v_tiles.index(1), tiles, result, WIDTH, STAGES, PAIRS)),
            (_copy_rows, (rows, tiles, WIDTH, STAGES)),
        ],
        [4, 4],
        [232, 40],
    )


@gluon.jit
def _add_keys(source, walk, q_tile, o_tile, tiles, TILE_KEYS: gl.constexpr, WIDTH: gl.constexpr, STAGES: gl.constexpr):
    """Role of one warpgroup: dQ of 64 rows over all tiles of keys."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, TILE_KEYS, 16]
    )
    GRADS: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, WIDTH, 16])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, GRADS, 2)
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [256 // WIDTH, WIDTH // 8], [4, 1], [1, 0])
    q, grad_out, grad_q, places, lines, num_lines = source
    first_row, num_tiles, factor, scale = walk
    k_tiles, v_tiles, barriers = tiles
    full_k, empty_k, full_v, empty_v = barriers
    place = gl.expand_dims(gl.load(places + first_row + gl.arange(0, ROWS, gl.SliceLayout(1, COPY))) * WIDTH, 1)
    channel = gl.expand_dims(gl.arange(0, WIDTH, gl.SliceLayout(0, COPY)), 0)
    copy_to_shared(q_tile, q + place + channel)
    copy_to_shared(o_tile, grad_out + place + channel)
    async_copy.commit_group()
    async_copy.wait_group(0)
    hopper.fence_async_shared()
    block_barrier()
    row = first_row + gl.arange(0, ROWS, gl.SliceLayout(1, SCORES))
    base_2 = gl.expand_dims(gl.load(lines + row), 1)
    delta = gl.expand_dims(gl.load(lines + num_lines + row), 1)
    end = gl.load(lines + 2 * num_lines + row).to(gl.int32)
    # Up to here every row sees every key.
    low = gl.min(end, 0)
    zero = gl.zeros([ROWS, TILE_KEYS], gl.float32, SCORES)
    grad = gl.zeros([ROWS, WIDTH], gl.float32, GRADS)
    column = gl.expand_dims(gl.arange(0, TILE_KEYS, gl.SliceLayout(0, SCORES)), 0)
    for tile in range(num_tiles):
        first = tile * TILE_KEYS
        buffer = tile % STAGES
        phase = (tile // STAGES) & 1
        k_tile = k_tiles.index(buffer)
        mbarrier.wait(full_k.index(buffer), phase)
        mbarrier.wait(full_v.index(buffer), phase)
        hopper.fence_async_shared()
        scores = hopper.warpgroup_mma(q_tile, k_tile.permute((1, 0)), zero, use_acc=False, is_async=True)
        grads = hopper.warpgroup_mma(o_tile, v_tiles.index(buffer).permute((1, 0)), zero, use_acc=False, is_async=True)
        scores, grads = hopper.warpgroup_mma_wait(0, deps=[scores, grads])
        block_barrier()
        mbarrier.arrive(empty_v.index(buffer), count=1)
        probs = gl.exp2(scores * factor - base_2)
        if first + TILE_KEYS > low:
            probs = gl.where(first + column < gl.expand_dims(end, 1), probs, 0.0)
        ds = gl.convert_layout((probs * (grads - delta)).to(gl.bfloat16), LEFT)
        grad = hopper.warpgroup_mma(ds, k_tile, grad, is_async=True)
        grad = hopper.warpgroup_mma_wait(0, deps=[grad])
        block_barrier()
        mbarrier.arrive(empty_k.index(buffer), count=1)
    # The queries are used up, so their tile takes the rounded gradients on their way to whole rows.
    q_tile.store((grad * scale).to(gl.bfloat16))
    block_barrier()
    row = first_row + gl.arange(0, ROWS, gl.SliceLayout(1, COPY))
    place = gl.expand_dims(gl.load(places + row) * WIDTH, 1)
    live = gl.load(lines + 2 * num_lines + row) < NOWHERE
    gl.store(grad_q + place + channel, q_tile.load(COPY), mask=gl.expand_dims(live, 1))


@gluon.jit
def _backward_queries(
    q, store, grad_out, rows_BT, ends_BT, keys_BS, places, lines, grad_q,
    scale, num_queries, num_padded, num_keys, shared, group_stride, row_width: gl.constexpr, VALUE_START: gl.constexpr,
    TILE_KEYS: gl.constexpr, WIDTH: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    SHARED: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    TILE: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    group = gl.program_id(1)
    sequence = gl.program_id(2).to(gl.int64)
    # The last rows see most keys: they start first.
    first_row = (gl.num_programs(0) - 1 - gl.program_id(0)) * (2 * ROWS)
    query = (first_row + gl.arange(0, 2 * ROWS, TILE)) // shared
    ends = gl.load(ends_BT + sequence * num_queries + query, mask=query < num_queries, other=0)
    high = gl.max(ends, 0).to(gl.int32)
    num_tiles = (high + TILE_KEYS - 1) // TILE_KEYS
    of_group = (sequence * gl.num_programs(1) + group) * num_padded
    num_lines = gl.num_programs(2).to(gl.int64) * gl.num_programs(1) * num_padded
    q_tiles = gl.allocate_shared_memory(gl.bfloat16, [2, ROWS, WIDTH], SHARED)
    o_tiles = gl.allocate_shared_memory(gl.bfloat16, [2, ROWS, WIDTH], SHARED)
    k_tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES, TILE_KEYS, WIDTH], SHARED)
    v_tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES, TILE_KEYS, WIDTH], SHARED)
    full_k = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty_k = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    full_v = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty_v = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for buffer in gl.static_range(STAGES):
        # All 128 gathering threads arrive.
        mbarrier.init(full_k.index(buffer), count=128)
        mbarrier.init(full_v.index(buffer), count=128)
        mbarrier.init(empty_k.index(buffer), count=2)
        mbarrier.init(empty_v.index(buffer), count=2)
    factor = scale * LOG2_E
    keys = store + group.to(gl.int64) * group_stride
    gather = (keys, keys_BS + sequence * num_keys, 0, num_tiles, high, row_width)
    tiles = (k_tiles, v_tiles, (full_k, empty_k, full_v, empty_v))
    source = (q, grad_out, grad_q, places + of_group, lines + of_group, num_lines)
    walk_a = (first_row, num_tiles, factor, scale)
    walk_b = (first_row + ROWS, num_tiles, factor, scale)
    gl.warp_specialize(
        [
            (_add_keys, (source, walk_a, q_tiles.index(0), o_tiles.index(0), tiles, TILE_KEYS, WIDTH, STAGES)),
            (_add_keys, (source, walk_b, q_tiles.index(1), o_tiles.index(1), tiles, TILE_KEYS, WIDTH, STAGES)),
            (gather_keys, (gather, tiles, TILE_KEYS, WIDTH, VALUE_START, STAGES)),
        ],
        [4, 4],
        [224, 64],
    )


def backward(
    inputs: tuple[Tensor, ...],
    saved: tuple[Tensor, Tensor],
    targets: tuple[Tensor, Tensor],
    scale: float,
    sizes: tuple[int, ...],
    pairs: bool,
) -> None:
    """Both kernels, as those of `triton_backward`: write the query gradients; store or add the key gradients.

    Args:
        inputs: q, store, grad_out, rows_BT, ends_BT, keys_BS. saved: out, lse. targets: of the queries, of the keys.
        sizes: shared, group_stride, row_width, value_start.
    """
    q_NHK, store_GSW, grad_out_NHV, rows_BT, ends_BT, keys_BS = inputs
    (num_sequences, num_queries), num_keys = rows_BT.shape, keys_BS.shape[1]
    num_groups, num_heads, width = store_GSW.shape[0], q_NHK.shape[1], q_NHK.shape[2]
    tile = 2 * ROWS.value
    num_padded = triton.cdiv(num_queries * sizes[0], tile) * tile
    shape = (num_sequences, num_groups, num_padded)
    places = torch.empty(shape, dtype=torch.int64, device=q_NHK.device)
    lines = torch.empty(3, *shape, dtype=torch.float32, device=q_NHK.device)
    _row_lines[(num_padded // LINE_ROWS, num_groups, num_sequences)](
        saved[0],
        grad_out_NHV,
        saved[1],
        rows_BT,
        ends_BT,
        places,
        lines,
        num_queries,
        num_padded,
        num_heads,
        sizes[0],
        WIDTH=width,
        ROWS=LINE_ROWS,
    )
    walk = (scale, num_queries, num_padded, num_keys, *sizes)
    keys = triton.cdiv(num_keys, 2 * KEYS.value)
    _backward_keys[(keys, num_groups, num_sequences)](
        q_NHK,
        store_GSW,
        grad_out_NHV,
        ends_BT,
        keys_BS,
        places,
        lines,
        targets[1],
        *walk,
        WIDTH=width,
        STAGES=3 if width == 128 else 4,
        PAIRS=pairs,
        num_warps=4,
    )
    _backward_queries[(num_padded // tile, num_groups, num_sequences)](
        *inputs, places, lines, targets[0], *walk, TILE_KEYS=QUERY_TILE, WIDTH=width, STAGES=4, num_warps=4
    )
