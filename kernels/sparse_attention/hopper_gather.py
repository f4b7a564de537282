"""The gathering warpgroup of sparse attention's forward for Hopper (Gluon): it copies keys and queries to shared memory, item after item.

An item is a query row's block of heads (and part of its keys, if they are cut for decoding). Keys lie in slots of 128 channels that are filled and
given back one by one, so the copies of the next tile, and of the next item, run under the products of this one: gathered rows come by the
second-level cache, whose latency is what a program has to hide.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy, mbarrier

from samepath.kernels.gpu.gluon import copy_to_shared

MAIN = gl.constexpr(512)
"""Channels that keys and values share."""
REST = gl.constexpr(64)
"""Rotary channels, of the keys alone."""
HEADS = gl.constexpr(64)
"""Heads an item."""
KEYS = gl.constexpr(64)
"""Keys a tile."""
SLICE = gl.constexpr(128)
"""Channels a slot."""
SLICES = gl.constexpr(4)
"""Slots a tile, beside the rotary channels."""
SLOTS = gl.constexpr(8)
"""Slots in all: two tiles."""


@gluon.jit
def copy_rows(base, rows, live, target, first, STRIDE: gl.constexpr, WIDTH: gl.constexpr, COPY: gl.constexpr):
    """Start copying channels first … first + WIDTH − 1 of rows to shared memory; rows that are not live become 0."""
    channel = first + gl.arange(0, WIDTH, gl.SliceLayout(0, COPY))
    pointers = base + gl.expand_dims(rows.to(gl.int64) * STRIDE, 1) + gl.expand_dims(channel, 0)
    copy_to_shared(target, pointers, mask=gl.expand_dims(live, 1))


@gluon.jit
def find_item(item, work, PART: gl.constexpr):
    """(output row, first head, row, first selected key, selected keys) of an item; beyond the last item no keys."""
    counts, items, blocks, parts, _, _ = work
    piece = item // blocks
    first_head = (item - piece * blocks) * HEADS
    row = piece
    begin = 0
    if PART > 0:
        row = piece // parts
        begin = (piece - row * parts) * PART
    count = gl.load(counts + row, mask=item < items, other=0)
    if PART > 0:
        count = gl.maximum(gl.minimum(count - begin, PART), 0)
    return piece, first_head, row, begin, count


@gluon.jit
def _fetch_queries(q, row, first_head, num_heads):
    """Ask the second-level cache for an item's queries: all programs need their next ones at once, which memory alone would serve too late."""
    LINES: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    WIDTH: gl.constexpr = MAIN + REST
    # Lines of 128 bytes, hence 64 channels.
    last = gl.minimum(num_heads - first_head, HEADS) * (WIDTH // 64) - 1
    start = q + (row.to(gl.int64) * num_heads + first_head) * WIDTH
    for step in gl.static_range((HEADS * WIDTH // 64 + 127) // 128):
        line = gl.minimum(step * 128 + gl.arange(0, 128, LINES), last)
        gl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
            "=r,l",
            [start + line * 64],
            dtype=gl.int32,
            is_pure=False,
            pack=1,
        )


@gluon.jit
def gather_tiles(q, kv, indices, work, queries, keys, PART: gl.constexpr):
    """Role of one warpgroup: copy tile after tile into the slots as they become empty, and each item's queries behind its first tile."""
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    _, items, _, _, num_heads, num_selected = work
    q_main, q_rest, q_full, q_empty = queries
    k_main, k_rest, full, empty, rest_full, rest_empty = keys
    place = gl.arange(0, KEYS, gl.SliceLayout(1, COPY))
    n = 0
    filled = 0
    _, first_head, row, begin, count = find_item(gl.program_id(0), work, PART)
    start = row.to(gl.int64) * num_selected + begin
    rows = gl.load(indices + start + place, mask=place < count, other=0)
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        _, next_head, next_row, next_begin, next_count = find_item(item + gl.num_programs(0), work, PART)
        next_start = next_row.to(gl.int64) * num_selected + next_begin
        tiles = (count + KEYS - 1) // KEYS
        for tile in range(tiles):
            done = tile * KEYS + KEYS
            live = place < count - tile * KEYS
            # Indices are read one tile ahead, over the end of an item too.
            ahead = gl.where(tile == tiles - 1, next_start, start + done)
            most = gl.where(tile == tiles - 1, next_count, count - done)
            next_rows = gl.load(indices + ahead + place, mask=place < most, other=0)
            mbarrier.wait(rest_empty.index(n % 2), ((n // 2) & 1) ^ 1)
            copy_rows(kv, rows, live, k_rest.index(n % 2), MAIN, MAIN + REST, REST, COPY)
            # Each thread arrives when its own copies have landed.
            async_copy.mbarrier_arrive(rest_full.index(n % 2), increment_count=False)
            for part in gl.static_range(SLICES):
                slot = n * SLICES + part
                mbarrier.wait(empty.index(slot % SLOTS), ((slot // SLOTS) & 1) ^ 1)
                copy_rows(kv, rows, live, k_main.index(slot % SLOTS), part * SLICE, MAIN + REST, SLICE, COPY)
                async_copy.mbarrier_arrive(full.index(slot % SLOTS), increment_count=False)
            if tile == 0:
                mbarrier.wait(q_empty, (filled & 1) ^ 1)
                q_rows = row.to(gl.int64) * num_heads + first_head + place
                live_heads = place < num_heads - first_head
                for part in gl.static_range(SLICES):
                    copy_rows(q, q_rows, live_heads, q_main.index(part), part * SLICE, MAIN + REST, SLICE, COPY)
                copy_rows(q, q_rows, live_heads, q_rest, MAIN, MAIN + REST, REST, COPY)
                async_copy.mbarrier_arrive(q_full, increment_count=False)
                filled += 1
            if (tile == tiles // 2) & (item + gl.num_programs(0) < items):
                _fetch_queries(q, next_row, next_head, num_heads)
            rows = next_rows
            n += 1
        if tiles == 0:
            rows = gl.load(indices + next_start + place, mask=place < next_count, other=0)
        first_head = next_head
        row = next_row
        start = next_start
        count = next_count
