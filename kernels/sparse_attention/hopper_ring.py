"""The ring of keys through which P, dS and the mass of sparse attention are computed for Hopper (Gluon), and the warpgroup that fills it.

The ring holds one tile of keys in slots of 64 channels. Each slot is given back as soon as its products are done, so that the gather of the next tile
runs beside the products of this one and shared memory has room for the queries of two warpgroups.
"""

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy, mbarrier

from samepath.kernels.sparse_attention.hopper_gather import MAIN, REST, copy_rows

HEADS = gl.constexpr(64)
"""Heads a warpgroup."""
KEYS = gl.constexpr(64)
"""Keys a tile."""
PART = gl.constexpr(64)
"""Channels of a slot of the ring."""
PARTS = gl.constexpr(9)
"""Slots: the ring holds one tile of MAIN + REST channels."""


@gluon.jit
def slot_of(column):
    """Which key of a tile stands in a column of the products: column 8·j + 2·l + b of 32 is key 8·l + 2·j + b."""
    return column // 32 * 32 + column % 8 // 2 * 8 + column % 32 // 8 * 2 + column % 2


@gluon.jit
def make_ring(BLOCKS: gl.constexpr):
    """(queries of BLOCKS warpgroups, ring, its barriers `full` and `empty`), before the roles part."""
    SHARED: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    queries = gl.allocate_shared_memory(gl.bfloat16, [BLOCKS * PARTS, HEADS, PART], SHARED)
    ring = gl.allocate_shared_memory(gl.bfloat16, [PARTS, KEYS, PART], SHARED)
    full = gl.allocate_shared_memory(gl.int64, [PARTS, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [PARTS, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(PARTS):
        # All 128 gathering threads arrive.
        mbarrier.init(full.index(slot), count=128)
        mbarrier.init(empty.index(slot), count=BLOCKS)
    return queries, ring, full, empty


@gluon.jit
def copy_queries(q, q_row, live_heads, queries, BLOCK: gl.constexpr):
    """Start copying the queries of a warpgroup's heads; returns the heads."""
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    heads = BLOCK * HEADS + gl.arange(0, HEADS, gl.SliceLayout(1, COPY))
    for part in gl.static_range(PARTS):
        target = queries.index(BLOCK * PARTS + part)
        copy_rows(q, q_row + heads, heads < live_heads, target, part * PART, MAIN + REST, PART, COPY)
    return heads


@gluon.jit
def gather_parts(kv, rows_of, count, ring, barriers):
    """Role of one warpgroup: copy the parts of tile after tile into the ring."""
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    full, empty = barriers
    slots = slot_of(gl.arange(0, KEYS, gl.SliceLayout(1, COPY)))
    rows = gl.load(rows_of + slots, mask=slots < count, other=0)
    for tile in range((count + KEYS - 1) // KEYS):
        live = slots < count
        slots += KEYS
        # Read ahead, so that the gather of the next tile waits for no index.
        rows_ahead = gl.load(rows_of + slots, mask=slots < count, other=0)
        for part in gl.static_range(PARTS):
            # The first arrivals on `empty` say that the ring has served its other purpose.
            mbarrier.wait(empty.index(part), tile & 1)
            copy_rows(kv, rows, live, ring.index(part), part * PART, MAIN + REST, PART, COPY)
            # Each thread arrives when its own copies have landed.
            async_copy.mbarrier_arrive(full.index(part), increment_count=False)
        rows = rows_ahead


def head_blocks(num_heads: int) -> tuple[int, int]:
    """(programs per row, warpgroups of 64 heads in each)."""
    return (1, 1) if num_heads <= HEADS.value else (triton.cdiv(num_heads, 2 * HEADS.value), 2)
