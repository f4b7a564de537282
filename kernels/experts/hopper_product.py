"""Products of grouped rows with the matrix of their own expert for Hopper (Gluon): persistent, by warps with roles, operands by tensor maps.

One warp hands out the work and fetches operands; each of two warpgroups, the consumers, multiplies 64 rows by 256 columns. A tile has one or two
blocks of 64 rows, so an expert's last rows cost a block, not a tile. A block's products are the same instructions in the same order wherever it
stands. Roles hand over through barriers: `full` and `empty` of the stages, `told` and `heard` of the work.

Axes: D width, E experts, F expert width, R padded rows.
"""

from functools import cache

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from samepath.kernels.experts.hopper_producer import (
    BLOCK,
    COLUMNS,
    CONSUMERS,
    GATED,
    HALF,
    INNER,
    OUTER,
    PLAIN,
    SLOTS,
    STAGES,
    TRANSPOSED,
    produce,
)
from samepath.kernels.experts.triton_layout import Layout
from samepath.kernels.gpu.gluon import block_barrier, tile_from_shared, view_shared

SHARED = gl.constexpr(gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2))
LINE = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [0]))


@gluon.jit
def _hear(work, place):
    """Read a number of the producer's."""
    return gl.max(work.index(place).load(gl.BlockedLayout([1], [32], [4], [0])), 0)


@gluon.jit
def _write(target, staging, value, row, column):
    """Start the store of half a block's columns through shared memory, once the one before it has left."""
    tma.store_wait(0)
    block_barrier()
    staging.store(value.to(gl.bfloat16))
    hopper.fence_async_shared()
    block_barrier()
    tile_from_shared(target, [row, column], staging)


@gluon.jit
def _consume(
    outputs,
    width,
    a_shared,
    b_shared,
    staging,
    work,
    barriers,
    INDEX: gl.constexpr,
    MODE: gl.constexpr,
    KEEP: gl.constexpr,
):
    """Role of a consumer: multiply and write one block of each tile."""
    out, products = outputs
    full, empty, told, heard = barriers
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 256, 16])
    zero = gl.zeros([BLOCK, COLUMNS], gl.float32, LAYOUT)
    step = 0
    turn = 0
    count = 1
    while count > 0:
        slot = turn % SLOTS
        mbarrier.wait(told.index(slot), (turn // SLOTS) & 1)
        out_row = _hear(work, slot * 4)
        count = _hear(work, slot * 4 + 1)
        column = _hear(work, slot * 4 + 2)
        steps = _hear(work, slot * 4 + 3)
        block_barrier()
        mbarrier.arrive(heard.index(slot), count=1)
        turn += 1
        if count > INDEX:
            total = zero
            for _k in range(steps):
                stage = step % STAGES
                a = a_shared.index(stage * CONSUMERS + INDEX)
                b = b_shared.index(stage)
                if MODE == OUTER:
                    a = a.permute((1, 0))
                elif MODE != PLAIN:
                    b = b.permute((1, 0))
                mbarrier.wait(full.index(stage), (step // STAGES) & 1)
                total = hopper.warpgroup_mma(a, b, total, is_async=True)
                total = hopper.warpgroup_mma_wait(0, deps=[total])
                block_barrier()
                mbarrier.arrive(empty.index(stage), count=1)
                step += 1
            row = out_row + INDEX * BLOCK
            # Both halves of a column lie in one thread, so nothing moves.
            first, second = gl.split(total.reshape([BLOCK, 2, HALF]).permute([0, 2, 1]))
            if MODE == GATED:
                hidden = first / (1.0 + gl.exp(-first)) * second
                _write(out, staging, hidden, row, column * HALF)
                if KEEP:
                    _write(products, staging, first, row, column * HALF)
                    _write(products, staging, second, row, width + column * HALF)
            else:
                _write(out, staging, first, row, column * COLUMNS)
                _write(out, staging, second, row, column * COLUMNS + HALF)
        elif count > 0:
            for _k in range(steps):
                stage = step % STAGES
                mbarrier.wait(full.index(stage), (step // STAGES) & 1)
                block_barrier()
                mbarrier.arrive(empty.index(stage), count=1)
                step += 1
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["num_experts"])
def _products(
    left,
    right,
    out,
    products,
    expert_of_tile,
    first_tile,
    first_block,
    counter,
    num_experts,
    height,
    width,
    inner,
    MODE: gl.constexpr,
    KEEP: gl.constexpr,
):
    """Fill out (and products) with the products of left and right; each program takes tiles until none is left."""
    a_shared = gl.allocate_shared_memory(gl.bfloat16, [STAGES * CONSUMERS, BLOCK, INNER], SHARED)
    if MODE == GATED:
        # Gate and up rows arrive apart and are multiplied as one matrix.
        b_fetched = gl.allocate_shared_memory(gl.bfloat16, [STAGES * 2, HALF, INNER], SHARED)
        b_shared = view_shared(b_fetched, gl.bfloat16, [STAGES, COLUMNS, INNER], SHARED)
    elif MODE == TRANSPOSED:
        b_fetched = gl.allocate_shared_memory(gl.bfloat16, [STAGES, COLUMNS, INNER], SHARED)
        b_shared = b_fetched
    else:
        b_fetched = gl.allocate_shared_memory(gl.bfloat16, [STAGES, INNER, COLUMNS], SHARED)
        b_shared = b_fetched
    one = gl.allocate_shared_memory(gl.bfloat16, [BLOCK, HALF], SHARED)
    two = gl.allocate_shared_memory(gl.bfloat16, [BLOCK, HALF], SHARED)
    work = gl.allocate_shared_memory(gl.int32, [SLOTS * 4, 1], LINE)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    told = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    heard = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=CONSUMERS)
    for slot in gl.static_range(SLOTS):
        mbarrier.init(told.index(slot), count=1)
        mbarrier.init(heard.index(slot), count=CONSUMERS)
    hopper.fence_async_shared()
    bars = (full, empty, told, heard)
    places = (expert_of_tile, first_tile, first_block)
    sizes = (height, width, inner)
    outputs = (out, products)
    gl.warp_specialize(
        [
            (_consume, (outputs, width, a_shared, b_shared, one, work, bars, 0, MODE, KEEP)),
            (_consume, (outputs, width, a_shared, b_shared, two, work, bars, 1, MODE, KEEP)),
            (produce, (left, right, places, sizes, num_experts, counter, a_shared, b_fetched, work, bars, MODE)),
        ],
        [4, 1],
        [240, 24],
    )


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _map(tensor: Tensor, box: list[int]) -> TensorDescriptor:
    """Tensor map of a matrix, or of stacked ones, in boxes."""
    width = tensor.shape[-1]
    return TensorDescriptor(tensor, [tensor.numel() // width, width], [width, 1], box, SHARED.value)


def _run(
    mode: gl.constexpr,
    operands: tuple[Tensor, Tensor, Tensor, Tensor],
    layout: Layout,
    sizes: tuple[int, int, int],
    keep: bool = False,
) -> None:
    """Fill the third operand (and, if kept, the fourth) with the products of the first two."""
    left, right, out, products = operands
    boxes = {GATED: [HALF.value, INNER.value], TRANSPOSED: [COLUMNS.value, INNER.value]}
    _products[(_multiprocessors(left.device),)](
        _map(left, [BLOCK.value, INNER.value]),
        _map(right, boxes.get(mode, [INNER.value, COLUMNS.value])),
        _map(out, [BLOCK.value, HALF.value]),
        _map(products, [BLOCK.value, HALF.value]),
        layout.expert_of_tile,
        layout.first_tile_E,
        layout.first_block_E,
        layout.counters,
        layout.first_tile_E.shape[0] - 1,
        *sizes,
        MODE=mode,
        KEEP=keep,
        num_warps=4,
    )


def gated_units(x_RD: Tensor, gate_up_EGD: Tensor, layout: Layout, keep: bool) -> tuple[Tensor, Tensor]:
    """(SiLU(x·Wgᵀ) · (x·Wuᵀ) `[R, F]`, both products `[R, 2F]`, or [0, 2F] unless they are kept)."""
    num_rows, width = x_RD.shape
    num_units = gate_up_EGD.shape[1] // 2
    hidden_RF = x_RD.new_empty(num_rows, num_units)
    products = x_RD.new_empty(num_rows if keep else 0, 2 * num_units)
    operands = (x_RD, gate_up_EGD, hidden_RF, products if keep else hidden_RF)
    _run(GATED, operands, layout, (0, num_units, width), keep)
    return hidden_RF, products


def grouped_product(left: Tensor, right: Tensor, layout: Layout, *, transposed: bool) -> Tensor:
    """[R, columns]: each row `[R, inner]` times its expert's matrix [columns, inner] if `transposed`, else [inner, columns]."""
    num_columns = right.shape[1] if transposed else right.shape[2]
    out = left.new_empty(left.shape[0], num_columns)
    mode = TRANSPOSED if transposed else PLAIN
    _run(mode, (left, right, out, out), layout, (0, num_columns, left.shape[1]))
    return out


def grouped_outer_product(left: Tensor, right: Tensor, layout: Layout) -> Tensor:
    """[E, left width, right width]: each expert's sum of outer products of its rows, in row order; padding must be 0 in both."""
    height, width = left.shape[1], right.shape[1]
    out = left.new_empty(layout.first_tile_E.shape[0] - 1, height, width)
    _run(OUTER, (left, right, out, out), layout, (height, width, 0))
    return out
