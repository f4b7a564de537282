"""Exact top-C selection in one pass over each row (Triton); the contract is `selection.select`'s.

Fast way, for almost every row: a sample of the row gives a bar that a few more than C keys should reach; those that do are collected in no
particular order; the C best of them, ties to the lower position, set bits in a bitmap, which is read back in ascending order.

Sure way, for rows whose bar let in too few or more than the buffer holds (clustered values): the row is streamed in order; a full buffer is cut
down to its exact best C, after which a key enters only if it beats the C-th best. The buffer holds C and one tile, so nothing is ever lost.

Axes: N query rows, S key positions, C selected keys.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.backend import interpreting

PROGRAMS_PER_PROCESSOR = 8
"""Rows in flight on each multiprocessor at most; more share its memory bandwidth and hide each other's searches."""


@triton.jit
def _ordered_keys(values, position, start, end):
    """int32 keys in the order of the values: NaN is −inf, −0 is +0, and positions out of bounds come below everything."""
    values = tl.where(values != values, float("-inf"), values) + 0.0
    bits = values.to(tl.int32, bitcast=True)
    keys = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return tl.where((position >= start) & (position < end), keys, -2147483648)


@triton.jit
def _ranked_key(keys, rank):
    """Largest T with at least `rank` keys ≥ T (the lowest key if there are not so many), by bisection."""
    low = tl.min(keys).to(tl.int64)
    high = tl.max(keys).to(tl.int64)
    while low < high:
        middle = (low + high + 1) >> 1
        enough = tl.sum((keys >= middle.to(tl.int32)).to(tl.int32)) >= rank
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    return low.to(tl.int32)


@triton.jit
def _threshold(keys_of, held, wanted, CAPACITY: tl.constexpr):
    """(smallest key among the `wanted` best of the buffer, how many of its equals are among them)."""
    slots = tl.arange(0, CAPACITY)
    keys = tl.load(keys_of + slots, mask=slots < held, other=-2147483648)
    threshold = _ranked_key(keys, wanted)
    return threshold, wanted - tl.sum((keys > threshold).to(tl.int32))


@triton.jit
def _keep(keys_of, positions_of, held, threshold, room, keys_to, positions_to, KEYS: tl.constexpr, TILE: tl.constexpr):
    """Copy the best of the buffer, in order, ties to the earlier; the destination may be the buffer itself."""
    num_kept = 0
    num_equal = 0
    for first in range(0, held, TILE):
        slots = first + tl.arange(0, TILE)
        keys = tl.load(keys_of + slots, mask=slots < held, other=-2147483648)
        positions = tl.load(positions_of + slots, mask=slots < held, other=0)
        equal = ((keys == threshold) & (slots < held)).to(tl.int32)
        kept = (keys > threshold) | ((equal > 0) & (num_equal + tl.cumsum(equal, 0) <= room))
        place = num_kept + tl.cumsum(kept.to(tl.int32), 0) - 1
        # A place is never beyond the slot it came from, but another thread may still have to read that slot.
        tl.debug_barrier()
        if KEYS:
            tl.store(keys_to + place, keys, mask=kept)
        tl.store(positions_to + place, positions, mask=kept)
        num_kept += tl.sum(kept.to(tl.int32))
        num_equal += tl.sum(equal)


@triton.jit
def _sampled_bar(logits_row, start, end, num_selected, SAMPLE: tl.constexpr, RUN: tl.constexpr):
    """A key that a few more than C keys of the row are expected to reach, from runs spread evenly over it."""
    offsets = tl.arange(0, SAMPLE)
    length = end - start
    position = start + (offsets // RUN) * (length // (SAMPLE // RUN)) + offsets % RUN
    keys = _ordered_keys(tl.load(logits_row + position, mask=position < end, other=0.0), position, start, end)
    share = num_selected * (SAMPLE * 1.0 / length)
    # Four standard deviations above the expected number of winners in the sample.
    rank = (share + 4.0 * tl.sqrt(share) + 4.0).to(tl.int32)
    return tl.maximum(_ranked_key(keys, rank), -2147483647)


@triton.jit
def _bits_set(words):
    """How many bits of each uint32 are 1."""
    words = words - ((words >> 1) & 0x55555555)
    words = (words & 0x33333333) + ((words >> 2) & 0x33333333)
    words = (words + (words >> 4)) & 0x0F0F0F0F
    return ((words * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def _emit_ascending(bitmap, start, end, chosen, WORDS: tl.constexpr):
    """Write the positions of the set bits, lowest first."""
    written = 0
    for first in range(start // 32, (end + 31) // 32, WORDS):
        index = first + tl.arange(0, WORDS)
        # Atomics write to L2, past this multiprocessor's L1.
        words = tl.load(bitmap + index, mask=index * 32 < end, other=0, cache_modifier=".cg").to(tl.uint32, bitcast=True)
        found = _bits_set(words)
        place = written + tl.cumsum(found, 0) - found
        for bit in range(32):
            on = (words & 1).to(tl.int32)
            tl.store(chosen + place, index * 32 + bit, mask=on > 0)
            place += on
            words = words >> 1
        written += tl.sum(found)


@triton.jit
def _mark_best(keys_of, positions_of, held, wanted, end, bitmap, CAPACITY: tl.constexpr):
    """Set the bits of the `wanted` best of the buffer's keys, ties to the lower position."""
    slots = tl.arange(0, CAPACITY)
    keys = tl.load(keys_of + slots, mask=slots < held, other=-2147483648)
    positions = tl.load(positions_of + slots, mask=slots < held, other=0)
    threshold = _ranked_key(keys, wanted)
    equal = keys == threshold
    room = wanted - tl.sum((keys > threshold).to(tl.int32))
    last = end
    if tl.sum(equal.to(tl.int32)) > room:
        low = 0
        while low < last:
            middle = (low + last) // 2
            enough = tl.sum((equal & (positions <= middle)).to(tl.int32)) >= room
            last = tl.where(enough, middle, last)
            low = tl.where(enough, low, middle + 1)
    kept = (keys > threshold) | (equal & (positions <= last))
    bit = (tl.full((CAPACITY,), 1, tl.int32) << (positions % 32)).to(tl.int32)
    tl.atomic_or(bitmap + positions // 32, bit, mask=kept, sem="relaxed")


@triton.jit
def _select_fast(
    logits,
    starts,
    ends,
    indices,
    counts,
    tallies,
    unsure,
    buffer_keys,
    buffer_positions,
    bitmaps,
    num_rows,
    num_keys,
    num_selected,
    num_words,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    CAPACITY: tl.constexpr,
    SAMPLE: tl.constexpr,
    RUN: tl.constexpr,
    WORDS: tl.constexpr,
):
    places = tl.arange(0, WIDTH)
    zero = tl.full((), 0, tl.int64)
    program = zero + tl.program_id(0)
    keys_of = buffer_keys + program * CAPACITY
    positions_of = buffer_positions + program * CAPACITY
    bitmap = bitmaps + program * num_words
    for row in range(tl.program_id(0), num_rows, tl.num_programs(0)):
        start = tl.load(starts + row).to(tl.int32)
        end = tl.load(ends + row).to(tl.int32)
        wanted = tl.maximum(tl.minimum(end - start, num_selected), 0)
        tl.store(counts + row, wanted)
        chosen = indices + (zero + row) * num_selected
        if end - start <= num_selected:
            tl.store(chosen + places, tl.where(places < wanted, start + places, -1), mask=places < num_selected)
        else:
            for first in range(start // 32, (end + 31) // 32, WORDS):
                index = first + tl.arange(0, WORDS)
                tl.store(bitmap + index, tl.zeros((WORDS,), tl.int32), mask=index * 32 < end)
            logits_row = logits + (zero + row) * num_keys
            bar = tl.full((), -2147483647, tl.int32)
            if end - start > CAPACITY:
                bar = _sampled_bar(logits_row, start, end, num_selected, SAMPLE, RUN)
            for first in range(start // TILE * TILE, end, TILE):
                position = first + tl.arange(0, TILE)
                values = tl.load(logits_row + position, mask=position < num_keys, other=0.0)
                keys = _ordered_keys(values, position, start, end)
                entering = keys >= bar
                one = tl.full((TILE,), 1, tl.int32)
                slot = tl.atomic_add(tallies + row + tl.zeros((TILE,), tl.int32), one, mask=entering, sem="relaxed")
                fits = entering & (slot < CAPACITY)
                tl.store(keys_of + slot, keys, mask=fits)
                tl.store(positions_of + slot, position, mask=fits)
            tl.debug_barrier()
            held = tl.load(tallies + row, cache_modifier=".cg")
            sure = (held >= wanted) & (held <= CAPACITY)
            tl.store(unsure + row, tl.where(sure, 0, 1))
            if sure:
                _mark_best(keys_of, positions_of, held, wanted, end, bitmap, CAPACITY)
                tl.debug_barrier()
                _emit_ascending(bitmap, start, end, chosen, WORDS)
            # The next row writes into the same buffers.
            tl.debug_barrier()


@triton.jit
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
    TILE: tl.constexpr,
    CAPACITY: tl.constexpr,
):
    zero = tl.full((), 0, tl.int64)
    keys_of = buffer_keys + (zero + tl.program_id(0)) * CAPACITY
    positions_of = buffer_positions + (zero + tl.program_id(0)) * CAPACITY
    for row in range(tl.program_id(0), num_rows, tl.num_programs(0)):
        if tl.load(unsure + row) > 0:
            start = tl.load(starts + row).to(tl.int32)
            end = tl.load(ends + row).to(tl.int32)
            logits_row = logits + (zero + row) * num_keys
            bar = tl.full((), -2147483647, tl.int32)
            held = 0
            for first in range(start // TILE * TILE, end, TILE):
                position = first + tl.arange(0, TILE)
                values = tl.load(logits_row + position, mask=position < num_keys, other=0.0)
                if held > CAPACITY - TILE:
                    tl.debug_barrier()
                    threshold, room = _threshold(keys_of, held, num_selected, CAPACITY)
                    _keep(keys_of, positions_of, held, threshold, room, keys_of, positions_of, True, TILE)
                    tl.debug_barrier()
                    # Whoever comes later must beat the last one kept, for ties go to the earlier position.
                    bar = threshold + 1
                    held = num_selected
                keys = _ordered_keys(values, position, start, end)
                entering = (keys >= bar).to(tl.int32)
                place = held + tl.cumsum(entering, 0) - 1
                tl.store(keys_of + place, keys, mask=entering > 0)
                tl.store(positions_of + place, position, mask=entering > 0)
                held += tl.sum(entering)
            tl.debug_barrier()
            threshold, room = _threshold(keys_of, held, num_selected, CAPACITY)
            chosen = indices + (zero + row) * num_selected
            _keep(keys_of, positions_of, held, threshold, room, keys_of, chosen, False, TILE)
            # The next row writes into the same buffer.
            tl.debug_barrier()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """Shape of the fast way's programs; changes the speed, never the result."""

    keys: int = 8192
    """Keys read at once."""
    num_warps: int = 8
    """Warps a program."""
    max_registers: int = 128
    """Registers a thread at most."""
    sample: int = 4096
    """Keys of a row that give its bar."""
    sure_keys: int = 2048
    """Keys read at once in the sure way."""


def select(
    logits_NS: Tensor, starts_N: Tensor, ends_N: Tensor, num_selected: int, tiles: Tiles | None = None
) -> tuple[Tensor, Tensor]:
    """(indices_NC, count_N) of the `num_selected` best valid keys of each row; raise ValueError on float64 logits."""
    if logits_NS.dtype != torch.float32:
        raise ValueError(f"backend triton selects on float32 logits; got {logits_NS.dtype}. Use backend torch for those.")
    num_rows, num_keys = logits_NS.shape
    device = logits_NS.device
    indices_NC = torch.empty(num_rows, num_selected, dtype=torch.int32, device=device)
    count_N = torch.empty(num_rows, dtype=torch.int32, device=device)
    if num_rows == 0:
        return indices_NC, count_N
    tiles = tiles or (Tiles(keys=64) if num_keys <= 1024 else Tiles())
    sure_tile = min(tiles.keys, tiles.sure_keys)
    capacity = triton.next_power_of_2(num_selected + sure_tile + 1)
    programs = min(num_rows, 4 if interpreting() else PROGRAMS_PER_PROCESSOR * _num_processors(device))
    num_words = triton.cdiv(num_keys, 32)
    buffers = torch.empty(2, programs, capacity, dtype=torch.int32, device=device)
    bitmaps = torch.empty(programs, num_words, dtype=torch.int32, device=device)
    tallies, unsure = torch.zeros(2, num_rows, dtype=torch.int32, device=device)
    bounds = (logits_NS.contiguous(), starts_N.contiguous(), ends_N.contiguous())
    _select_fast[(programs,)](
        *bounds,
        indices_NC,
        count_N,
        tallies,
        unsure,
        buffers[0],
        buffers[1],
        bitmaps,
        num_rows,
        num_keys,
        num_selected,
        num_words,
        WIDTH=triton.next_power_of_2(num_selected),
        TILE=tiles.keys,
        CAPACITY=capacity,
        SAMPLE=min(tiles.sample, capacity),
        RUN=8,
        WORDS=min(4096, triton.next_power_of_2(num_words)),
        num_warps=tiles.num_warps,
        maxnreg=tiles.max_registers,
    )
    _select_sure[(programs,)](
        *bounds,
        indices_NC,
        unsure,
        buffers[0],
        buffers[1],
        num_rows,
        num_keys,
        num_selected,
        TILE=sure_tile,
        CAPACITY=capacity,
        num_warps=4,
    )
    return indices_NC, count_N


def _num_processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
