"""The producer of the expert products for Hopper (Gluon): one warp takes tile after tile, tells the consumers, and fetches the operands.

A tile has one or two blocks of 64 rows of one expert. Operands come by tensor maps, stage after stage, so that one warp keeps the tensor cores of two
warpgroups fed; which tile comes next is asked of a counter, since experts have unequal numbers of rows.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from samepath.kernels.gpu.gluon import block_barrier, tile_to_shared

CONSUMERS = gl.constexpr(2)
"""Warpgroups that multiply: the blocks of a whole tile."""
BLOCK = gl.constexpr(64)
"""Rows of a block: the height of the instruction."""
COLUMNS = gl.constexpr(256)
"""Columns of a tile: the width of the instruction."""
HALF = gl.constexpr(128)
INNER = gl.constexpr(64)
"""Inner width of a stage."""
STAGES = gl.constexpr(4)
"""Steps of operands in shared memory."""
SLOTS = gl.constexpr(2)
"""Tiles of which the consumers may be told ahead."""
GATED, TRANSPOSED, PLAIN, OUTER = (gl.constexpr(mode) for mode in range(4))
"""SwiGLU of left · [gate; up]ᵀ; left · rightᵀ; left · right; leftᵀ · right over the rows of each expert."""


@gluon.jit
def _say(work, place, value):
    """Write a number for the consumers."""
    work.index(place).store(gl.full([1], value, gl.int32, gl.BlockedLayout([1], [32], [1], [0])))


@gluon.jit
def _row_tile(item, columns, expert_of_tile, first_tile, first_block):
    """(expert, first block, blocks, column tile) of an item: the tiles of an expert's rows take a column tile one after another."""
    expert = gl.load(expert_of_tile + item // columns)
    first = gl.load(first_tile + expert)
    tiles = gl.load(first_tile + expert + 1) - first
    block = gl.load(first_block + expert)
    blocks = gl.load(first_block + expert + 1) - block
    local = item - first * columns
    tile = local % tiles
    return expert, block + tile * CONSUMERS, gl.minimum(blocks - tile * CONSUMERS, CONSUMERS), local // tiles


@gluon.jit
def _outer_tile(item, columns, height, first_block):
    """(expert, first block of the matrix, blocks, column tile) of an item of outer products, and (first block, blocks) of the rows it sums."""
    tall = gl.cdiv(gl.cdiv(height, BLOCK), CONSUMERS)
    expert = item // (tall * columns)
    local = item % (tall * columns)
    block = local % tall * CONSUMERS
    start = gl.load(first_block + expert)
    steps = gl.load(first_block + expert + 1) - start
    return expert, block, gl.minimum(gl.cdiv(height, BLOCK) - block, CONSUMERS), local // tall, start, steps


@gluon.jit
def _fetch(left, right, a_shared, b_shared, bar, stage, at, sizes, MODE: gl.constexpr):
    """Start the copies of one step's operands."""
    expert, block, count, column, start, k = at
    _height, width, inner = sizes
    B_BYTES: gl.constexpr = COLUMNS * INNER * 2
    A_BYTES: gl.constexpr = BLOCK * INNER * 2
    for i in gl.static_range(1, CONSUMERS + 1):
        mbarrier.expect(bar, B_BYTES + i * A_BYTES, pred=count == i)
    for i in gl.static_range(CONSUMERS):
        if MODE == OUTER:
            place = [(start + k) * BLOCK, (block + i) * BLOCK]
        else:
            place = [(block + i) * BLOCK, k * INNER]
        tile_to_shared(left, place, bar, a_shared.index(stage * CONSUMERS + i), pred=i < count)
    if MODE == GATED:
        row = expert * 2 * width + column * HALF
        tile_to_shared(right, [row, k * INNER], bar, b_shared.index(stage * 2))
        tile_to_shared(right, [row + width, k * INNER], bar, b_shared.index(stage * 2 + 1))
    else:
        if MODE == TRANSPOSED:
            place = [expert * width + column * COLUMNS, k * INNER]
        elif MODE == PLAIN:
            place = [expert * inner + k * INNER, column * COLUMNS]
        else:
            place = [(start + k) * BLOCK, column * COLUMNS]
        tile_to_shared(right, place, bar, b_shared.index(stage))


@gluon.jit
def produce(
    left,
    right,
    places,
    sizes,
    num_experts,
    counter,
    a_shared,
    b_shared,
    work,
    barriers,
    MODE: gl.constexpr,
):
    """Role of one warp: take the next tile, tell the consumers, fetch its operands stage after stage."""
    expert_of_tile, first_tile, first_block = places
    height, width, inner = sizes
    full, empty, told, heard = barriers
    if MODE == GATED:
        columns = gl.cdiv(width, HALF)
    else:
        columns = gl.cdiv(width, COLUMNS)
    if MODE == OUTER:
        total = num_experts * gl.cdiv(gl.cdiv(height, BLOCK), CONSUMERS) * columns
    else:
        total = gl.load(first_tile + num_experts) * columns
    item = gl.program_id(0)
    step = 0
    turn = 0
    while item < total:
        if MODE == OUTER:
            expert, block, count, column, start, steps = _outer_tile(item, columns, height, first_block)
            out_row = expert * height + block * BLOCK
        else:
            expert, block, count, column = _row_tile(item, columns, expert_of_tile, first_tile, first_block)
            start = 0
            steps = gl.cdiv(inner, INNER)
            out_row = block * BLOCK
        slot = turn % SLOTS
        mbarrier.wait(heard.index(slot), ((turn // SLOTS) & 1) ^ 1)
        _say(work, slot * 4, out_row)
        _say(work, slot * 4 + 1, count)
        _say(work, slot * 4 + 2, column)
        _say(work, slot * 4 + 3, steps)
        block_barrier()
        mbarrier.arrive(told.index(slot), count=1)
        turn += 1
        for k in range(steps):
            stage = step % STAGES
            mbarrier.wait(empty.index(stage), ((step // STAGES) & 1) ^ 1)
            at = (expert, block, count, column, start, k)
            _fetch(left, right, a_shared, b_shared, full.index(stage), stage, at, sizes, MODE)
            step += 1
        if MODE == OUTER:
            # Many small tiles of about one size, so the next one need not be asked for.
            item += gl.num_programs(0)
        else:
            item = gl.num_programs(0) + gl.atomic_add(counter, 1, sem="relaxed")
    slot = turn % SLOTS
    mbarrier.wait(heard.index(slot), ((turn // SLOTS) & 1) ^ 1)
    _say(work, slot * 4 + 1, 0)
    block_barrier()
    mbarrier.arrive(told.index(slot), count=1)
    # The last program leaves the counters as it found them.
    if gl.atomic_add(counter + 1, 1) == gl.num_programs(0) - 1:
        gl.store(counter, 0)
        gl.store(counter + 1, 0)
