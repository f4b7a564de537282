"""Key gradients of attention over all keys for Hopper, at widths of 64 or 128 (Gluon): warps with roles.

Two warpgroups own 64 keys each, free of each other: scores and their gradients stand with keys as rows, so that both go straight from registers into
dV = Pᵀ·dO and dK = dSᵀ·Q. A third warpgroup copies queries, output gradients and a line of numbers per row to them. Bound by the four products a
tile, between which the exponentials of one warpgroup run beside the products of the other.

Axes: N query rows, H query heads, G key heads, S rows of the store, W row width; B, T, S of a window as in `window.py`; M (query, head) rows of
one sequence and key head, padded to whole tiles.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import async_copy, mbarrier

from samepath.kernels.gpu.gluon import block_barrier, copy_to_shared

ROWS = gl.constexpr(64)
"""(Query, head) rows a tile."""
KEYS = gl.constexpr(64)
"""Keys of one warpgroup; a program has two."""
SCAN = gl.constexpr(1024)
"""Ends that are read at once to find the queries that see a tile of keys."""
LOG2_E = gl.constexpr(1.4426950408889634)


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
def backward_keys(
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
