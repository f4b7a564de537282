"""Sparse attention for Hopper at the published widths (Gluon): shared memory, copies and tensor-core layouts are explicit.

Two warpgroups share one block of 64 heads: they split the keys of a tile for the scores and the value channels for the output, so no product is
done twice. Two key tiles live in shared memory: while one is multiplied, the other is gathered by asynchronous copies.

Axes: N query rows, S key rows, H heads, K key width, V value width, C selected keys.
"""

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import async_copy

MAIN = gl.constexpr(512)
"""Channels that keys and values share."""
REST = gl.constexpr(64)
"""Rotary channels, of the keys alone."""
HEADS = gl.constexpr(64)
"""Heads a program."""
KEYS = gl.constexpr(64)
"""Keys a tile."""
LOG2_E = gl.constexpr(1.4426950408889634)


@gluon.jit
def copy_rows(base, rows, live, target, first, STRIDE: gl.constexpr, WIDTH: gl.constexpr, COPY: gl.constexpr):
    """Start copying channels first … first + WIDTH − 1 of rows to shared memory; rows that are not live become 0."""
    channel = first + gl.arange(0, WIDTH, gl.SliceLayout(0, COPY))
    pointers = base + gl.expand_dims(rows.to(gl.int64) * STRIDE, 1) + gl.expand_dims(channel, 0)
    async_copy.async_copy_global_to_shared(target, pointers, mask=gl.expand_dims(live, 1))


@gluon.jit
def copy_key_rows(base, rows, live, main, rest, COPY: gl.constexpr):
    """Start copying rows of width MAIN + REST into their two tiles, as one group of copies."""
    copy_rows(base, rows, live, main, 0, MAIN + REST, MAIN, COPY)
    copy_rows(base, rows, live, rest, MAIN, MAIN + REST, REST, COPY)
    async_copy.commit_group()


@gluon.jit
def _attend_forward(q, kv, indices, counts, out, lse, scale, num_heads, num_selected):
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 2], instr_shape=[16, 32, 16])
    OUTPUT: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 2], instr_shape=[16, 256, 16])
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [8, 1], [1, 0])
    STORE: gl.constexpr = gl.BlockedLayout([1, 8], [1, 32], [8, 1], [1, 0])
    SLOTS: gl.constexpr = gl.SliceLayout(1, COPY)
    SHARED: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    ROWS: gl.constexpr = gl.SliceLayout(1, SCORES)
    TYPE: gl.constexpr = gl.bfloat16

    row = gl.program_id(1).to(gl.int64)
    first_head = gl.program_id(0) * HEADS
    q_row = row * num_heads + first_head
    q_main = gl.allocate_shared_memory(TYPE, [HEADS, MAIN], SHARED)
    q_rest = gl.allocate_shared_memory(TYPE, [HEADS, REST], SHARED)
    k_main = gl.allocate_shared_memory(TYPE, [2, KEYS, MAIN], SHARED)
    k_rest = gl.allocate_shared_memory(TYPE, [2, KEYS, REST], SHARED)
    p_shared = gl.allocate_shared_memory(TYPE, [HEADS, KEYS], SHARED)

    heads = gl.arange(0, HEADS, SLOTS)
    copy_key_rows(q, q_row + heads, first_head + heads < num_heads, q_main, q_rest, COPY)
    count = gl.load(counts + row)
    rows_of = indices + row * num_selected
    slots = gl.arange(0, KEYS, SLOTS)
    for ahead in gl.static_range(2):
        live = ahead * KEYS + slots < count
        key_rows = gl.load(rows_of + ahead * KEYS + slots, mask=live, other=0)
        copy_key_rows(kv, key_rows, live, k_main.index(ahead), k_rest.index(ahead), COPY)

    output = gl.zeros([HEADS, MAIN], gl.float32, OUTPUT)
    zero = gl.zeros([HEADS, KEYS], gl.float32, SCORES)
    sums = gl.zeros([HEADS, KEYS], gl.float32, SCORES)
    top = gl.full([HEADS], -1e30, gl.float32, ROWS)
    factor = scale * LOG2_E
    column = gl.arange(0, KEYS, gl.SliceLayout(0, SCORES))
    async_copy.wait_group(1)
    hopper.fence_async_shared()
    gl.thread_barrier()
    scores = hopper.warpgroup_mma(q_main, k_main.index(0).permute((1, 0)), zero, use_acc=False, is_async=True)
    scores = hopper.warpgroup_mma(q_rest, k_rest.index(0).permute((1, 0)), scores, is_async=True)
    buffer = 0
    for first in range(0, count, KEYS):
        # Read ahead, so that the gather of the tile after next waits for no index.
        following = first + 2 * KEYS + slots
        live = following < count
        key_rows = gl.load(rows_of + following, mask=live, other=0)
        raw = hopper.warpgroup_mma_wait(0, deps=[scores])
        raw = gl.where(gl.expand_dims(first + column < count, 0), raw * factor, float("-inf"))
        new_top = gl.maximum(top, gl.max(raw, 1))
        rescale = gl.exp2(top - new_top)
        top = new_top
        probs = gl.exp2(raw - gl.expand_dims(top, 1))
        p_shared.store(probs.to(TYPE))
        sums = sums * gl.expand_dims(rescale, 1) + probs
        output = output * gl.expand_dims(gl.convert_layout(rescale, gl.SliceLayout(1, OUTPUT)), 1)
        hopper.fence_async_shared()
        gl.thread_barrier()
        running = hopper.warpgroup_mma(p_shared, k_main.index(buffer), output, is_async=True)
        # The next tile's scores follow at once, so that the tensor cores rest only during the softmax.
        async_copy.wait_group(0)
        hopper.fence_async_shared()
        gl.thread_barrier()
        other = k_main.index(1 - buffer)
        scores = hopper.warpgroup_mma(q_main, other.permute((1, 0)), zero, use_acc=False, is_async=True)
        scores = hopper.warpgroup_mma(q_rest, k_rest.index(1 - buffer).permute((1, 0)), scores, is_async=True)
        output = hopper.warpgroup_mma_wait(2, deps=[running])
        gl.thread_barrier()
        copy_key_rows(kv, key_rows, live, k_main.index(buffer), k_rest.index(buffer), COPY)
        buffer = 1 - buffer
    async_copy.wait_group(0)
    # The scores of the tile behind the last are not used, but must have been read before shared memory goes.
    hopper.warpgroup_mma_wait(0, deps=[scores])

    total = gl.sum(sums, 1)
    divisor = gl.where(total > 0, total, 1.0)
    head = first_head + gl.arange(0, HEADS, ROWS)
    value = gl.where(total > 0, (top + gl.log2(divisor)) / LOG2_E, float("-inf"))
    gl.store(lse + row * num_heads + head, value, mask=head < num_heads)
    share = gl.convert_layout(1.0 / divisor, gl.SliceLayout(1, OUTPUT))
    final = gl.convert_layout((output * gl.expand_dims(share, 1)).to(TYPE), STORE)
    head = first_head + gl.arange(0, HEADS, gl.SliceLayout(1, STORE))
    channel = gl.arange(0, MAIN, gl.SliceLayout(0, STORE))
    place = (row * num_heads + gl.expand_dims(head, 1)) * MAIN + gl.expand_dims(channel, 0)
    gl.store(out + place, final, mask=gl.expand_dims(head < num_heads, 1))


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
