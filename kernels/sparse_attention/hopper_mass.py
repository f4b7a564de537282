"""Head-summed probability of each selected key for Hopper at the published widths (Gluon): the scores of `hopper_scores`, summed over heads.

Axes: N query rows, S key rows, H heads, C selected keys.
"""

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import async_copy, mbarrier

from samepath.kernels.gpu.gluon import block_barrier
from samepath.kernels.sparse_attention.hopper_forward import LOG2_E
from samepath.kernels.sparse_attention.hopper_ring import (
    HEADS,
    KEYS,
    PARTS,
    copy_queries,
    gather_parts,
    head_blocks,
    make_ring,
    slot_of,
)


@gluon.jit
def _sum_heads(row_values, mass_row, shared, barriers, BLOCK: gl.constexpr):
    """Role of a warpgroup: P of its 64 heads, summed."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 64, 16])
    LINE: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    q, lse, q_row, live_heads, count, scale = row_values
    queries, ring = shared
    full, empty = barriers
    first_head = BLOCK * HEADS
    copy_queries(q, q_row, live_heads, queries, BLOCK)
    async_copy.commit_group()
    async_copy.wait_group(0)
    hopper.fence_async_shared()
    block_barrier()
    for slot in gl.static_range(PARTS):
        mbarrier.arrive(empty.index(slot), count=1)
    zero = gl.zeros([HEADS, KEYS], gl.float32, SCORES)
    row_head = first_head + gl.arange(0, HEADS, gl.SliceLayout(1, SCORES))
    # A padded head must give P = 0 without NaN.
    lse_H = gl.load(lse + q_row + row_head, mask=row_head < live_heads, other=float("inf")) * LOG2_E
    key = slot_of(gl.arange(0, KEYS, LINE))
    for tile in range((count + KEYS - 1) // KEYS):
        scores = zero
        # 0 always, but the compiler cannot know: it would keep the addresses of all operands in registers.
        nothing = tile >> 26
        for part in gl.static_range(PARTS):
            mbarrier.wait(full.index(part), tile & 1)
            keys = ring.index(part + nothing).permute((1, 0))
            query_part = queries.index(BLOCK * PARTS + part + nothing)
            scores = hopper.warpgroup_mma(query_part, keys, scores, use_acc=part > 0, is_async=True)
            if part > 0:
                # All but this part's product are done.
                scores = hopper.warpgroup_mma_wait(1, deps=[scores])
                mbarrier.arrive(empty.index(part - 1), count=1)
        scores = hopper.warpgroup_mma_wait(0, deps=[scores])
        mbarrier.arrive(empty.index(PARTS - 1), count=1)
        probs = gl.exp2(scores * (scale * LOG2_E) - gl.expand_dims(lse_H, 1))
        place = tile * KEYS + key
        gl.store(mass_row + place, gl.convert_layout(gl.sum(probs, 0), LINE), mask=place < count)


@gluon.jit
def _attention_mass(q, kv, indices, counts, lse, scale, mass, num_heads, num_selected, BLOCKS: gl.constexpr):
    row = gl.program_id(1).to(gl.int64)
    num_rows = gl.num_programs(1)
    first_head = gl.program_id(0) * (BLOCKS * HEADS)
    queries, ring, full, empty = make_ring(BLOCKS)
    count = gl.load(counts + row)
    rows_of = indices + row * num_selected
    row_values = (q, lse, row * num_heads + first_head, num_heads - first_head, count, scale)
    # Each warpgroup has a line of its own.
    line = (gl.program_id(0) * BLOCKS * num_rows + gl.program_id(1)).to(gl.int64) * num_selected
    mass_row = mass + line
    shared = (queries, ring)
    barriers = (full, empty)
    if BLOCKS == 2:
        other_row = mass_row + num_rows.to(gl.int64) * num_selected
        gl.warp_specialize(
            [
                (_sum_heads, (row_values, mass_row, shared, barriers, 0)),
                (_sum_heads, (row_values, other_row, shared, barriers, 1)),
                (gather_parts, (kv, rows_of, count, ring, barriers)),
            ],
            [4, 4],
            [216, 72],
        )
    else:
        gl.warp_specialize(
            [
                (_sum_heads, (row_values, mass_row, shared, barriers, 0)),
                (gather_parts, (kv, rows_of, count, ring, barriers)),
            ],
            [4],
            [40],
        )


def attention_mass(
    q_NHK: Tensor, kv_SK: Tensor, indices_NC: Tensor, count_N: Tensor, lse_NH: Tensor, scale: float
) -> Tensor:
    """float32 [N, C], as `triton_mass.attention_mass`."""
    num_rows, num_heads, _ = q_NHK.shape
    programs, blocks = head_blocks(num_heads)
    num_selected = indices_NC.shape[1]
    mass = torch.zeros(programs * blocks, num_rows, num_selected, dtype=torch.float32, device=q_NHK.device)
    _attention_mass[(programs, num_rows)](
        q_NHK, kv_SK, indices_NC, count_N, lse_NH, scale, mass, num_heads, num_selected, BLOCKS=blocks, num_warps=4
    )
    return mass.sum(0)
