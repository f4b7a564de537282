"""The selection of `triton_selection` with layouts written out (Gluon), for NVIDIA GPUs: the same way, the same result.

A thread holds neighbouring keys, so the running number of keys that enter the buffer is one scan over threads a tile, and the next tile is on
its way meanwhile.

Axes: N query rows, S key positions, C selected keys.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

LOWEST = gl.constexpr(-2147483648)
"""Key of a position out of bounds; every valid key is above."""


MOST_KEYS = 32768
"""Largest buffer: two counts share one 32-bit sum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """Shape of the programs; changes the speed, never the result."""

    keys: int = 1024
    """Keys read at once, a power of two."""
    num_warps: int = 4
    """Warps a program."""
    max_registers: int = 128
    """Registers a thread at most."""
    sample: int = 4096
    """Keys of a row that give its bar."""
    capacity: int = 4096
    """Keys the buffer holds at least, a power of two up to 32768; more are taken if C and a tile need them."""


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
def _sampled_bar(row, start, end, num_selected, SAMPLE: gl.constexpr, RUN: gl.constexpr, LAYOUT: gl.constexpr):
    """A key that a few more than C keys of the row are expected to reach, from runs spread evenly over it."""
    offsets = gl.arange(0, SAMPLE, LAYOUT)
    length = end - start
    position = start + (offsets // RUN) * (length // (SAMPLE // RUN)) + offsets % RUN
    keys = _ordered_keys(gl.load(row + position, mask=position < end, other=0.0), position, start, end)
    share = num_selected * (SAMPLE * 1.0 / length)
    # Three standard deviations above the expected number of winners in the sample.
    rank = (share + 3.0 * gl.sqrt(share) + 2.0).to(gl.int32)
    # The upper half of the key is a bfloat16: fine enough for a guess, and half the rounds.
    return gl.maximum(_ranked_key(keys >> 16, rank) << 16, LOWEST + 1)


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
        gl.thread_barrier()
        if IN_PLACE:
            gl.store(keys_of + place, keys, mask=kept)
        gl.store(positions_to + place, positions, mask=kept)
        num_kept += gl.sum(taken, 0)
        num_equal += gl.sum(equal, 0)


@gluon.jit
def _select_rows(
    logits,
    starts,
    ends,
    indices,
    counts,
    buffer_keys,
    buffer_positions,
    num_rows,
    num_keys,
    num_selected,
    WIDTH: gl.constexpr,
    TILE: gl.constexpr,
    CAPACITY: gl.constexpr,
    SAMPLE: gl.constexpr,
    RUN: gl.constexpr,
):
    WARPS: gl.constexpr = gl.num_warps()
    RUNS: gl.constexpr = gl.BlockedLayout([TILE // (32 * WARPS)], [32], [WARPS], [0])
    SINGLE: gl.constexpr = gl.BlockedLayout([1], [32], [WARPS], [0])
    FOURS: gl.constexpr = gl.BlockedLayout([4], [32], [WARPS], [0])
    places = gl.arange(0, WIDTH, SINGLE)
    keys_of = buffer_keys + gl.program_id(0).to(gl.int64) * CAPACITY
    positions_of = buffer_positions + gl.program_id(0).to(gl.int64) * CAPACITY
    offsets = gl.arange(0, TILE, RUNS)
    for row in range(gl.program_id(0), num_rows, gl.num_programs(0)):
        start = gl.load(starts + row).to(gl.int32)
        end = gl.load(ends + row).to(gl.int32)
        wanted = gl.maximum(gl.minimum(end - start, num_selected), 0)
        gl.store(counts + row, wanted)
        chosen = indices + row.to(gl.int64) * num_selected  # type: ignore[attr-defined]
        if end - start <= num_selected:
            gl.store(chosen + places, gl.where(places < wanted, start + places, -1), mask=places < num_selected)
        else:
            logits_row = logits + row.to(gl.int64) * num_keys  # type: ignore[attr-defined]
            bar = LOWEST + 1
            if end - start > CAPACITY:
                bar = _sampled_bar(logits_row, start, end, num_selected, SAMPLE, RUN, SINGLE)
            held = 0
            while held < wanted:
                held = 0
                position = start // TILE * TILE + offsets
                values = gl.load(logits_row + position, mask=position < num_keys, other=0.0)
                for first in range(start // TILE * TILE, end, TILE):
                    position = first + offsets
                    keys = _ordered_keys(values, position, start, end)
                    following = position + TILE
                    values = gl.load(logits_row + following, mask=following < num_keys, other=0.0)
                    if held > CAPACITY - TILE:
                        gl.thread_barrier()
                        threshold, room = _threshold(keys_of, held, wanted, CAPACITY, FOURS)
                        _keep(keys_of, positions_of, held, threshold, room, positions_of, True, TILE, RUNS)
                        gl.thread_barrier()
                        # Whoever comes later must beat the last one kept, for ties go to the earlier position.
                        bar = threshold + 1
                        held = wanted
                    entering = (keys >= bar).to(gl.int32)
                    place = held + gl.associative_scan(entering, 0, _add) - 1
                    gl.store(keys_of + place, keys, mask=entering > 0)
                    gl.store(positions_of + place, position, mask=entering > 0)
                    held += gl.sum(entering, 0)
                if held < wanted:
                    bar = gl.to_tensor(LOWEST + 1)
            gl.thread_barrier()
            threshold, room = _threshold(keys_of, held, wanted, CAPACITY, FOURS)
            _keep(keys_of, positions_of, held, threshold, room, chosen, False, TILE, RUNS)
            # The next row writes into the same buffer.
            gl.thread_barrier()


def select(
    logits_NS: Tensor, starts_N: Tensor, ends_N: Tensor, num_selected: int, tiles: Tiles | None = None
) -> tuple[Tensor, Tensor]:
    """(indices_NC, count_N) of the `num_selected` best valid keys of each row of float32 logits on a GPU."""
    num_rows, num_keys = logits_NS.shape
    device = logits_NS.device
    tiles = tiles or Tiles()
    indices_NC = torch.empty(num_rows, num_selected, dtype=torch.int32, device=device)
    count_N = torch.empty(num_rows, dtype=torch.int32, device=device)
    capacity = max(tiles.capacity, triton.next_power_of_2(num_selected + tiles.keys))
    if capacity > MOST_KEYS:
        raise ValueError(
            f"backend triton selects at most {MOST_KEYS - tiles.keys} keys; got {num_selected}. Use backend torch for more."
        )
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    programs = min(num_rows, 8 * processors)
    if not num_rows:
        return indices_NC, count_N
    buffers = torch.empty(2, programs, capacity, dtype=torch.int32, device=device)
    _select_rows[(programs,)](
        logits_NS,
        starts_N,
        ends_N,
        indices_NC,
        count_N,
        buffers[0],
        buffers[1],
        num_rows,
        num_keys,
        num_selected,
        WIDTH=triton.next_power_of_2(num_selected),
        TILE=tiles.keys,
        CAPACITY=capacity,
        SAMPLE=min(tiles.sample, capacity),
        RUN=8,
        num_warps=tiles.num_warps,
        maxnreg=tiles.max_registers,
    )
    return indices_NC, count_N
