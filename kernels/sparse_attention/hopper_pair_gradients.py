"""Gradients of (row, key) pairs for Hopper at the published widths (Gluon): dSᵀ·Q + Pᵀ·dO over all heads of a block.

A program holds half the channels of Q and dO in shared memory and lets P and dS pass; P and dS, which `hopper_scores` leaves in memory, are read once for
each half, and the pairs' own bytes bound the kernel with the products.

Axes: N query rows, H heads (padded), K key width, V value width, C selected keys (padded to tiles), P pairs of a row chunk.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import async_copy, mbarrier

from samepath.kernels.gpu.gluon import tile_to_shared
from samepath.kernels.sparse_attention.hopper_gather import MAIN, REST, copy_rows
from samepath.kernels.sparse_attention.hopper_query_gradients import HALF, HALF_REST, KEYS

HEADS = gl.constexpr(64)
"""Heads of a unit of dS or P."""
UNITS = gl.constexpr(5)
"""Units in flight for each warpgroup."""


@gluon.jit
def _rename(values, LAYOUT: gl.constexpr):
    """Order the channels of each 32 so that what a thread holds, 2 of every 8, becomes 8 neighbours: 16-byte stores, nothing moves.

    Channel 8·j + 2·l + b of a group stands at 8·l + 2·j + b; `triton_pairs` reads it back so.
    """
    ROWS: gl.constexpr = values.shape[0]
    WIDTH: gl.constexpr = values.shape[1]
    grouped = values.reshape([ROWS, WIDTH // 32, 4, 4, 2]).permute([0, 1, 3, 2, 4])
    return gl.convert_layout(grouped.reshape([ROWS, WIDTH]), LAYOUT)


@gluon.jit
def _load_pair_operands(operands, place, queries, units, barriers, BLOCKS: gl.constexpr):
    """Role of one warpgroup: copy the program's channels of Q and dO, then dS and P of tile after tile."""
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    NARROW: gl.constexpr = gl.BlockedLayout([1, 8], [8, 4], [4, 1], [1, 0])
    q_rows, grad_out_rows, probs, grads = operands
    live_heads, half, first_tile, tile_step, count = place
    q_half, q_rest, o_half, _ones = queries
    loaded, full, empty = barriers
    head = gl.arange(0, HEADS, gl.SliceLayout(1, COPY))
    narrow = gl.arange(0, HEADS, gl.SliceLayout(1, NARROW))
    rest = MAIN + half * HALF_REST
    for block in gl.static_range(BLOCKS):
        heads = block * HEADS + head
        narrow_heads = block * HEADS + narrow
        target = q_rest.index(block)
        copy_rows(q_rows, heads, heads < live_heads, q_half.index(block), half * HALF, MAIN + REST, HALF, COPY)
        copy_rows(q_rows, narrow_heads, narrow_heads < live_heads, target, rest, MAIN + REST, HALF_REST, NARROW)
        copy_rows(grad_out_rows, heads, heads < live_heads, o_half.index(block), half * HALF, MAIN, HALF, COPY)
    async_copy.mbarrier_arrive(loaded, increment_count=False)
    for tile in range((count + KEYS - 1) // KEYS):
        here = first_tile + tile * tile_step
        for part in gl.static_range(2 * BLOCKS):
            unit = tile // 2 * (2 * BLOCKS) + part
            slot = tile % 2 * UNITS + unit % UNITS
            mbarrier.wait(empty.index(slot), ((unit // UNITS) & 1) ^ 1)
            mbarrier.expect(full.index(slot), HEADS * KEYS * 2)
            source = grads if part < BLOCKS else probs
            corner = [here + part % BLOCKS * HEADS, 0]
            tile_to_shared(source, corner, full.index(slot), units.index(slot))


@gluon.jit
def _multiply_pairs(mine, queries, units, barriers, TURN: gl.constexpr, BLOCKS: gl.constexpr):
    """Role of a warpgroup: dSᵀ·Q + Pᵀ·dO of every second tile, and Pᵀ·1."""
    WIDE: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 256, 16])
    NARROW: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 32, 16])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 8, 16])
    # What the products' layouts become when channels are renamed.
    EIGHTS: gl.constexpr = gl.DistributedLinearLayout(
        [[0, 1], [0, 2], [0, 4], [8, 0], [0, 32], [0, 64], [0, 128]],
        [[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]],
        [[16, 0], [32, 0]],
        [],
        [64, 256],
    )
    EIGHTS_REST: gl.constexpr = gl.DistributedLinearLayout(
        [[0, 1], [0, 2], [0, 4], [8, 0]],
        [[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]],
        [[16, 0], [32, 0]],
        [],
        [64, 32],
    )
    pair_rows, mass_row, half, count = mine
    q_half, q_rest, o_half, ones = queries
    loaded, full, empty = barriers
    zero = gl.zeros([KEYS, HALF], gl.float32, WIDE)
    zero_rest = gl.zeros([KEYS, HALF_REST], gl.float32, NARROW)
    zero_sums = gl.zeros([KEYS, 8], gl.float32, SUMS)
    sum_key = gl.expand_dims(gl.arange(0, KEYS, gl.SliceLayout(1, SUMS)), 1)
    # All 8 columns hold the same sum; one is written.
    sum_column = gl.expand_dims(gl.arange(0, 8, gl.SliceLayout(0, SUMS)), 0)
    sum_here = sum_column + half * 8 == 0
    key = gl.arange(0, KEYS, gl.SliceLayout(1, EIGHTS))
    channel = half * HALF + gl.arange(0, HALF, gl.SliceLayout(0, EIGHTS))
    place = gl.expand_dims(key * (MAIN + REST), 1) + gl.expand_dims(channel, 0)
    rest_key = gl.arange(0, KEYS, gl.SliceLayout(1, EIGHTS_REST))
    rest_channel = MAIN + half * HALF_REST + gl.arange(0, HALF_REST, gl.SliceLayout(0, EIGHTS_REST))
    rest_place = gl.expand_dims(rest_key * (MAIN + REST), 1) + gl.expand_dims(rest_channel, 0)
    mbarrier.wait(loaded, 0)
    for turn in range(((count + KEYS - 1) // KEYS + 1 - TURN) // 2):
        first = (turn * 2 + TURN) * KEYS
        # 0 always, but the compiler cannot know: it would keep the addresses of all operands in registers.
        nothing = turn >> 26
        wide, narrow, sums = zero, zero_rest, zero_sums
        for part in gl.static_range(2 * BLOCKS):
            unit = turn * (2 * BLOCKS) + part
            slot = TURN * UNITS + unit % UNITS
            mbarrier.wait(full.index(slot), (unit // UNITS) & 1)
            left = units.index(slot).permute((1, 0))
            block = part % BLOCKS + nothing
            if part < BLOCKS:
                wide = hopper.warpgroup_mma(left, q_half.index(block), wide, use_acc=part > 0, is_async=True)
                narrow = hopper.warpgroup_mma(left, q_rest.index(block), narrow, use_acc=part > 0, is_async=True)
            else:
                right = ones.index(nothing).permute((1, 0))
                wide = hopper.warpgroup_mma(left, o_half.index(block), wide, is_async=True)
                sums = hopper.warpgroup_mma(left, right, sums, use_acc=part > BLOCKS, is_async=True)
            if part > 0:
                # All but the two products just begun are done.
                wide, narrow, sums = hopper.warpgroup_mma_wait(2, deps=[wide, narrow, sums])
                mbarrier.arrive(empty.index(TURN * UNITS + (unit - 1) % UNITS), count=1)
        wide, narrow, sums = hopper.warpgroup_mma_wait(0, deps=[wide, narrow, sums])
        last = (turn + 1) * (2 * BLOCKS) - 1
        mbarrier.arrive(empty.index(TURN * UNITS + last % UNITS), count=1)
        gl.store(mass_row + first + sum_key + sum_column, sums, mask=sum_here & (first + sum_key < count))
        here = pair_rows + first * (MAIN + REST)
        rest = _rename(narrow.to(gl.bfloat16), EIGHTS_REST)
        gl.store(here + rest_place, rest, mask=gl.expand_dims(first + rest_key < count, 1))
        gl.store(here + place, _rename(wide.to(gl.bfloat16), EIGHTS), mask=gl.expand_dims(first + key < count, 1))


@gluon.jit
def pair_gradients(
    q,
    grad_out,
    counts,
    probs,
    grads,
    pairs,
    mass,
    num_heads,
    num_selected,
    num_tiles,
    BLOCKS: gl.constexpr,
):
    SHARED: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    SHARED_REST: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=64, element_bitwidth=16, rank=2)
    TYPE: gl.constexpr = gl.bfloat16
    half = gl.program_id(0)
    row = gl.program_id(1).to(gl.int64)
    program = gl.program_id(2)
    padded_heads = gl.num_programs(2) * (BLOCKS * HEADS)
    first_head = program * (BLOCKS * HEADS)
    q_row = row * num_heads + first_head
    q_half = gl.allocate_shared_memory(TYPE, [BLOCKS, HEADS, HALF], SHARED)
    q_rest = gl.allocate_shared_memory(TYPE, [BLOCKS, HEADS, HALF_REST], SHARED_REST)
    o_half = gl.allocate_shared_memory(TYPE, [BLOCKS, HEADS, HALF], SHARED)
    ones = gl.allocate_shared_memory(TYPE, [1, 8, HEADS], SHARED)
    ones.index(0).store(gl.full([8, HEADS], 1.0, TYPE, gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])))
    # A ring for each multiplying warpgroup: a barrier that two wait for in turn could be a phase behind for one of them.
    units = gl.allocate_shared_memory(TYPE, [2 * UNITS, HEADS, KEYS], SHARED)
    loaded = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [2 * UNITS, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [2 * UNITS, 1], mbarrier.MBarrierLayout())
    # All 128 loading threads arrive.
    mbarrier.init(loaded, count=128)
    for slot in gl.static_range(2 * UNITS):
        mbarrier.init(full.index(slot), count=1)
        mbarrier.init(empty.index(slot), count=1)
    hopper.fence_async_shared()
    count = gl.load(counts + row)
    first_pair = (program.to(gl.int64) * gl.num_programs(1) + row) * num_selected
    first_tile = gl.program_id(1) * num_tiles * padded_heads + first_head
    mine = (pairs + first_pair * (MAIN + REST), mass + first_pair, half, count)
    operands = (q + q_row * (MAIN + REST), grad_out + q_row * MAIN, probs, grads)
    queries = (q_half, q_rest, o_half, ones)
    barriers = (loaded, full, empty)
    place = (num_heads - first_head, half, first_tile, padded_heads, count)
    gl.warp_specialize(
        [
            (_multiply_pairs, (mine, queries, units, barriers, 0, BLOCKS)),
            (_multiply_pairs, (mine, queries, units, barriers, 1, BLOCKS)),
            (_load_pair_operands, (operands, place, queries, units, barriers, BLOCKS)),
        ],
        [4, 4],
        [208, 88],
    )
