"""Head-summed attention probability of every key for Hopper at the published widths (Gluon): two warpgroups score, two copy queries to them.

A tile of keys stays in shared memory for all heads, so only queries stream, 64 channels at a time through a ring of buffers. The two scoring warpgroups
hold 64 query rows each and run free of each other: while one takes exponentials, the other has the tensor cores.

Axes: N query rows, S key rows, H heads; B, T of a window as in `window.py`.
"""

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import async_copy, mbarrier

from samepath.kernels.gpu.gluon import block_barrier, copy_to_shared

WIDTH = gl.constexpr(576)
"""Channels of a key."""
CHUNK = gl.constexpr(64)
"""Channels of one copy."""
CHUNKS = gl.constexpr(9)
"""Copies of a key's width."""
ROWS = gl.constexpr(64)
"""Query rows of one scoring warpgroup; a program has two."""
KEYS = gl.constexpr(128)
"""Keys a program."""
SLOTS = gl.constexpr(4)
"""Buffers of each scoring warpgroup's ring."""
LOG2_E = gl.constexpr(1.4426950408889634)


@gluon.jit
def _copy_queries(q, rows, ends, first_query, num_queries, num_heads, num_steps, ring, full, empty):
    """Role of one warpgroup: copy 64 channels after 64 channels, head after head, of one scoring warpgroup's rows."""
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    query = first_query + gl.arange(0, ROWS, gl.SliceLayout(1, COPY))
    row = gl.load(rows + query, mask=query < num_queries, other=0)
    live = gl.load(ends + query, mask=query < num_queries, other=0) > 0
    channel = gl.arange(0, CHUNK, gl.SliceLayout(0, COPY))
    pointers = q + gl.expand_dims(row * (num_heads * WIDTH), 1) + gl.expand_dims(channel, 0)
    for step in range(num_steps * CHUNKS):
        slot = step % SLOTS
        mbarrier.wait(empty.index(slot), ((step // SLOTS) & 1) ^ 1)
        # A row holds its heads one after the other, so every step is the next 64 channels.
        copy_to_shared(ring.index(slot), pointers + step * CHUNK, mask=gl.expand_dims(live, 1))
        async_copy.mbarrier_arrive(full.index(slot), increment_count=False)


@gluon.jit
def _add_heads(
    rows,
    ends,
    lse,
    mass,
    first_query,
    first_key,
    num_queries,
    num_keys,
    num_heads,
    num_steps,
    factor,
    ring,
    keys,
    full,
    empty,
):
    """Role of one warpgroup: add the probabilities of head after head, then store them."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 128, 16])
    query = first_query + gl.arange(0, ROWS, gl.SliceLayout(1, SCORES))
    row = gl.load(rows + query, mask=query < num_queries, other=0)
    end = gl.load(ends + query, mask=query < num_queries, other=0)
    scores = gl.zeros([ROWS, KEYS], gl.float32, SCORES)
    total = gl.zeros([ROWS, KEYS], gl.float32, SCORES)
    for head in range(num_steps):
        lse_M = gl.load(lse + row * num_heads + head, mask=end > 0, other=0.0) * LOG2_E
        for chunk in gl.static_range(CHUNKS):
            step = head * CHUNKS + chunk
            mbarrier.wait(full.index(step % SLOTS), (step // SLOTS) & 1)
            hopper.fence_async_shared()
            part = keys.index(chunk).permute((1, 0))
            scores = hopper.warpgroup_mma(ring.index(step % SLOTS), part, scores, use_acc=chunk > 0, is_async=True)
            if chunk > 0:
                scores = hopper.warpgroup_mma_wait(1, deps=[scores])
                block_barrier()
                mbarrier.arrive(empty.index((step - 1) % SLOTS), count=1)
        scores = hopper.warpgroup_mma_wait(0, deps=[scores])
        block_barrier()
        mbarrier.arrive(empty.index((head * CHUNKS + CHUNKS - 1) % SLOTS), count=1)
        total += gl.exp2(scores * factor - gl.expand_dims(lse_M, 1))
    column = first_key + gl.arange(0, KEYS, gl.SliceLayout(0, SCORES))
    place = gl.expand_dims(query.to(gl.int64) * num_keys, 1) + gl.expand_dims(column, 0)
    gl.store(mass + place, total, mask=gl.expand_dims(column, 0) < gl.expand_dims(end, 1))


@gluon.jit
def _window_mass(q, kv, rows_BT, ends_BT, keys_BS, lse, mass, scale, num_queries, num_keys, num_heads):
    SHARED: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    TILE: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    sequence = gl.program_id(2).to(gl.int64)
    first_key = gl.program_id(0) * KEYS
    first_query = gl.program_id(1) * (2 * ROWS)
    rows = rows_BT + sequence * num_queries
    ends = ends_BT + sequence * num_queries
    mass += sequence * num_queries * num_keys
    query = first_query + gl.arange(0, 2 * ROWS, TILE)
    high = gl.max(gl.load(ends + query, mask=query < num_queries, other=0), 0)
    # No row of this program sees a key of the tile: no head is added.
    num_steps = gl.where(first_key < high, num_heads, 0)
    keys = gl.allocate_shared_memory(gl.bfloat16, [CHUNKS, KEYS, CHUNK], SHARED)
    ring_a = gl.allocate_shared_memory(gl.bfloat16, [SLOTS, ROWS, CHUNK], SHARED)
    ring_b = gl.allocate_shared_memory(gl.bfloat16, [SLOTS, ROWS, CHUNK], SHARED)
    full_a = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    full_b = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    empty_a = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    empty_b = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(SLOTS):
        # All 128 copying threads arrive.
        mbarrier.init(full_a.index(slot), count=128)
        mbarrier.init(full_b.index(slot), count=128)
        mbarrier.init(empty_a.index(slot), count=1)
        mbarrier.init(empty_b.index(slot), count=1)
    slots = first_key + gl.arange(0, KEYS, gl.SliceLayout(1, COPY))
    channel = gl.arange(0, CHUNK, gl.SliceLayout(0, COPY))
    live = slots < high
    key_rows = gl.load(keys_BS + sequence * num_keys + slots, mask=live, other=0)
    pointers = kv + gl.expand_dims(key_rows * WIDTH, 1) + gl.expand_dims(channel, 0)
    for chunk in gl.static_range(CHUNKS):
        copy_to_shared(keys.index(chunk), pointers + chunk * CHUNK, mask=gl.expand_dims(live, 1))
    async_copy.commit_group()
    async_copy.wait_group(0)
    hopper.fence_async_shared()
    block_barrier()
    factor = scale * LOG2_E
    second = first_query + ROWS
    gl.warp_specialize(
        [
            (
                _add_heads,
                (rows, ends, lse, mass, first_query, first_key, num_queries, num_keys, num_heads, num_steps, factor, ring_a, keys, full_a, empty_a),
            ),
            (
                _add_heads,
                (rows, ends, lse, mass, second, first_key, num_queries, num_keys, num_heads, num_steps, factor, ring_b, keys, full_b, empty_b),
            ),
            (_copy_queries, (q, rows, ends, first_query, num_queries, num_heads, num_steps, ring_a, full_a, empty_a)),
            (_copy_queries, (q, rows, ends, second, num_queries, num_heads, num_steps, ring_b, full_b, empty_b)),
        ],
        [4, 4, 4],
        [200, 40, 40],
    )  # fmt: skip


def window_mass(
    q_NHK: Tensor, kv_SK: Tensor, lse_NH: Tensor, rows_BT: Tensor, ends_BT: Tensor, keys_BS: Tensor, scale: float
) -> Tensor:
    """float32 [B, T, S] of bfloat16 rows with K = 576, as `triton_mass.window_mass`."""
    (num_sequences, num_queries), num_keys = rows_BT.shape, keys_BS.shape[1]
    mass_BTS = torch.empty(num_sequences, num_queries, num_keys, dtype=torch.float32, device=q_NHK.device)
    grid = (triton.cdiv(num_keys, KEYS.value), triton.cdiv(num_queries, 2 * ROWS.value), num_sequences)
    if mass_BTS.numel():
        _window_mass[grid](
            q_NHK,
            kv_SK,
            rows_BT,
            ends_BT,
            keys_BS,
            lse_NH,
            mass_BTS,
            scale,
            num_queries,
            num_keys,
            q_NHK.shape[1],
            num_warps=4,
        )
    return mass_BTS
