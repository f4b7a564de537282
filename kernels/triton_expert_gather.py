"""The first product, with its rows gathered by asynchronous copies of a whole warpgroup instead of copied beforehand."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import async_copy, mbarrier

from samepath.kernels.triton_expert_late import (
    BLOCK,
    COLUMNS,
    CONSUMERS,
    GATED,
    HALF,
    INNER,
    LINE,
    SHARED,
    SLOTS,
    _consume,
    _map,
    _multiprocessors,
    _row_tile,
)
from samepath.kernels.triton_gluon import block_barrier, copy_to_shared, tile_to_shared, view_shared


@gluon.jit
def _say(work, place, value):
    work.index(place).store(gl.full([1], value, gl.int32, gl.BlockedLayout([1], [32], [4], [0])))


@gluon.jit
def _produce_gathered(
    tokens,
    pair_of_row,
    num_slots,
    right,
    places,
    sizes,
    num_experts,
    counter,
    a_rows,
    b_shared,
    work,
    barriers,
    STAGES: gl.constexpr,
):
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    ROWS: gl.constexpr = gl.SliceLayout(1, COPY)
    expert_of_tile, first_tile, first_block = places
    width, inner = sizes
    full, empty, told, heard = barriers
    columns = gl.cdiv(width, HALF)
    total = gl.load(first_tile + num_experts) * columns
    item = gl.program_id(0)
    step = 0
    turn = 0
    slots = gl.arange(0, BLOCK * CONSUMERS, ROWS)
    channel = gl.arange(0, INNER, gl.SliceLayout(0, COPY))
    while item < total:
        expert, block, count, column = _row_tile(item, columns, expert_of_tile, first_tile, first_block)
        steps = gl.maximum(gl.cdiv(inner, INNER), 2)
        slot = turn % SLOTS
        mbarrier.wait(heard.index(slot), ((turn // SLOTS) & 1) ^ 1)
        _say(work, slot * 4, block * BLOCK)
        _say(work, slot * 4 + 1, count)
        _say(work, slot * 4 + 2, column)
        _say(work, slot * 4 + 3, steps)
        block_barrier()
        mbarrier.arrive(told.index(slot), count=1)
        turn += 1
        pair = gl.load(pair_of_row + block * BLOCK + slots, mask=slots < count * BLOCK, other=-1)
        live = gl.expand_dims(pair >= 0, 1)
        token = gl.where(pair >= 0, pair // num_slots, 0)
        pointers = tokens + gl.expand_dims(token.to(gl.int64) * inner, 1) + gl.expand_dims(channel, 0)
        row = expert * 2 * width + column * HALF
        for k in range(steps):
            stage = step % STAGES
            bar = full.index(stage)
            mbarrier.wait(empty.index(stage), ((step // STAGES) & 1) ^ 1)
            mbarrier.expect(bar, COLUMNS * INNER * 2)
            tile_to_shared(right, [row, k * INNER], bar, b_shared.index(stage * 2))
            tile_to_shared(right, [row + width, k * INNER], bar, b_shared.index(stage * 2 + 1))
            copy_to_shared(a_rows.index(stage), pointers, mask=live)
            async_copy.mbarrier_arrive(bar, increment_count=False)
            pointers += INNER
            step += 1
        item = gl.num_programs(0) + gl.atomic_add(counter, 1, sem="relaxed")
    slot = turn % SLOTS
    mbarrier.wait(heard.index(slot), ((turn // SLOTS) & 1) ^ 1)
    _say(work, slot * 4 + 1, 0)
    block_barrier()
    mbarrier.arrive(told.index(slot), count=1)
    async_copy.wait_group(0)
    if gl.atomic_add(counter + 1, 1) == gl.num_programs(0) - 1:
        gl.store(counter, 0)
        gl.store(counter + 1, 0)


@gluon.jit(do_not_specialize=["num_experts", "num_slots"])
def _gathered_units(
    tokens,
    pair_of_row,
    num_slots,
    right,
    out,
    products,
    expert_of_tile,
    first_tile,
    first_block,
    counter,
    num_experts,
    width,
    inner,
    KEEP: gl.constexpr,
    AHEAD: gl.constexpr,
    STAGES: gl.constexpr,
):
    a_rows = gl.allocate_shared_memory(gl.bfloat16, [STAGES, BLOCK * CONSUMERS, INNER], SHARED)
    a_shared = view_shared(a_rows, gl.bfloat16, [STAGES * CONSUMERS, BLOCK, INNER], SHARED)
    b_fetched = gl.allocate_shared_memory(gl.bfloat16, [STAGES * 2, HALF, INNER], SHARED)
    b_shared = view_shared(b_fetched, gl.bfloat16, [STAGES, COLUMNS, INNER], SHARED)
    one = gl.allocate_shared_memory(gl.bfloat16, [BLOCK, HALF], SHARED)
    two = gl.allocate_shared_memory(gl.bfloat16, [BLOCK, HALF], SHARED)
    work = gl.allocate_shared_memory(gl.int32, [SLOTS * 4, 1], LINE)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    told = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    heard = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=129)
        mbarrier.init(empty.index(stage), count=CONSUMERS)
    for slot in gl.static_range(SLOTS):
        mbarrier.init(told.index(slot), count=1)
        mbarrier.init(heard.index(slot), count=CONSUMERS)
    hopper.fence_async_shared()
    bars = (full, empty, told, heard)
    places = (expert_of_tile, first_tile, first_block)
    sizes = (width, inner)
    outputs = (out, products)
    gl.warp_specialize(
        [
            (
                _consume,
                (outputs, width, a_shared, b_shared, one, work, bars, 0, GATED, KEEP, AHEAD, False, STAGES, True),
            ),
            (
                _consume,
                (outputs, width, a_shared, b_shared, two, work, bars, 1, GATED, KEEP, AHEAD, False, STAGES, True),
            ),
            (
                _produce_gathered,
                (
                    tokens,
                    pair_of_row,
                    num_slots,
                    right,
                    places,
                    sizes,
                    num_experts,
                    counter,
                    a_rows,
                    b_fetched,
                    work,
                    bars,
                    STAGES,
                ),
            ),
        ],
        [4, 4],
        [224, 56],
    )


def gathered_units(x_ND, gate_up_EGD, layout, hidden, products, keep, ahead=1, stages=4):
    num_units, width = gate_up_EGD.shape[1] // 2, gate_up_EGD.shape[2]
    _gathered_units[(_multiprocessors(x_ND.device),)](
        x_ND,
        layout.pair_of_row,
        layout.num_slots,
        _map(gate_up_EGD, [HALF.value, INNER.value]),
        _map(hidden, [BLOCK.value, HALF.value]),
        _map(products if keep else hidden, [BLOCK.value, HALF.value]),
        layout.expert_of_tile,
        layout.first_tile_E,
        layout.first_block_E,
        layout.counters,
        layout.first_tile_E.shape[0] - 1,
        num_units,
        width,
        KEEP=keep,
        AHEAD=ahead,
        STAGES=stages,
        num_warps=4,
    )
