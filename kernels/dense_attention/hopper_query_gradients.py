"""Query gradients of attention over all keys for Hopper, at widths of 64 or 128 (Gluon): warps with roles.

Two warpgroups hold the sums of 64 (query, head) rows each; the third gathers keys and values, as it does in the forward. Bound by the three products
a tile.

Axes: N query rows, H query heads, G key heads, S rows of the store, W row width; B, T, S of a window as in `window.py`; M (query, head) rows of
one sequence and key head, padded to whole tiles.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import async_copy, mbarrier

from samepath.kernels.dense_attention.hopper_forward import gather_keys
from samepath.kernels.dense_attention.hopper_key_gradients import LOG2_E, ROWS
from samepath.kernels.dense_attention.hopper_lines import NOWHERE
from samepath.kernels.gpu.gluon import block_barrier, copy_to_shared


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
def backward_queries(
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
