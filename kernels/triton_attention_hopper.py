"""Sparse attention forward for Hopper at the published widths, by warps with roles (Gluon): one warpgroup gathers, one scores, two add the values.

While tile i is multiplied with its values, tile i + 1 is scored and its softmax taken: the tensor cores do not wait for the softmax. Roles hand
over through barriers in shared memory: `full` and `empty` of the two key tiles, `ready` and `taken` of the probabilities.

Axes: N query rows, S key rows, H heads, K key width, V value width, C selected keys.
"""

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import async_copy, mbarrier

from samepath.kernels.triton_gluon import block_barrier, copy_to_shared

MAIN = gl.constexpr(512)
"""Channels that keys and values share."""
REST = gl.constexpr(64)
"""Rotary channels, of the keys alone."""
HEADS = gl.constexpr(64)
"""Heads a program."""
KEYS = gl.constexpr(64)
"""Keys a tile."""
LOG2_E = gl.constexpr(1.4426950408889634)
LAZY = gl.constexpr(8.0)
"""The maximum in use may lag behind the true one by this power of two before anything is rescaled; float32 has room for it."""


@gluon.jit
def copy_rows(base, rows, live, target, first, STRIDE: gl.constexpr, WIDTH: gl.constexpr, COPY: gl.constexpr):
    """Start copying channels first … first + WIDTH − 1 of rows to shared memory; rows that are not live become 0."""
    channel = first + gl.arange(0, WIDTH, gl.SliceLayout(0, COPY))
    pointers = base + gl.expand_dims(rows.to(gl.int64) * STRIDE, 1) + gl.expand_dims(channel, 0)
    copy_to_shared(target, pointers, mask=gl.expand_dims(live, 1))


@gluon.jit
def copy_key_rows(base, rows, live, main, rest, COPY: gl.constexpr):
    """Start copying rows of width MAIN + REST into their two tiles, as one group of copies."""
    copy_rows(base, rows, live, main, 0, MAIN + REST, MAIN, COPY)
    copy_rows(base, rows, live, rest, MAIN, MAIN + REST, REST, COPY)
    async_copy.commit_group()


@gluon.jit
def _gather_tiles(kv, rows_of, count, k_main, k_rest, full, empty):
    """Role of one warpgroup: copy tile after tile into the two buffers as they become empty."""
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    slots = gl.arange(0, KEYS, gl.SliceLayout(1, COPY))
    for tile in range((count + KEYS - 1) // KEYS):
        first = tile * KEYS
        buffer = tile % 2
        live = first + slots < count
        rows = gl.load(rows_of + first + slots, mask=live, other=0)
        mbarrier.wait(empty.index(buffer), ((tile // 2) & 1) ^ 1)
        copy_rows(kv, rows, live, k_main.index(buffer), 0, MAIN + REST, MAIN, COPY)
        copy_rows(kv, rows, live, k_rest.index(buffer), MAIN, MAIN + REST, REST, COPY)
        # Each thread arrives when its own copies have landed.
        async_copy.mbarrier_arrive(full.index(buffer), increment_count=False)


@gluon.jit
def _score_tiles(
    q, q_row, live_heads, count, factor, lse, q_main, q_rest, k_main, k_rest, p_shared, factors, full, ready, taken
):
    """Role of one warpgroup: scores, running maximum and probabilities; at the end the LSE and 1/Σ."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 64, 16])
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    ROWS: gl.constexpr = gl.SliceLayout(1, SCORES)
    heads = gl.arange(0, HEADS, gl.SliceLayout(1, COPY))
    copy_key_rows(q, q_row + heads, heads < live_heads, q_main, q_rest, COPY)
    async_copy.wait_group(0)
    hopper.fence_async_shared()
    block_barrier()
    zero = gl.zeros([HEADS, KEYS], gl.float32, SCORES)
    total = gl.zeros([HEADS], gl.float32, ROWS)
    top = gl.full([HEADS], -1e30, gl.float32, ROWS)
    column = gl.arange(0, KEYS, gl.SliceLayout(0, SCORES))
    for tile in range((count + KEYS - 1) // KEYS):
        first = tile * KEYS
        buffer = tile % 2
        mbarrier.wait(full.index(buffer), (tile // 2) & 1)
        hopper.fence_async_shared()
        scores = hopper.warpgroup_mma(q_main, k_main.index(buffer).permute((1, 0)), zero, use_acc=False, is_async=True)
        scores = hopper.warpgroup_mma(q_rest, k_rest.index(buffer).permute((1, 0)), scores, is_async=True)
        scores = hopper.warpgroup_mma_wait(0, deps=[scores])
        scores = gl.where(gl.expand_dims(first + column < count, 0), scores * factor, float("-inf"))
        best = gl.max(scores, 1)
        # Most tiles leave the maximum in use alone, and then nobody rescales.
        new_top = gl.where(best > top + LAZY, best, top)
        rescale = gl.exp2(top - new_top)
        top = new_top
        probs = gl.exp2(scores - gl.expand_dims(top, 1))
        total = total * rescale + gl.sum(probs, 1)
        mbarrier.wait(taken, (tile & 1) ^ 1)
        p_shared.store(probs.to(gl.bfloat16))
        factors.store(rescale)
        hopper.fence_async_shared()
        block_barrier()
        mbarrier.arrive(ready, count=1)
    divisor = gl.where(total > 0, total, 1.0)
    mbarrier.wait(taken, (((count + KEYS - 1) // KEYS) & 1) ^ 1)
    factors.store(1.0 / divisor)
    block_barrier()
    mbarrier.arrive(ready, count=1)
    head = gl.arange(0, HEADS, ROWS)
    value = gl.where(total > 0, (top + gl.log2(divisor)) / LOG2_E, float("-inf"))
    gl.store(lse + q_row + head, value, mask=head < live_heads)


@gluon.jit
def _add_values(q_row, live_heads, count, out, k_main, p_shared, factors, full, empty, ready, taken):
    """Role of two warpgroups, a half of the value channels each: output = output · rescale + P · V."""
    OUTPUT: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 2], instr_shape=[16, 128, 16])
    STORE: gl.constexpr = gl.BlockedLayout([1, 8], [1, 32], [8, 1], [1, 0])
    ROWS: gl.constexpr = gl.SliceLayout(1, OUTPUT)
    output = gl.zeros([HEADS, MAIN], gl.float32, OUTPUT)
    for tile in range((count + KEYS - 1) // KEYS):
        buffer = tile % 2
        mbarrier.wait(ready, tile & 1)
        rescale = factors.load(ROWS)
        if gl.min(rescale, 0) < 1.0:
            output = output * gl.expand_dims(rescale, 1)
        mbarrier.wait(full.index(buffer), (tile // 2) & 1)
        hopper.fence_async_shared()
        output = hopper.warpgroup_mma(p_shared, k_main.index(buffer), output, is_async=True)
        output = hopper.warpgroup_mma_wait(0, deps=[output])
        block_barrier()
        mbarrier.arrive(taken, count=1)
        mbarrier.arrive(empty.index(buffer), count=1)
    mbarrier.wait(ready, ((count + KEYS - 1) // KEYS) & 1)
    # All tiles are used up, so one of them takes the rounded output on its way to whole rows.
    rows = k_main.index(0)
    rows.store((output * gl.expand_dims(factors.load(ROWS), 1)).to(gl.bfloat16))
    block_barrier()
    final = rows.load(STORE)
    head = gl.arange(0, HEADS, gl.SliceLayout(1, STORE))
    channel = gl.arange(0, MAIN, gl.SliceLayout(0, STORE))
    place = (q_row + gl.expand_dims(head, 1)) * MAIN + gl.expand_dims(channel, 0)
    gl.store(out + place, final, mask=gl.expand_dims(head < live_heads, 1))


@gluon.jit
def _attend_forward(q, kv, indices, counts, out, lse, scale, num_heads, num_selected):
    SHARED: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    LINE: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    row = gl.program_id(1).to(gl.int64)
    first_head = gl.program_id(0) * HEADS
    q_row = row * num_heads + first_head
    live_heads = num_heads - first_head
    q_main = gl.allocate_shared_memory(gl.bfloat16, [HEADS, MAIN], SHARED)
    q_rest = gl.allocate_shared_memory(gl.bfloat16, [HEADS, REST], SHARED)
    k_main = gl.allocate_shared_memory(gl.bfloat16, [2, KEYS, MAIN], SHARED)
    k_rest = gl.allocate_shared_memory(gl.bfloat16, [2, KEYS, REST], SHARED)
    p_shared = gl.allocate_shared_memory(gl.bfloat16, [HEADS, KEYS], SHARED)
    factors = gl.allocate_shared_memory(gl.float32, [HEADS], LINE)
    full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    taken = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    for buffer in gl.static_range(2):
        # All 128 gathering threads arrive.
        mbarrier.init(full.index(buffer), count=128)
        mbarrier.init(empty.index(buffer), count=1)
    mbarrier.init(ready, count=1)
    mbarrier.init(taken, count=1)
    count = gl.load(counts + row)
    rows_of = indices + row * num_selected
    factor = scale * LOG2_E
    gl.warp_specialize(
        [
            (_add_values, (q_row, live_heads, count, out, k_main, p_shared, factors, full, empty, ready, taken)),
            (
                _score_tiles,
                (
                    q,
                    q_row,
                    live_heads,
                    count,
                    factor,
                    lse,
                    q_main,
                    q_rest,
                    k_main,
                    k_rest,
                    p_shared,
                    factors,
                    full,
                    ready,
                    taken,
                ),
            ),
            (_gather_tiles, (kv, rows_of, count, k_main, k_rest, full, empty)),
        ],
        [4, 4],
        [112, 32],
    )


def attend_forward(
    q_NHK: Tensor, kv_SK: Tensor, indices_NC: Tensor, count_N: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """(out_NHV, lse_NH) of bfloat16 rows with K = 576 and V = 512, as `triton_attention_forward.attend_forward`."""
    num_rows, num_heads, _ = q_NHK.shape
    out_NHV = torch.empty(num_rows, num_heads, MAIN.value, dtype=q_NHK.dtype, device=q_NHK.device)
    lse_NH = torch.empty(num_rows, num_heads, dtype=torch.float32, device=q_NHK.device)
    if lse_NH.numel():
        _attend_forward[(triton.cdiv(num_heads, HEADS.value), num_rows)](
            q_NHK,
            kv_SK,
            indices_NC,
            count_N,
            out_NHV,
            lse_NH,
            scale,
            num_heads,
            indices_NC.shape[1],
            num_warps=8,
        )
    return out_NHV, lse_NH
