"""Gradients of sparse attention for Hopper at the published widths from P and dS (Gluon): two chains of plain products.

Key gradients of each (row, key) pair are dSᵀ·Q + Pᵀ·dO over all heads of a block: a program holds half the channels of Q and dO and lets P and dS
pass. Query gradients are dS·K: a program holds the sums of half the channels and lets dS and the gathered keys pass.

Axes: N query rows, S key rows, H heads (padded), K key width, V value width, C selected keys (padded to tiles), P pairs of a row chunk.
"""

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import async_copy, mbarrier
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from samepath.kernels.gpu.gluon import block_barrier, tile_to_shared
from samepath.kernels.sparse_attention.hopper_forward import MAIN, REST, copy_rows
from samepath.kernels.sparse_attention.hopper_scores import attention_scores, head_blocks

KEYS = gl.constexpr(64)
"""Keys a tile."""
HALF = gl.constexpr(256)
"""Value channels of a program."""
HALF_REST = gl.constexpr(32)
"""Rotary channels of a program."""
HEADS = gl.constexpr(64)
"""Heads of a unit of dS or P."""
UNITS = gl.constexpr(5)
"""Units in flight for each warpgroup of the pair gradients."""


@gluon.jit
def _rename(values, LAYOUT: gl.constexpr):
    """Order the channels of each 32 so that what a thread holds, 2 of every 8, becomes 8 neighbours: 16-byte stores, nothing moves.

    Channel 8·j + 2·l + b of a group stands at 8·l + 2·j + b; `triton_backward` reads it back so.
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
def _pair_gradients(
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
def _query_gradients(
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


def backward_rows(
    q_NHK: Tensor,
    kv_SK: Tensor,
    indices_NC: Tensor,
    count_N: Tensor,
    lse_NH: Tensor,
    scale: float,
    grad_out_NHV: Tensor,
    delta_NH: Tensor,
    grad_q_NHK: Tensor,
) -> tuple[Tensor, Tensor]:
    """Write `grad_q_NHK`; return (pairs [blocks · N · C, K] with renamed channels, mass of each block of heads [blocks, N, C])."""
    num_rows, num_heads, key_width = q_NHK.shape
    num_selected = indices_NC.shape[1]
    programs, blocks = head_blocks(num_heads)
    probs, grads = attention_scores(q_NHK, kv_SK, indices_NC, count_N, lse_NH, scale, grad_out_NHV, delta_NH)
    mass = torch.zeros(programs, num_rows, num_selected, dtype=torch.float32, device=kv_SK.device)
    pairs = torch.empty(mass.numel(), key_width, dtype=kv_SK.dtype, device=kv_SK.device)
    sizes = (num_heads, num_selected, probs.shape[1])
    grid = (2, num_rows, programs)
    rows = blocks * HEADS.value
    _query_gradients[grid](
        kv_SK,
        indices_NC,
        count_N,
        _tensor_map(grads, rows),
        grad_q_NHK,
        *sizes,
        ROWS=rows,
        STAGES=4,
        num_warps=4 * blocks,
    )
    maps = (_tensor_map(probs, HEADS.value), _tensor_map(grads, HEADS.value))
    _pair_gradients[grid](q_NHK, grad_out_NHV, count_N, *maps, pairs, mass, *sizes, BLOCKS=blocks, num_warps=4)
    return pairs, mass


def _tensor_map(tensor: Tensor, rows: int) -> TensorDescriptor:
    """For copies of so many heads of one tile of P or dS."""
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    return TensorDescriptor.from_tensor(tensor.view(-1, KEYS.value), [rows, KEYS.value], layout)
