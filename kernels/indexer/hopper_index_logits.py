"""Index logits for Hopper at the published widths (64 heads × 128), by warps with roles (Gluon): one warp loads, three warpgroups score.

As many programs as multiprocessors walk over blocks of query rows and keys. A warpgroup holds 128 keys in registers as the left operand of its
products, so shared memory feeds the queries alone, and the next block's keys are on their way meanwhile. Roles hand over through barriers in
shared memory: `k_full` and `k_empty` of the keys, `full` and `empty` of the ring of query rows. The sums are those of `triton_index_logits`,
bit for bit.

Axes: B sequences of a window, T query rows of each, S keys of each, I indexer heads, K index head width.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import async_copy, mbarrier
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from samepath.kernels.gpu.gluon import block_barrier, copy_to_shared, tile_to_shared

HEADS = gl.constexpr(64)
WIDTH = gl.constexpr(128)
KEYS = gl.constexpr(128)
"""Keys a warpgroup."""
GROUPS = gl.constexpr(3)
"""Warpgroups that score."""


@gluon.jit
def _block(item, starts, ends, num_rows, num_keys, QUERIES: gl.constexpr, BOUNDED: gl.constexpr):
    """(first query row of the window, number of rows, sequence, first key) of a block; no rows if none of them sees a key of it."""
    key_tiles = (num_keys + KEYS * GROUPS - 1) // (KEYS * GROUPS)
    row_blocks = (num_rows + QUERIES - 1) // QUERIES
    first_key = item % key_tiles * (KEYS * GROUPS)
    first_row = item // key_tiles % row_blocks * QUERIES
    sequence = item // (key_tiles * row_blocks)
    rows = gl.minimum(QUERIES, num_rows - first_row)
    query_row = sequence * num_rows + first_row
    if BOUNDED:
        WARPS: gl.constexpr = gl.num_warps()
        row = gl.arange(0, QUERIES, gl.BlockedLayout([1], [32], [WARPS], [0]))
        low = gl.min(gl.load(starts + query_row + row, mask=row < rows, other=2147483647), 0)
        high = gl.max(gl.load(ends + query_row + row, mask=row < rows, other=0), 0)
        rows = gl.where((first_key >= high) | (first_key + KEYS * GROUPS <= low), 0, rows)
    return query_row, rows, sequence, first_key


@gluon.jit
def _load_blocks(
    q,
    k,
    weights,
    work,
    shared,
    QUERIES: gl.constexpr,
    STAGES: gl.constexpr,
    TILES: gl.constexpr,
    BOUNDED: gl.constexpr,
):
    """Role of one warp: bring each block's keys, and one query row's heads and weights after the other."""
    starts, ends, num_rows, num_keys, num_items = work
    k_shared, q_ring, w_ring, k_full, k_empty, full, empty = shared
    LINE: gl.constexpr = gl.BlockedLayout([2], [32], [1], [0])
    BYTES: gl.constexpr = q.dtype.primitive_bitwidth // 8
    head = gl.arange(0, HEADS, LINE)
    step = 0
    blocks = 0
    for item in range(gl.program_id(0), num_items, gl.num_programs(0)):
        query_row, rows, sequence, first_key = _block(item, starts, ends, num_rows, num_keys, QUERIES, BOUNDED)
        if rows > 0:
            tile = blocks % TILES
            mbarrier.wait(k_empty.index(tile), ((blocks // TILES) & 1) ^ 1)
            mbarrier.expect(k_full.index(tile), GROUPS * KEYS * WIDTH * BYTES)
            for group in gl.static_range(GROUPS):
                # Behind a sequence's last key come the next one's: their logits are not stored.
                key_row = sequence * num_keys + first_key + group * KEYS
                tile_to_shared(k, [key_row, 0], k_full.index(tile), k_shared.index(tile * GROUPS + group))
            blocks += 1
            for row in range(query_row, query_row + rows):
                stage = step % STAGES
                mbarrier.wait(empty.index(stage), ((step // STAGES) & 1) ^ 1)
                mbarrier.expect(full.index(stage), HEADS * WIDTH * BYTES)
                tile_to_shared(q, [row * HEADS, 0], full.index(stage), q_ring.index(stage))
                copy_to_shared(w_ring.index(stage), weights + gl.cast(row, gl.int64) * HEADS + head)
                async_copy.mbarrier_arrive(full.index(stage), increment_count=False)
                step += 1


@gluon.jit
def _score_blocks(
    group,
    key_scales,
    logits,
    work,
    shared,
    QUERIES: gl.constexpr,
    STAGES: gl.constexpr,
    TILES: gl.constexpr,
    BOUNDED: gl.constexpr,
    SCALED: gl.constexpr,
):
    """Role of each other warpgroup: the logits of its keys."""
    starts, ends, num_rows, num_keys, num_items = work
    k_shared, q_ring, w_ring, k_full, k_empty, full, empty = shared
    BITS: gl.constexpr = q_ring.dtype.primitive_bitwidth
    MMA: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 64, 256 // BITS]
    )
    DOT: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=MMA, k_width=32 // BITS)
    ROWS: gl.constexpr = gl.SliceLayout(1, MMA)
    zero = gl.zeros([KEYS, HEADS], gl.float32, MMA)
    step = 0
    blocks = 0
    for item in range(gl.program_id(0), num_items, gl.num_programs(0)):
        query_row, rows, sequence, first_key = _block(item, starts, ends, num_rows, num_keys, QUERIES, BOUNDED)
        if rows > 0:
            key = first_key + group * KEYS + gl.arange(0, KEYS, ROWS)
            live = key < num_keys
            scale = gl.full([KEYS], 1.0, gl.float32, ROWS)
            if SCALED:
                scale = gl.load(key_scales + gl.cast(sequence, gl.int64) * num_keys + key, mask=live, other=0.0)
            out = logits + gl.cast(query_row, gl.int64) * num_keys + key
            tile = blocks % TILES
            mbarrier.wait(k_full.index(tile), (blocks // TILES) & 1)
            k_dot = k_shared.index(tile * GROUPS + group).load(DOT)
            block_barrier()
            mbarrier.arrive(k_empty.index(tile), count=1)
            blocks += 1
            for row in range(rows):
                stage = step % STAGES
                mbarrier.wait(full.index(stage), (step // STAGES) & 1)
                scores = hopper.warpgroup_mma(
                    k_dot, q_ring.index(stage).permute((1, 0)), zero, use_acc=False, is_async=True
                )
                scores = hopper.warpgroup_mma_wait(0, deps=[scores])
                weight = w_ring.index(stage).load(gl.SliceLayout(0, MMA))
                block_barrier()
                mbarrier.arrive(empty.index(stage), count=1)
                sums = gl.sum(gl.maximum(scores, 0.0) * gl.expand_dims(weight, 0), 1) * scale
                gl.store(out + gl.cast(row, gl.int64) * num_keys, sums, mask=live)
                step += 1


@gluon.jit(do_not_specialize=["num_rows", "num_keys", "num_items"])
def _index_logits_hopper(
    q,
    k,
    weights,
    key_scales,
    starts,
    ends,
    logits,
    num_rows,
    num_keys,
    num_items,
    QUERIES: gl.constexpr,
    STAGES: gl.constexpr,
    TILES: gl.constexpr,
    BOUNDED: gl.constexpr,
    SCALED: gl.constexpr,
):
    LINE: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    ks = gl.allocate_shared_memory(q.dtype, [TILES * GROUPS, KEYS, WIDTH], k.layout)
    qs = gl.allocate_shared_memory(q.dtype, [STAGES, HEADS, WIDTH], q.layout)
    ws = gl.allocate_shared_memory(gl.float32, [STAGES, HEADS], LINE)
    k_full = gl.allocate_shared_memory(gl.int64, [TILES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [TILES, 1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for tile in gl.static_range(TILES):
        mbarrier.init(k_full.index(tile), count=1)
        mbarrier.init(k_empty.index(tile), count=GROUPS)
    for stage in gl.static_range(STAGES):
        # The 32 threads that copy weights, and the queries' bytes.
        mbarrier.init(full.index(stage), count=33)
        mbarrier.init(empty.index(stage), count=GROUPS)
    work = (starts, ends, num_rows, num_keys, num_items)
    shared = (ks, qs, ws, k_full, k_empty, full, empty)
    gl.warp_specialize(
        [
            (_score_blocks, (0, key_scales, logits, work, shared, QUERIES, STAGES, TILES, BOUNDED, SCALED)),
            (_score_blocks, (1, key_scales, logits, work, shared, QUERIES, STAGES, TILES, BOUNDED, SCALED)),
            (_score_blocks, (2, key_scales, logits, work, shared, QUERIES, STAGES, TILES, BOUNDED, SCALED)),
            (_load_blocks, (q, k, weights, work, shared, QUERIES, STAGES, TILES, BOUNDED)),
        ],
        [4, 4, 1],
        [160, 160, 24],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Sizes of blocks and buffers; they change the speed, never a bit."""

    queries: int = 128
    """Query rows of a block."""
    stages: int
    """Query rows in the ring."""
    tiles: int = 2
    """Tiles of keys in shared memory."""


def index_logits(
    q_BTIK: Tensor,
    k_BSK: Tensor,
    weights_BTI: Tensor,
    bounds_BT: tuple[Tensor, Tensor] | None,
    key_scales_BS: Tensor | None,
    plan: Plan | None = None,
) -> Tensor:
    """float32 logits [B, T, S] of contiguous bfloat16 or float8_e4m3fn queries and keys, as `triton_index_logits.index_logits`."""
    num_sequences, num_rows, _, width = q_BTIK.shape
    num_keys = k_BSK.shape[1]
    # Queries of two bytes leave room for a shorter ring beside two tiles of keys.
    plan = plan or Plan(stages=2 if q_BTIK.dtype == torch.bfloat16 else 4)
    logits_BTS = torch.empty(num_sequences, num_rows, num_keys, dtype=torch.float32, device=q_BTIK.device)
    if not logits_BTS.numel():
        return logits_BTS
    starts, ends = bounds_BT or (logits_BTS, logits_BTS)
    blocks = triton.cdiv(num_keys, KEYS.value * GROUPS.value) * triton.cdiv(num_rows, plan.queries) * num_sequences
    programs = min(blocks, torch.cuda.get_device_properties(q_BTIK.device).multi_processor_count)
    dtype = gl.bfloat16 if q_BTIK.dtype == torch.bfloat16 else gl.float8e4nv
    layout = gl.NVMMASharedLayout.get_default_for([HEADS.value, WIDTH.value], dtype)
    _index_logits_hopper[(programs,)](
        TensorDescriptor.from_tensor(q_BTIK.view(-1, width), [HEADS.value, WIDTH.value], layout),
        TensorDescriptor.from_tensor(k_BSK.view(-1, width), [KEYS.value, WIDTH.value], layout),
        weights_BTI,
        logits_BTS if key_scales_BS is None else key_scales_BS,
        starts,
        ends,
        logits_BTS,
        num_rows,
        num_keys,
        blocks,
        QUERIES=plan.queries,
        STAGES=plan.stages,
        TILES=plan.tiles,
        BOUNDED=bounds_BT is not None,
        SCALED=key_scales_BS is not None,
        num_warps=4,
    )
    return logits_BTS
