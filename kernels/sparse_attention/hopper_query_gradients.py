"""Query gradients of sparse attention for Hopper at the published widths (Gluon): dS·K, by programs that hold the sums of half the channels.

dS and the gathered keys pass; a program has half the channels because the sums of all would not fit the registers.

Axes: N query rows, S key rows, H heads (padded), K key width, C selected keys (padded to tiles).
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import async_copy, mbarrier

from samepath.kernels.gpu.gluon import block_barrier, tile_to_shared
from samepath.kernels.sparse_attention.hopper_gather import MAIN, REST, copy_rows

KEYS = gl.constexpr(64)
"""Keys a tile."""
HALF = gl.constexpr(256)
"""Value channels of a program."""
HALF_REST = gl.constexpr(32)
"""Rotary channels of a program."""


@gluon.jit
def _load_query_operands(kv, rows_of, grads, place, tiles, full, empty, ROWS: gl.constexpr, STAGES: gl.constexpr):
    """Role of one warpgroup: copy dS and the program's channels of the keys, tile after tile."""
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    NARROW: gl.constexpr = gl.BlockedLayout([1, 8], [8, 4], [4, 1], [1, 0])
    ds_tiles, k_tiles, k_rest_tiles = tiles
    half, first_tile, tile_step, count = place
    slots = gl.arange(0, KEYS, gl.SliceLayout(1, COPY))
    narrow = gl.arange(0, KEYS, gl.SliceLayout(1, NARROW))
    rows = gl.load(rows_of + slots, mask=slots < count, other=0)
    rows_narrow = gl.load(rows_of + narrow, mask=narrow < count, other=0)
    for tile in range((count + KEYS - 1) // KEYS):
        stage = tile % STAGES
        live = slots < count
        live_narrow = narrow < count
        slots += KEYS
        narrow += KEYS
        # Read ahead, so that the gather of the next tile waits for no index.
        rows_ahead = gl.load(rows_of + slots, mask=slots < count, other=0)
        narrow_ahead = gl.load(rows_of + narrow, mask=narrow < count, other=0)
        mbarrier.wait(empty.index(stage), ((tile // STAGES) & 1) ^ 1)
        mbarrier.expect(full.index(stage), ROWS * KEYS * 2)
        tile_to_shared(grads, [first_tile + tile * tile_step, 0], full.index(stage), ds_tiles.index(stage))
        copy_rows(kv, rows, live, k_tiles.index(stage), half * HALF, MAIN + REST, HALF, COPY)
        channel = MAIN + half * HALF_REST
        copy_rows(kv, rows_narrow, live_narrow, k_rest_tiles.index(stage), channel, MAIN + REST, HALF_REST, NARROW)
        async_copy.mbarrier_arrive(full.index(stage), increment_count=False)
        rows = rows_ahead
        rows_narrow = narrow_ahead


@gluon.jit
def _add_keys(grad_q_rows, live_heads, half, count, tiles, full, empty, ROWS: gl.constexpr, STAGES: gl.constexpr):
    """Role of one warpgroup for each 64 heads: dQ = dS·K."""
    WARPS: gl.constexpr = ROWS // 16
    WIDE: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[WARPS, 1], instr_shape=[16, 256, 16])
    NARROW: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[WARPS, 1], instr_shape=[16, 32, 16])
    ds_tiles, k_tiles, k_rest_tiles = tiles
    wide = gl.zeros([ROWS, HALF], gl.float32, WIDE)
    narrow = gl.zeros([ROWS, HALF_REST], gl.float32, NARROW)
    for tile in range((count + KEYS - 1) // KEYS):
        stage = tile % STAGES
        mbarrier.wait(full.index(stage), (tile // STAGES) & 1)
        wide = hopper.warpgroup_mma(ds_tiles.index(stage), k_tiles.index(stage), wide, is_async=True)
        narrow = hopper.warpgroup_mma(ds_tiles.index(stage), k_rest_tiles.index(stage), narrow, is_async=True)
        wide, narrow = hopper.warpgroup_mma_wait(2, deps=[wide, narrow])
        block_barrier()
        mbarrier.arrive(empty.index((tile + STAGES - 1) % STAGES), count=1, pred=tile > 0)
    wide, narrow = hopper.warpgroup_mma_wait(0, deps=[wide, narrow])
    head = gl.arange(0, ROWS, gl.SliceLayout(1, WIDE))
    channel = half * HALF + gl.arange(0, HALF, gl.SliceLayout(0, WIDE))
    place = gl.expand_dims(head * (MAIN + REST), 1) + gl.expand_dims(channel, 0)
    gl.store(grad_q_rows + place, wide.to(gl.bfloat16), mask=gl.expand_dims(head < live_heads, 1))
    head = gl.arange(0, ROWS, gl.SliceLayout(1, NARROW))
    channel = MAIN + half * HALF_REST + gl.arange(0, HALF_REST, gl.SliceLayout(0, NARROW))
    place = gl.expand_dims(head * (MAIN + REST), 1) + gl.expand_dims(channel, 0)
    gl.store(grad_q_rows + place, narrow.to(gl.bfloat16), mask=gl.expand_dims(head < live_heads, 1))


@gluon.jit
def query_gradients(
    kv,
    indices,
    counts,
    grads,
    grad_q,
    num_heads,
    num_selected,
    num_tiles,
    ROWS: gl.constexpr,
    STAGES: gl.constexpr,
):
    SHARED: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    SHARED_REST: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=64, element_bitwidth=16, rank=2)
    TYPE: gl.constexpr = gl.bfloat16
    half = gl.program_id(0)
    row = gl.program_id(1).to(gl.int64)
    block = gl.program_id(2)
    first_head = block * ROWS
    ds_tiles = gl.allocate_shared_memory(TYPE, [STAGES, ROWS, KEYS], SHARED)
    k_tiles = gl.allocate_shared_memory(TYPE, [STAGES, KEYS, HALF], SHARED)
    k_rest_tiles = gl.allocate_shared_memory(TYPE, [STAGES, KEYS, HALF_REST], SHARED_REST)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        # All 128 loading threads arrive, and the tensor map's copy.
        mbarrier.init(full.index(stage), count=129)
        mbarrier.init(empty.index(stage), count=1)
    hopper.fence_async_shared()
    count = gl.load(counts + row)
    num_blocks = gl.num_programs(2)
    first_tile = (gl.program_id(1) * num_tiles * num_blocks + block) * ROWS
    place = (half, first_tile, num_blocks * ROWS, count)
    grad_q_rows = grad_q + (row * num_heads + first_head) * (MAIN + REST)
    tiles = (ds_tiles, k_tiles, k_rest_tiles)
    rows_of = indices + row * num_selected
    gl.warp_specialize(
        [
            (_add_keys, (grad_q_rows, num_heads - first_head, half, count, tiles, full, empty, ROWS, STAGES)),
            (_load_query_operands, (kv, rows_of, grads, place, tiles, full, empty, ROWS, STAGES)),
        ],
        [4],
        [72],
    )
