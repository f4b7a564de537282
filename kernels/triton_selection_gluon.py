"""Exact top-C selection on NVIDIA GPUs (Gluon); same contract and result as `triton_selection`, with layouts written out.

Fast way, three kernels: a sample of each row gives a bar that a few more than C keys should reach; single warps stream segments of the rows and
collect, in order, the keys that do; a program a row finds the exact threshold among them and emits the C best.

Sure way, for rows where too few or too many keys reach the bar (clustered values): one program streams the row; a full buffer is cut down to its
exact best C, after which a key enters only if it beats the C-th best. The buffer holds C and one tile, so nothing is ever lost.

Axes: N query rows, S key positions, C selected keys.
"""

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from samepath.kernels.triton_gluon import block_barrier

LOWEST = gl.constexpr(-2147483648)
"""Key of a position out of bounds; every valid key is above."""
MINUS_INFINITY = gl.constexpr(-2139095041)
"""Key of −∞, and of NaN."""


MOST_KEYS = 32768
"""Largest buffer: two counts share one 32-bit sum."""


SEGMENTS = 4
"""Parts of a row that are streamed by different warps."""

STREAM_KEYS = 512
"""Keys a warp reads at once."""

ROWS_AT_ONCE = 2048
"""Rows whose collected keys are held at once."""

SURE_KEYS = 1024
"""Keys read at once in the sure way."""


@gluon.jit
def _ordered_keys(values, position, start, end):
    """int32 keys in the order of the values: NaN is −inf, −0 is +0, and positions out of bounds come below everything."""
    values = gl.where(values != values, float("-inf"), values) + 0.0
    bits = values.to(gl.int32, bitcast=True)
    keys = gl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return gl.where((position >= start) & (position < end), keys, LOWEST)


@gluon.jit
def _ranked_key(keys, rank):
    """Largest T with at least `rank` keys ≥ T (the lowest key if there are not so many).

    Two pivots a round cut the range to a third; both counts travel through one sum, 16 bits each, so at most 32768 keys.
    """
    low = gl.min(keys, 0).to(gl.int64)
    high = gl.max(keys, 0).to(gl.int64)
    while low < high:
        third = (high - low + 2) // 3
        first = low + third
        second = gl.minimum(first + third, high)
        reached = (keys >= first.to(gl.int32)).to(gl.int32) + ((keys >= second.to(gl.int32)).to(gl.int32) << 16)
        counts = gl.sum(reached, 0)
        first_enough = (counts & 0xFFFF) >= rank
        second_enough = (counts >> 16) >= rank
        low = gl.where(second_enough, second, gl.where(first_enough, first, low))
        high = gl.where(second_enough, high, gl.where(first_enough, second - 1, first - 1))
    return low.to(gl.int32)


@gluon.jit
def _add(one, other):
    return one + other


@gluon.jit
def _row_bars(
    logits, starts, ends, bars, num_keys, num_selected, SAMPLE: gl.constexpr, RUN: gl.constexpr, CAPACITY: gl.constexpr
):
    """A key that a few more than C keys of the row are expected to reach, from runs spread evenly over it."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    row = gl.program_id(0)
    start = gl.load(starts + row).to(gl.int32)
    end = gl.load(ends + row).to(gl.int32)
    length = end - start
    if length <= CAPACITY:
        gl.store(bars + row, float("-inf"))
    else:
        offsets = gl.arange(0, SAMPLE, LAYOUT)
        position = start + (offsets // RUN) * (length // (SAMPLE // RUN)) + offsets % RUN
        values = gl.load(logits + row.to(gl.int64) * num_keys + position, mask=position < end, other=0.0)
        keys = _ordered_keys(values, position, start, end)
        share = num_selected * (SAMPLE * 1.0 / length)
        # Four standard deviations above the expected number of winners in the sample.
        rank = (share + 4.0 * gl.sqrt(share) + 4.0).to(gl.int32)
        # The upper half of the key is a bfloat16: fine enough for a guess, and half the rounds.
        key = gl.maximum(_ranked_key(keys >> 16, rank) << 16, MINUS_INFINITY)
        bits = gl.where(key < 0, key ^ 0x7FFFFFFF, key)
        gl.store(bars + row, bits.to(gl.float32, bitcast=True))


@gluon.jit
def _collect(
    logits,
    starts,
    ends,
    bars,
    tallies,
    buffer_values,
    buffer_positions,
    num_keys,
    segment_keys,
    TILE: gl.constexpr,
    ROOM: gl.constexpr,
):
    """One warp streams one segment of a row and keeps, in order, what is not below the row's bar, and counts also what does not fit."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([4], [32], [1], [0])
    segment = gl.program_id(0)
    row = gl.program_id(1)
    start = gl.load(starts + row).to(gl.int32)
    end = gl.load(ends + row).to(gl.int32)
    bar = gl.load(bars + row)
    logits_row = logits + row.to(gl.int64) * num_keys
    place_of = (row.to(gl.int64) * gl.num_programs(0) + segment) * ROOM
    offsets = gl.arange(0, TILE, LAYOUT)
    low = gl.maximum(segment * segment_keys, start // TILE * TILE)
    high = gl.minimum((segment + 1) * segment_keys, end)
    held = 0
    # Two tiles are on their way while one is looked at.
    values = gl.load(logits_row + low + offsets, mask=low + offsets < num_keys, other=0.0)
    later = gl.load(logits_row + low + TILE + offsets, mask=low + TILE + offsets < num_keys, other=0.0)
    for first in range(low, high, TILE):
        position = first + offsets
        now = values
        values = later
        later = gl.load(logits_row + position + 2 * TILE, mask=position + 2 * TILE < num_keys, other=0.0)
        # NaN is below nothing and comes along; what it counts for is settled later.
        entering = (now < bar).to(gl.int32) ^ 1
        if (first < start) | (first + TILE > end):
            entering = entering * ((position >= start) & (position < end)).to(gl.int32)
        place = held + gl.associative_scan(entering, 0, _add) - 1
        fits = (entering > 0) & (place < ROOM)
        gl.store(buffer_values + place_of + place, now, mask=fits)
        gl.store(buffer_positions + place_of + place, position, mask=fits)
        held += gl.sum(entering, 0)
    gl.store(tallies + row * gl.num_programs(0) + segment, held)


@gluon.jit
def _finish(
    starts,
    ends,
    indices,
    counts,
    unsure,
    tallies,
    buffer_values,
    buffer_positions,
    num_selected,
    SEGMENTS: gl.constexpr,
    ROOM: gl.constexpr,
    CAPACITY: gl.constexpr,
    WIDTH: gl.constexpr,
):
    """Emit the C best of a row's collected keys, or mark the row as unsure."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([CAPACITY // (32 * gl.num_warps())], [32], [gl.num_warps()], [0])
    row = gl.program_id(0)
    start = gl.load(starts + row).to(gl.int32)
    end = gl.load(ends + row).to(gl.int32)
    wanted = gl.maximum(gl.minimum(end - start, num_selected), 0)
    gl.store(counts + row, wanted)
    chosen = indices + row.to(gl.int64) * num_selected
    if end - start <= num_selected:
        places = gl.arange(0, WIDTH, gl.BlockedLayout([1], [32], [gl.num_warps()], [0]))
        gl.store(chosen + places, gl.where(places < wanted, start + places, -1), mask=places < num_selected)
        gl.store(unsure + row, 0)
    else:
        slots = gl.arange(0, CAPACITY, LAYOUT)
        # Where in the buffers each slot of the joined segments stands.
        place = slots
        total = 0
        fits = True
        for segment in gl.static_range(SEGMENTS):
            tally = gl.load(tallies + row * SEGMENTS + segment)
            inside = (slots >= total) & (slots < total + tally)
            place = gl.where(inside, segment * ROOM + slots - total, place)
            total += tally
            fits = fits & (tally <= ROOM)
        sure = fits & (total >= wanted) & (total <= CAPACITY)
        gl.store(unsure + row, gl.where(sure, 0, 1))
        if sure:
            base = row.to(gl.int64) * SEGMENTS * ROOM
            values = gl.load(buffer_values + base + place, mask=slots < total, other=0.0)
            positions = gl.load(buffer_positions + base + place, mask=slots < total, other=0)
            keys = _ordered_keys(values, slots, 0, total)
            threshold = _ranked_key(keys, wanted)
            equal = (keys == threshold).to(gl.int32)
            room = wanted - gl.sum((keys > threshold).to(gl.int32), 0)
            kept = (keys > threshold) | ((equal > 0) & (gl.associative_scan(equal, 0, _add) <= room))
            gl.store(chosen + gl.associative_scan(kept.to(gl.int32), 0, _add) - 1, positions, mask=kept)


@gluon.jit
def _threshold(keys_of, held, wanted, CAPACITY: gl.constexpr, LAYOUT: gl.constexpr):
    """(smallest key among the `wanted` best of the buffer, how many of its equals are among them)."""
    slots = gl.arange(0, CAPACITY, LAYOUT)
    keys = gl.load(keys_of + slots, mask=slots < held, other=LOWEST)
    threshold = _ranked_key(keys, wanted)
    return threshold, wanted - gl.sum((keys > threshold).to(gl.int32), 0)


@gluon.jit
def _keep(
    keys_of,
    positions_of,
    held,
    threshold,
    room,
    positions_to,
    IN_PLACE: gl.constexpr,
    TILE: gl.constexpr,
    LAYOUT: gl.constexpr,
):
    """Copy the best of the buffer, in order, ties to the earlier; the destination may be the buffer itself."""
    num_kept = 0
    num_equal = 0
    for first in range(0, held, TILE):
        slots = first + gl.arange(0, TILE, LAYOUT)
        keys = gl.load(keys_of + slots, mask=slots < held, other=LOWEST)
        positions = gl.load(positions_of + slots, mask=slots < held, other=0)
        equal = ((keys == threshold) & (slots < held)).to(gl.int32)
        kept = (keys > threshold) | ((equal > 0) & (num_equal + gl.associative_scan(equal, 0, _add) <= room))
        taken = kept.to(gl.int32)
        place = num_kept + gl.associative_scan(taken, 0, _add) - 1
        # A place is never beyond the slot it came from, but another thread may still have to read that slot.
        block_barrier()
        if IN_PLACE:
            gl.store(keys_of + place, keys, mask=kept)
        gl.store(positions_to + place, positions, mask=kept)
        num_kept += gl.sum(taken, 0)
        num_equal += gl.sum(equal, 0)


@gluon.jit
def _select_sure(
    logits,
    starts,
    ends,
    indices,
    unsure,
    buffer_keys,
    buffer_positions,
    num_rows,
    num_keys,
    num_selected,
    TILE: gl.constexpr,
    CAPACITY: gl.constexpr,
):
    WARPS: gl.constexpr = gl.num_warps()
    LAYOUT: gl.constexpr = gl.BlockedLayout([4], [32], [WARPS], [0])
    keys_of = buffer_keys + gl.program_id(0).to(gl.int64) * CAPACITY
    positions_of = buffer_positions + gl.program_id(0).to(gl.int64) * CAPACITY
    offsets = gl.arange(0, TILE, LAYOUT)
    for row in range(gl.program_id(0), num_rows, gl.num_programs(0)):
        if gl.load(unsure + row) > 0:
            start = gl.load(starts + row).to(gl.int32)
            end = gl.load(ends + row).to(gl.int32)
            logits_row = logits + gl.cast(row, gl.int64) * num_keys
            bar = LOWEST + 1
            held = 0
            for first in range(start // TILE * TILE, end, TILE):
                position = first + offsets
                values = gl.load(logits_row + position, mask=position < num_keys, other=0.0)
                keys = _ordered_keys(values, position, start, end)
                if held > CAPACITY - TILE:
                    block_barrier()
                    threshold, room = _threshold(keys_of, held, num_selected, CAPACITY, LAYOUT)
                    _keep(keys_of, positions_of, held, threshold, room, positions_of, True, TILE, LAYOUT)
                    block_barrier()
                    # Whoever comes later must beat the last one kept, for ties go to the earlier position.
                    bar = threshold + 1
                    held = num_selected
                entering = (keys >= bar).to(gl.int32)
                place = held + gl.associative_scan(entering, 0, _add) - 1
                gl.store(keys_of + place, keys, mask=entering > 0)
                gl.store(positions_of + place, position, mask=entering > 0)
                held += gl.sum(entering, 0)
            block_barrier()
            threshold, room = _threshold(keys_of, held, num_selected, CAPACITY, LAYOUT)
            chosen = indices + gl.cast(row, gl.int64) * num_selected
            _keep(keys_of, positions_of, held, threshold, room, chosen, False, TILE, LAYOUT)
            # The next row writes into the same buffer.
            block_barrier()


def select(logits_NS: Tensor, starts_N: Tensor, ends_N: Tensor, num_selected: int) -> tuple[Tensor, Tensor]:
    """(indices_NC, count_N) of the `num_selected` best valid keys of each row of float32 logits on a GPU."""
    capacity = max(1024, triton.next_power_of_2(num_selected + SURE_KEYS))
    if capacity > MOST_KEYS:
        raise ValueError(
            f"backend triton selects at most {MOST_KEYS - SURE_KEYS} keys; got {num_selected}. Use backend torch for more."
        )
    num_rows = logits_NS.shape[0]
    indices_NC = torch.empty(num_rows, num_selected, dtype=torch.int32, device=logits_NS.device)
    count_N = torch.empty(num_rows, dtype=torch.int32, device=logits_NS.device)
    for start in range(0, num_rows, ROWS_AT_ONCE):
        rows = slice(start, min(start + ROWS_AT_ONCE, num_rows))
        _select_chunk(logits_NS[rows], starts_N[rows], ends_N[rows], indices_NC[rows], count_N[rows], capacity)
    return indices_NC, count_N


def _select_chunk(
    logits_NS: Tensor, starts_N: Tensor, ends_N: Tensor, indices_NC: Tensor, count_N: Tensor, capacity: int
) -> None:
    """Write the selection of some rows."""
    num_rows, num_keys = logits_NS.shape
    num_selected, device = indices_NC.shape[1], logits_NS.device
    bars = torch.empty(num_rows, dtype=torch.float32, device=device)
    unsure = torch.empty(num_rows, dtype=torch.int32, device=device)
    tallies = torch.empty(num_rows, SEGMENTS, dtype=torch.int32, device=device)
    segment_keys = triton.cdiv(triton.cdiv(num_keys, SEGMENTS), STREAM_KEYS) * STREAM_KEYS
    room = capacity
    keys = torch.empty(num_rows, SEGMENTS * room, dtype=torch.int32, device=device)
    positions = torch.empty_like(keys)
    values = keys.view(torch.float32)
    sample = 2 * capacity if num_keys > 2 * capacity else capacity
    _row_bars[(num_rows,)](
        logits_NS, starts_N, ends_N, bars, num_keys, num_selected, SAMPLE=sample, RUN=8, CAPACITY=capacity, num_warps=8
    )
    _collect[(SEGMENTS, num_rows)](
        logits_NS,
        starts_N,
        ends_N,
        bars,
        tallies,
        values,
        positions,
        num_keys,
        segment_keys,
        TILE=STREAM_KEYS,
        ROOM=room,
        num_warps=1,
    )
    _finish[(num_rows,)](
        starts_N,
        ends_N,
        indices_NC,
        count_N,
        unsure,
        tallies,
        values,
        positions,
        num_selected,
        SEGMENTS=SEGMENTS,
        ROOM=room,
        CAPACITY=capacity,
        WIDTH=triton.next_power_of_2(num_selected),
        num_warps=8,
        maxnreg=64,
    )
    programs = min(num_rows, 4 * torch.cuda.get_device_properties(device).multi_processor_count)
    # The collected keys are used up, so the sure way takes their memory: a program needs `capacity` slots, a row has more.
    _select_sure[(programs,)](
        logits_NS,
        starts_N,
        ends_N,
        indices_NC,
        unsure,
        keys,
        positions,
        num_rows,
        num_keys,
        num_selected,
        TILE=SURE_KEYS,
        CAPACITY=capacity,
        num_warps=4,
    )
