"""Attention over all keys for Hopper, forward, at key and value widths of 64 or 128 (Gluon): warps with roles.

One warpgroup gathers tiles of keys and values through the window's table; one or two attend with 64 (query, head) rows each, free of each other: while
one takes exponentials, the other has the tensor cores. Segments, masks and their meaning for a row's bits are those of `triton_forward.py`.

Axes: N query rows, H query heads, G key heads, S rows of the store, W row width; B, T of a window as in `window.py`.
"""

from typing import Any

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import async_copy, mbarrier

from samepath.kernels.gpu.gluon import block_barrier, copy_to_shared

ROWS = gl.constexpr(64)
"""(Query, head) rows of one attending warpgroup."""
KEYS = gl.constexpr(128)
"""Keys a tile."""
LOG2_E = gl.constexpr(1.4426950408889634)
LOWEST = gl.constexpr(-1e30)
"""Maximum of no scores, finite."""


@gluon.jit
def _tile_rows(rows, ends, first, num_queries, shared, group, num_heads, LAYOUT: gl.constexpr):
    """(place of each row in [N·H], number of keys it sees) of 64 of one sequence's (query, head) rows."""
    place = first + gl.arange(0, ROWS, LAYOUT)
    query = place // shared
    inside = query < num_queries
    end = gl.load(ends + query, mask=inside, other=0).to(gl.int32)
    row = gl.load(rows + query, mask=inside, other=0)
    return row * num_heads + group * shared + place % shared, end


@gluon.jit
def gather_keys(
    gather, tiles, KEYS: gl.constexpr, WIDTH: gl.constexpr, VALUE_START: gl.constexpr, STAGES: gl.constexpr
):
    """Role of one warpgroup: copy tile after tile of keys and of values into their buffers as these become empty."""
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [256 // WIDTH, WIDTH // 8], [4, 1], [1, 0])
    keys, table, begin, num_tiles, high, row_width = gather
    k_tiles, v_tiles, barriers = tiles
    full_k, empty_k, full_v, empty_v = barriers
    slots = gl.arange(0, KEYS, gl.SliceLayout(1, COPY))
    base = keys + gl.expand_dims(gl.arange(0, WIDTH, gl.SliceLayout(0, COPY)), 0)
    # Narrow numbers, so that an address takes one multiplication.
    rows = gl.load(table + begin + slots, mask=begin + slots < high, other=0).to(gl.int32)
    for tile in range(num_tiles):
        first = begin + tile * KEYS
        buffer = tile % STAGES
        phase = ((tile // STAGES) & 1) ^ 1
        live = gl.expand_dims(first + slots < high, 1)
        pointers = base + gl.expand_dims(rows.to(gl.int64) * row_width, 1)
        # Read ahead, so that the next copies wait for no index.
        following = first + KEYS + slots
        rows = gl.load(table + following, mask=following < high, other=0).to(gl.int32)
        mbarrier.wait(empty_k.index(buffer), phase)
        copy_to_shared(k_tiles.index(buffer), pointers, mask=live)
        async_copy.mbarrier_arrive(full_k.index(buffer), increment_count=False)
        mbarrier.wait(empty_v.index(buffer), phase)
        copy_to_shared(v_tiles.index(buffer), pointers + VALUE_START, mask=live)
        async_copy.mbarrier_arrive(full_v.index(buffer), increment_count=False)


@gluon.jit
def _softmax_step(scores, first, end, low, factor, top, total):
    """(probabilities, maximum, sum, factor of what was added before) after one more tile of scores."""
    LAYOUT: gl.constexpr = scores.type.layout
    if first + KEYS > low:
        column = gl.expand_dims(first + gl.arange(0, KEYS, gl.SliceLayout(0, LAYOUT)), 0)
        scores = gl.where(column < gl.expand_dims(end, 1), scores, float("-inf"))
    new_top = gl.maximum(top, gl.max(scores, 1) * factor)
    rescale = gl.exp2(top - new_top)
    probs = gl.exp2(scores * factor - gl.expand_dims(new_top, 1))
    return probs, new_top, total * rescale + gl.sum(probs, 1), rescale


@gluon.jit
def _rescaled(output, rescale):
    LAYOUT: gl.constexpr = output.type.layout
    return output * gl.expand_dims(gl.convert_layout(rescale, gl.SliceLayout(1, LAYOUT)), 1)


@gluon.jit
def _merge_segment(sum_tile, whole_top, whole_total, output, top, total):
    """Merge a finished segment into the row's sums; returns their maximum and sum."""
    LAYOUT: gl.constexpr = output.type.layout
    best = gl.maximum(whole_top, top)
    old, new = gl.exp2(whole_top - best), gl.exp2(top - best)
    old_output = gl.expand_dims(gl.convert_layout(old, gl.SliceLayout(1, LAYOUT)), 1)
    new_output = output * gl.expand_dims(gl.convert_layout(new, gl.SliceLayout(1, LAYOUT)), 1)
    sums = sum_tile.load(LAYOUT)
    sum_tile.store(gl.fma(sums, gl.convert_layout(old_output + gl.zeros_like(sums), LAYOUT), new_output))
    return best, gl.fma(whole_total, old, total * new)


@gluon.jit
def _store_segment(parts, first_row, end, output, top, total, WIDTH: gl.constexpr):
    """Store one segment's values, maximum and sum of a decoded token's heads."""
    OUTPUT: gl.constexpr = output.type.layout
    LINE: gl.constexpr = top.type.layout
    partial, tops, totals, part_row = parts
    local = first_row + gl.arange(0, ROWS, LINE)
    gl.store(tops + part_row + local, top, mask=end > 0)
    gl.store(totals + part_row + local, total, mask=end > 0)
    local = first_row + gl.arange(0, ROWS, gl.SliceLayout(1, OUTPUT))
    live = gl.convert_layout(end, gl.SliceLayout(1, OUTPUT)) > 0
    channel = gl.expand_dims(gl.arange(0, WIDTH, gl.SliceLayout(0, OUTPUT)), 0)
    pointers = partial + gl.expand_dims((part_row + local) * WIDTH, 1) + channel
    gl.store(pointers, output, mask=gl.expand_dims(live, 1))


@gluon.jit
def _store_rows(target, first_row, output, top, total, q_tile, WIDTH: gl.constexpr):
    """Divide by the sums and store output and LSE of the rows that exist."""
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [256 // WIDTH, WIDTH // 8], [4, 1], [1, 0])
    LINE: gl.constexpr = top.type.layout
    BY_ROW: gl.constexpr = gl.SliceLayout(1, output.type.layout)
    out, lse, rows, ends, sizes = target
    num_queries, shared, group, num_heads = sizes
    divisor = gl.where(total > 0, total, 1.0)
    places, end = _tile_rows(rows, ends, first_row, num_queries, shared, group, num_heads, LINE)
    gl.store(lse + places, (top + gl.log2(divisor)) / LOG2_E, mask=end > 0)
    share = gl.convert_layout(1.0 / divisor, BY_ROW)
    # The queries are used up, so their tile takes the rounded output on its way to whole rows.
    q_tile.store((output * gl.expand_dims(share, 1)).to(gl.bfloat16))
    block_barrier()
    places, end = _tile_rows(rows, ends, first_row, num_queries, shared, group, num_heads, gl.SliceLayout(1, COPY))
    channel = gl.expand_dims(gl.arange(0, WIDTH, gl.SliceLayout(0, COPY)), 0)
    gl.store(out + gl.expand_dims(places * WIDTH, 1) + channel, q_tile.load(COPY), mask=gl.expand_dims(end > 0, 1))


@gluon.jit
def _copy_queries(q, rows, ends, first_row, sizes, q_tile, WIDTH: gl.constexpr):
    """Copy a warpgroup's queries to their tile and wait for them."""
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [256 // WIDTH, WIDTH // 8], [4, 1], [1, 0])
    num_queries, shared, group, num_heads = sizes
    places, end = _tile_rows(rows, ends, first_row, num_queries, shared, group, num_heads, gl.SliceLayout(1, COPY))
    channel = gl.expand_dims(gl.arange(0, WIDTH, gl.SliceLayout(0, COPY)), 0)
    copy_to_shared(q_tile, q + gl.expand_dims(places * WIDTH, 1) + channel, mask=gl.expand_dims(end > 0, 1))
    async_copy.commit_group()
    async_copy.wait_group(0)
    hopper.fence_async_shared()
    block_barrier()


@gluon.jit
def _attend_rows(
    common, first_row, walk, q_tile, sum_tile, tiles,
    WIDTH: gl.constexpr, STAGES: gl.constexpr, SEGMENT_TILES: gl.constexpr, SPLIT: gl.constexpr, ONE: gl.constexpr,
):  # fmt: skip
    """Role of one warpgroup: online softmax of 64 rows over all tiles, segment by segment."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, KEYS, 16])
    OUTPUT: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, WIDTH, 16])
    PROBS: gl.constexpr = gl.DotOperandLayout(0, OUTPUT, 2)
    q, rows, ends, out, lse, parts = common
    sizes, begin, num_tiles, factor = walk
    k_tiles, v_tiles, barriers = tiles
    full_k, empty_k, full_v, empty_v = barriers
    num_queries, shared, group, num_heads = sizes
    _copy_queries(q, rows, ends, first_row, sizes, q_tile, WIDTH)
    _, end = _tile_rows(rows, ends, first_row, num_queries, shared, group, num_heads, gl.SliceLayout(1, SCORES))
    # Up to here every row sees every key.
    low = gl.min(gl.where(end > 0, end, 0x7FFFFFFF), 0)
    zero = gl.zeros([ROWS, KEYS], gl.float32, SCORES)
    output = gl.zeros([ROWS, WIDTH], gl.float32, OUTPUT)
    top = gl.full([ROWS], LOWEST, gl.float32, gl.SliceLayout(1, SCORES))
    total = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, SCORES))
    whole_top, whole_total = top, total
    if not ONE:
        sum_tile.store(output)
    for tile in range(num_tiles):
        buffer = tile % STAGES
        phase = (tile // STAGES) & 1
        mbarrier.wait(full_k.index(buffer), phase)
        hopper.fence_async_shared()
        k_tile = k_tiles.index(buffer).permute((1, 0))
        scores = hopper.warpgroup_mma(q_tile, k_tile, zero, use_acc=False, is_async=True)
        scores = hopper.warpgroup_mma_wait(0, deps=[scores])
        block_barrier()
        mbarrier.arrive(empty_k.index(buffer), count=1)
        probs, top, total, rescale = _softmax_step(scores, begin + tile * KEYS, end, low, factor, top, total)
        output = _rescaled(output, rescale)
        rounded = gl.convert_layout(probs.to(gl.bfloat16), PROBS)
        mbarrier.wait(full_v.index(buffer), phase)
        hopper.fence_async_shared()
        output = hopper.warpgroup_mma(rounded, v_tiles.index(buffer), output, is_async=True)
        output = hopper.warpgroup_mma_wait(0, deps=[output])
        block_barrier()
        mbarrier.arrive(empty_v.index(buffer), count=1)
        if not ONE:  # noqa: SIM102 (decided when compiled)
            if (tile % SEGMENT_TILES == SEGMENT_TILES - 1) | (tile == num_tiles - 1):
                whole_top, whole_total = _merge_segment(sum_tile, whole_top, whole_total, output, top, total)
                output = gl.zeros([ROWS, WIDTH], gl.float32, OUTPUT)
                top = gl.full([ROWS], LOWEST, gl.float32, gl.SliceLayout(1, SCORES))
                total = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, SCORES))
    if not ONE:
        output, top, total = sum_tile.load(OUTPUT), whole_top, whole_total
    if SPLIT:
        _store_segment(parts, first_row, end, output, top, total, WIDTH)
    else:
        target = (out, lse, rows, ends, sizes)
        _store_rows(target, first_row, output, top, total, q_tile, WIDTH)


@gluon.jit
def _attend_forward(
    q, store, rows_BT, ends_BT, keys_BS, out, lse, partial, tops, totals,
    scale, num_queries, num_keys, num_heads, shared, group_stride, row_width: gl.constexpr, VALUE_START: gl.constexpr,
    WIDTH: gl.constexpr, STAGES: gl.constexpr, GROUPS: gl.constexpr, SEGMENT: gl.constexpr, SPLIT: gl.constexpr, ONE: gl.constexpr,
):  # fmt: skip
    """GROUPS attending warpgroups over all segments, or with SPLIT over one segment, whose parts go to `partial`."""
    SHARED: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    SUMS: gl.constexpr = gl.SwizzledSharedLayout(8, 1, 8, [1, 0])
    TILE: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    SEGMENT_TILES: gl.constexpr = SEGMENT // KEYS
    group = gl.program_id(1)
    tile = gl.num_programs(0) - 1 - gl.program_id(0)
    sequence = gl.program_id(2).to(gl.int64)
    begin = 0
    part_row = sequence
    if SPLIT:
        segments = (num_keys + SEGMENT - 1) // SEGMENT
        segment = gl.program_id(2) % segments
        sequence = (gl.program_id(2) // segments).to(gl.int64)
        begin = segment * SEGMENT
        part_row = (segment * (gl.num_programs(2) // segments) + sequence) * num_heads + group * shared
    rows = rows_BT + sequence * num_queries
    ends = ends_BT + sequence * num_queries
    first_row = tile * (GROUPS * ROWS)
    query = (first_row + gl.arange(0, GROUPS * ROWS, TILE)) // shared
    high = gl.max(gl.load(ends + query, mask=query < num_queries, other=0), 0).to(gl.int32)
    last = high
    if SPLIT:
        last = gl.minimum(begin + SEGMENT, high)
    num_tiles = gl.maximum(last - begin + KEYS - 1, 0) // KEYS
    keys = store + group.to(gl.int64) * group_stride
    table = keys_BS + sequence * num_keys
    q_tiles = gl.allocate_shared_memory(gl.bfloat16, [GROUPS, ROWS, WIDTH], SHARED)
    k_tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES, KEYS, WIDTH], SHARED)
    v_tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES, KEYS, WIDTH], SHARED)
    if ONE:
        sums = gl.allocate_shared_memory(gl.float32, [GROUPS, 8, 8], SUMS)
    else:
        sums = gl.allocate_shared_memory(gl.float32, [GROUPS, ROWS, WIDTH], SUMS)
    full_k = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty_k = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    full_v = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty_v = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for buffer in gl.static_range(STAGES):
        # All 128 gathering threads arrive.
        mbarrier.init(full_k.index(buffer), count=128)
        mbarrier.init(full_v.index(buffer), count=128)
        mbarrier.init(empty_k.index(buffer), count=GROUPS)
        mbarrier.init(empty_v.index(buffer), count=GROUPS)
    factor = scale * LOG2_E
    sizes = (num_queries, shared, group, num_heads)
    parts = (partial, tops, totals, part_row)
    barriers = (full_k, empty_k, full_v, empty_v)
    common = (q, rows, ends, out, lse, parts)
    tiles = (k_tiles, v_tiles, barriers)
    gather = (keys, table, begin, num_tiles, high, row_width)
    walk = (sizes, begin, num_tiles, factor)
    if GROUPS == 1:
        gl.warp_specialize(
            [
                (_attend_rows, (common, first_row, walk, q_tiles.index(0), sums.index(0), tiles, WIDTH, STAGES, SEGMENT_TILES, SPLIT, ONE)),
                (gather_keys, (gather, tiles, KEYS, WIDTH, VALUE_START, STAGES)),
            ],
            [4],
            [96],
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (_attend_rows, (common, first_row, walk, q_tiles.index(0), sums.index(0), tiles, WIDTH, STAGES, SEGMENT_TILES, SPLIT, ONE)),
                (_attend_rows, (common, first_row + ROWS, walk, q_tiles.index(1), sums.index(1), tiles, WIDTH, STAGES, SEGMENT_TILES, SPLIT, ONE)),
                (gather_keys, (gather, tiles, KEYS, WIDTH, VALUE_START, STAGES)),
            ],
            [4, 4],
            [216, 80],
        )  # fmt: skip


def launch_forward(
    arguments: tuple[Any, ...], grid: tuple[int, ...], width: int, groups: int, walk: dict[str, Any]
) -> None:
    """Run the kernel; `arguments` and `walk` are what `triton_forward` gives its own."""
    _attend_forward[grid](*arguments, WIDTH=width, STAGES=2 if width == 128 else 4, GROUPS=groups, **walk, num_warps=4)
