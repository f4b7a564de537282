"""Sparse attention forward for Hopper at the published widths, by warps with roles (Gluon): one warpgroup gathers, one scores, two add the values.

A program stays on its multiprocessor and takes item after item, an item being a query row's block of heads (and part of its keys, if they are
cut for decoding); the gather runs ahead into the next item. Keys lie in slots of 128 channels that are filled and given back one by one. The
products of a tile with its values are issued in two halves: one beside the scores of the next tile, the other while those scores' softmax is
taken, so that the tensor cores always have work. Roles hand over through barriers in shared memory; `n` counts a program's tiles over all items.

Axes: N query rows, S key rows, H heads, K key width, V value width, C selected keys, P parts of the selected keys.
"""

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from samepath.kernels.gpu.gluon import block_barrier
from samepath.kernels.sparse_attention.hopper_gather import (
    HEADS,
    KEYS,
    MAIN,
    REST,
    SLICE,
    SLICES,
    SLOTS,
    find_item,
    gather_tiles,
)
from samepath.kernels.sparse_attention.hopper_values import add_values

LOG2_E = gl.constexpr(1.4426950408889634)
LAZY = gl.constexpr(8.0)
"""The maximum in use may lag behind the true one by this power of two before anything is rescaled; float32 has room for it."""


@gluon.jit
def _sum_in_threads(values):
    """[rows, 4] sums of a score tile's columns, each of what one thread holds, so that nothing is exchanged."""
    return gl.sum(gl.sum(values.reshape([HEADS, KEYS // 8, 4, 2]), 3), 1)


@gluon.jit
def _score_tiles(lse, factor, work, queries, keys, handover, PART: gl.constexpr):
    """Role of one warpgroup: scores, running maximum and probabilities; at the end of an item the LSE and 1/Σ."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 64, 16])
    ROWS: gl.constexpr = gl.SliceLayout(1, SCORES)
    _, items, _, _, num_heads, _ = work
    q_main, q_rest, q_full, q_empty = queries
    k_main, k_rest, full, _, rest_full, rest_empty = keys
    p_shared, factors, least, ready, taken = handover
    zero = gl.zeros([HEADS, KEYS], gl.float32, SCORES)
    column = gl.arange(0, KEYS, gl.SliceLayout(0, SCORES))
    head = gl.arange(0, HEADS, ROWS)
    n = 0
    event = 0
    filled = 0
    piece, first_head, _, _, count = find_item(gl.program_id(0), work, PART)
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        next_piece, next_head, _, _, next_count = find_item(item + gl.num_programs(0), work, PART)
        top = gl.full([HEADS], -1e30, gl.float32, ROWS)
        total = _sum_in_threads(zero)
        tiles = (count + KEYS - 1) // KEYS
        if tiles > 0:
            mbarrier.wait(q_full, filled & 1)
            filled += 1
        for tile in range(tiles):
            mbarrier.wait(rest_full.index(n % 2), (n // 2) & 1)
            hopper.fence_async_shared()
            rest = k_rest.index(n % 2).permute((1, 0))
            scores = hopper.warpgroup_mma(q_rest, rest, zero, use_acc=False, is_async=True)
            for part in gl.static_range(SLICES):
                slot = n * SLICES + part
                mbarrier.wait(full.index(slot % SLOTS), (slot // SLOTS) & 1)
                hopper.fence_async_shared()
                main = k_main.index(slot % SLOTS).permute((1, 0))
                scores = hopper.warpgroup_mma(q_main.index(part), main, scores, is_async=True)
            scores = hopper.warpgroup_mma_wait(0, deps=[scores])
            block_barrier()
            mbarrier.arrive(rest_empty.index(n % 2), count=1)
            if tile == tiles - 1:
                mbarrier.arrive(q_empty, count=1)
            if tile * KEYS + KEYS > count:
                live = gl.expand_dims(tile * KEYS + column < count, 0)
                scores = gl.where(live, scores, float("-inf"))
            best = gl.max(scores, 1) * factor
            # Most tiles leave the maximum in use alone, and then nobody rescales.
            new_top = gl.where(best > top + LAZY, best, top)
            rescale = gl.exp2(top - new_top)
            top = new_top
            probs = gl.exp2(scores * factor - gl.expand_dims(top, 1))
            # Each warp's smallest factors, so that the roles that rescale need not look for them; positive numbers sort like their bits.
            smallest = gl.inline_asm_elementwise(
                "redux.sync.min.u32 $0, $1, 0xffffffff;", "=r,r", [rescale], dtype=gl.float32, is_pure=True, pack=1
            )
            mbarrier.wait(taken, (event & 1) ^ 1)
            factors.store(rescale)
            least.permute((1, 0)).store(smallest.reshape([HEADS // 8, 8]))
            p_shared.store(probs.to(gl.bfloat16))
            block_barrier()
            mbarrier.arrive(ready, count=1)
            thread_rescale = gl.convert_layout(rescale, gl.SliceLayout(1, total.type.layout))
            total = total * gl.expand_dims(thread_rescale, 1) + _sum_in_threads(probs)
            n += 1
            event += 1
        sums = gl.convert_layout(gl.sum(total, 1), ROWS)
        divisor = gl.where(sums > 0, sums, 1.0)
        mbarrier.wait(taken, (event & 1) ^ 1)
        factors.store(1.0 / divisor)
        block_barrier()
        mbarrier.arrive(ready, count=1)
        event += 1
        # Parts are added in base 2.
        value = gl.where(sums > 0, (top + gl.log2(divisor)) / (1.0 if PART > 0 else LOG2_E), float("-inf"))
        gl.store(lse + piece.to(gl.int64) * num_heads + first_head + head, value, mask=head < num_heads - first_head)
        piece = next_piece
        first_head = next_head
        count = next_count


@gluon.jit
def _attend_items(
    q, kv, indices, counts, out, lse, scale, items, blocks, parts, num_heads, num_selected, PART: gl.constexpr
):
    SHARED: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    LINE: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
    q_main = gl.allocate_shared_memory(gl.bfloat16, [SLICES, HEADS, SLICE], SHARED)
    q_rest = gl.allocate_shared_memory(gl.bfloat16, [HEADS, REST], SHARED)
    k_main = gl.allocate_shared_memory(gl.bfloat16, [SLOTS, KEYS, SLICE], SHARED)
    k_rest = gl.allocate_shared_memory(gl.bfloat16, [2, KEYS, REST], SHARED)
    p_shared = gl.allocate_shared_memory(gl.bfloat16, [HEADS, KEYS], SHARED)
    factors = gl.allocate_shared_memory(gl.float32, [HEADS], LINE)
    # [0, i] is the smallest of factors 8i … 8i + 7.
    least = gl.allocate_shared_memory(gl.float32, [8, HEADS // 8], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
    full = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], BARRIER)
    empty = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], BARRIER)
    rest_full = gl.allocate_shared_memory(gl.int64, [2, 1], BARRIER)
    rest_empty = gl.allocate_shared_memory(gl.int64, [2, 1], BARRIER)
    q_full = gl.allocate_shared_memory(gl.int64, [1], BARRIER)
    q_empty = gl.allocate_shared_memory(gl.int64, [1], BARRIER)
    ready = gl.allocate_shared_memory(gl.int64, [1], BARRIER)
    taken = gl.allocate_shared_memory(gl.int64, [1], BARRIER)
    # All 128 gathering threads arrive.
    for slot in gl.static_range(SLOTS):
        mbarrier.init(full.index(slot), count=128)
        mbarrier.init(empty.index(slot), count=1)
    for slot in gl.static_range(2):
        mbarrier.init(rest_full.index(slot), count=128)
        mbarrier.init(rest_empty.index(slot), count=1)
    mbarrier.init(q_full, count=128)
    mbarrier.init(q_empty, count=1)
    mbarrier.init(ready, count=1)
    mbarrier.init(taken, count=2)
    work = (counts, items, blocks, parts, num_heads, num_selected)
    queries = (q_main, q_rest, q_full, q_empty)
    keys = (k_main, k_rest, full, empty, rest_full, rest_empty)
    handover = (p_shared, factors, least, ready, taken)
    gl.warp_specialize(
        [
            (add_values, (out, work, keys, handover, 0, PART)),
            (add_values, (out, work, keys, handover, 1, PART)),
            (_score_tiles, (lse, scale * LOG2_E, work, queries, keys, handover, PART)),
            (gather_tiles, (q, kv, indices, work, queries, keys, PART)),
        ],
        [4, 4, 4],
        [176, 120, 40],
    )


def attend_forward(
    q_NHK: Tensor, kv_SK: Tensor, indices_NC: Tensor, count_N: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """(out_NHV, lse_NH) of bfloat16 rows with K = 576 and V = 512, as `triton_forward.attend_forward`; the scale must be positive."""
    num_rows, num_heads, _ = q_NHK.shape
    out_NHV = torch.empty(num_rows, num_heads, MAIN.value, dtype=q_NHK.dtype, device=q_NHK.device)
    lse_NH = torch.empty(num_rows, num_heads, dtype=torch.float32, device=q_NHK.device)
    if lse_NH.numel():
        _launch(q_NHK, kv_SK, indices_NC, count_N, scale, (out_NHV, lse_NH), 1, 0)
    return out_NHV, lse_NH


def attend_parts(
    q_NHK: Tensor,
    kv_SK: Tensor,
    indices_NC: Tensor,
    count_N: Tensor,
    scale: float,
    partial: tuple[Tensor, Tensor],
    part: int,
) -> None:
    """Fill (output_NPHV, base-2 LSE_NPH), both float32, with the attention over `part` selected keys each, 0 and −inf where there are none."""
    _launch(q_NHK, kv_SK, indices_NC, count_N, scale, partial, partial[0].shape[1], part)


def _launch(
    q_NHK: Tensor,
    kv_SK: Tensor,
    indices_NC: Tensor,
    count_N: Tensor,
    scale: float,
    results: tuple[Tensor, Tensor],
    parts: int,
    part: int,
) -> None:
    num_rows, num_heads, _ = q_NHK.shape
    blocks = triton.cdiv(num_heads, HEADS.value)
    items = num_rows * parts * blocks
    programs = min(items, torch.cuda.get_device_properties(q_NHK.device).multi_processor_count)
    _attend_items[(programs,)](
        q_NHK,
        kv_SK,
        indices_NC,
        count_N,
        *results,
        scale,
        items,
        blocks,
        parts,
        num_heads,
        indices_NC.shape[1],
        PART=part,
        num_warps=4,
    )
