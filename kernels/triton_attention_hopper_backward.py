"""Key gradients of sparse attention for Hopper at the published widths (Gluon); the rest is `triton_attention_backward`'s.

Queries and output gradients of 64 heads stay in shared memory, and one tile of keys. Scores and dP need the keys, the key gradients do not:
so the next tile is gathered while dKV = dSᵀ·Q + Pᵀ·dO is computed and written.

Axes: N query rows, S key rows, H heads, K key width, V value width, C selected keys, P pairs of a row chunk.
"""

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import async_copy

from samepath.kernels.triton_attention_hopper import HEADS, KEYS, LOG2_E, MAIN, REST, copy_key_rows, copy_rows


@gluon.jit
def _rename(values):
    """Order the channels of each 32 so that what a thread holds, 2 of every 8, becomes 8 neighbours: 16-byte stores, nothing moves.

    Channel 8·j + 2·l + b of a group stands at 8·l + 2·j + b; `triton_attention_backward` reads it back so.
    """
    ROWS: gl.constexpr = values.shape[0]
    WIDTH: gl.constexpr = values.shape[1]
    grouped = values.reshape([ROWS, WIDTH // 32, 4, 4, 2])
    return grouped.permute([0, 1, 3, 2, 4]).reshape([ROWS, WIDTH])


@gluon.jit
def _write_pairs(target, rows, pairs, live, values, first, LAYOUT: gl.constexpr, ATOMIC: gl.constexpr):
    """Add a tile of key gradients to the keys' rows, or store it as the pairs' rows."""
    channel = first + gl.arange(0, values.shape[1], gl.SliceLayout(0, LAYOUT))
    mask = gl.expand_dims(gl.convert_layout(live, gl.SliceLayout(1, LAYOUT)), 1)
    if ATOMIC:
        place = gl.convert_layout(rows, gl.SliceLayout(1, LAYOUT)).to(gl.int64) * (MAIN + REST)
        gl.atomic_add(
            target + gl.expand_dims(place, 1) + gl.expand_dims(channel, 0),
            gl.convert_layout(values, LAYOUT),
            mask=mask,
            sem="relaxed",
        )
    else:
        place = gl.convert_layout(pairs, gl.SliceLayout(1, LAYOUT)) * (MAIN + REST)
        rounded = gl.convert_layout(_rename(values.to(target.dtype.element_ty)), LAYOUT)
        gl.store(target + gl.expand_dims(place, 1) + gl.expand_dims(channel, 0), rounded, mask=mask)


@gluon.jit
def _backward_keys(
    q,
    kv,
    grad_out,
    indices,
    counts,
    lse,
    delta,
    grad_scores,
    mass,
    target,
    scale,
    first_row,
    num_rows,
    num_heads,
    num_selected,
    ATOMIC: gl.constexpr,
):
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 2], instr_shape=[16, 32, 16])
    WIDE: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 2], instr_shape=[16, 256, 16])
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [8, 1], [1, 0])
    # What the products' layouts become when channels are renamed as `_rename` does.
    EIGHTS: gl.constexpr = gl.DistributedLinearLayout(
        [[0, 1], [0, 2], [0, 4], [8, 0], [0, 32], [0, 64], [0, 128]],
        [[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]],
        [[16, 0], [32, 0], [0, 256]],
        [],
        [64, 512],
    )
    EIGHTS_REST: gl.constexpr = gl.DistributedLinearLayout(
        [[0, 1], [0, 2], [0, 4], [8, 0]],
        [[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]],
        [[16, 0], [32, 0], [0, 32]],
        [],
        [64, 64],
    )
    MAIN_STORE: gl.constexpr = WIDE if ATOMIC else EIGHTS
    REST_STORE: gl.constexpr = SCORES if ATOMIC else EIGHTS_REST
    SLOTS: gl.constexpr = gl.SliceLayout(1, COPY)
    SHARED: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    TYPE: gl.constexpr = gl.bfloat16

    row = gl.program_id(1).to(gl.int64) + first_row
    first_head = gl.program_id(0) * HEADS
    q_row = row * num_heads + first_head
    q_main = gl.allocate_shared_memory(TYPE, [HEADS, MAIN], SHARED)
    q_rest = gl.allocate_shared_memory(TYPE, [HEADS, REST], SHARED)
    o_main = gl.allocate_shared_memory(TYPE, [HEADS, MAIN], SHARED)
    k_main = gl.allocate_shared_memory(TYPE, [KEYS, MAIN], SHARED)
    k_rest = gl.allocate_shared_memory(TYPE, [KEYS, REST], SHARED)
    p_shared = gl.allocate_shared_memory(TYPE, [KEYS, HEADS], SHARED)
    ds_shared = gl.allocate_shared_memory(TYPE, [KEYS, HEADS], SHARED)

    heads = gl.arange(0, HEADS, SLOTS)
    live_heads = first_head + heads < num_heads
    copy_rows(grad_out, q_row + heads, live_heads, o_main, 0, MAIN, MAIN, COPY)
    copy_key_rows(q, q_row + heads, live_heads, q_main, q_rest, COPY)
    count = gl.load(counts + row)
    rows_of = indices + row * num_selected
    slots = gl.arange(0, KEYS, SLOTS)
    key_rows = gl.load(rows_of + slots, mask=slots < count, other=0)
    copy_key_rows(kv, key_rows, slots < count, k_main, k_rest, COPY)

    head = first_head + gl.arange(0, HEADS, gl.SliceLayout(0, SCORES))
    lse_H = gl.load(lse + row * num_heads + head, mask=head < num_heads, other=float("inf")) * LOG2_E
    delta_H = gl.load(delta + row * num_heads + head, mask=head < num_heads, other=0.0)
    block = gl.program_id(0).to(gl.int64) * num_rows + gl.program_id(1)
    zero = gl.zeros([KEYS, HEADS], gl.float32, SCORES)
    zero_wide = gl.zeros([KEYS, MAIN], gl.float32, WIDE)
    key = gl.arange(0, KEYS, gl.SliceLayout(1, SCORES))
    for first in range(0, count, KEYS):
        live = first + key < count
        following = first + KEYS + slots
        next_rows = gl.load(rows_of + following, mask=following < count, other=0)
        async_copy.wait_group(0)
        hopper.fence_async_shared()
        gl.thread_barrier()
        scores = hopper.warpgroup_mma(k_main, q_main.permute((1, 0)), zero, use_acc=False, is_async=True)
        scores = hopper.warpgroup_mma(k_rest, q_rest.permute((1, 0)), scores, is_async=True)
        grads = hopper.warpgroup_mma(k_main, o_main.permute((1, 0)), zero, use_acc=False, is_async=True)
        scores, grads = hopper.warpgroup_mma_wait(0, deps=[scores, grads])
        gl.thread_barrier()
        copy_key_rows(kv, next_rows, following < count, k_main, k_rest, COPY)
        probs = gl.exp2(scores * (scale * LOG2_E) - gl.expand_dims(lse_H, 0))
        probs = gl.where(gl.expand_dims(live, 1), probs, 0.0)
        grads = probs * (grads - gl.expand_dims(delta_H, 0)) * scale
        rounded = grads.to(TYPE)
        p_shared.store(probs.to(TYPE))
        ds_shared.store(rounded)
        hopper.fence_async_shared()
        gl.thread_barrier()
        wide = hopper.warpgroup_mma(ds_shared, q_main, zero_wide, use_acc=False, is_async=True)
        wide = hopper.warpgroup_mma(p_shared, o_main, wide, is_async=True)
        narrow = hopper.warpgroup_mma(ds_shared, q_rest, zero, use_acc=False, is_async=True)
        # While the tensor cores work: what the other kernels need.
        gl.store(mass + block * num_selected + first + key, gl.sum(probs, 1), mask=live)
        place = (row * num_selected + first + gl.expand_dims(key, 1)) * num_heads + gl.expand_dims(head, 0)
        keep = gl.expand_dims(live, 1) & gl.expand_dims(head < num_heads, 0)
        gl.store(grad_scores + place, rounded, mask=keep)
        wide, narrow = hopper.warpgroup_mma_wait(0, deps=[wide, narrow])
        pairs = block * num_selected + first + slots
        now = first + slots < count
        _write_pairs(target, key_rows, pairs, now, wide, 0, MAIN_STORE, ATOMIC)
        _write_pairs(target, key_rows, pairs, now, narrow, MAIN, REST_STORE, ATOMIC)
        key_rows = next_rows
    async_copy.wait_group(0)


def backward_keys(arguments: tuple[Tensor | float | int, ...], grid: tuple[int, int], atomic: bool) -> None:
    """Run the kernel on the arguments of `triton_attention_backward`'s, in its order."""
    _backward_keys[grid](*arguments, ATOMIC=atomic, num_warps=8)
