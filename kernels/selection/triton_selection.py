"""Exact top-C selection in one pass over each row (Triton); the contract is `selection.select`'s.

A program streams a row once and keeps what may still win in a buffer, in position order. The bar to enter comes from a sample
of the row and is only a guess: too high a bar starts the row over with none, and a full buffer is cut down to its exact best C, after
which the bar is what the C-th best demands. The buffer holds C and one tile at least, so nothing is ever lost.

Axes: N query rows, S key positions, C selected keys.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.gpu.loading import interpreting
from samepath.kernels.selection.cuda_selection import select as select_by_cuda


@triton.jit
def ordered_keys(values, position, start, end):
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
    keys = ordered_keys(tl.load(logits_row + position, mask=position < end, other=0.0), position, start, end)
    share = num_selected * (SAMPLE * 1.0 / length)
    # Four standard deviations above the expected number of winners in the sample.
    rank = (share + 4.0 * tl.sqrt(share) + 4.0).to(tl.int32)
    return tl.maximum(_ranked_key(keys, rank), -2147483647)


@triton.jit
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
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    CAPACITY: tl.constexpr,
    SAMPLE: tl.constexpr,
    RUN: tl.constexpr,
):
    places = tl.arange(0, WIDTH)
    zero = tl.full((), 0, tl.int64)
    keys_of = buffer_keys + (zero + tl.program_id(0)) * CAPACITY
    positions_of = buffer_positions + (zero + tl.program_id(0)) * CAPACITY
    for row in range(tl.program_id(0), num_rows, tl.num_programs(0)):
        start = tl.load(starts + row).to(tl.int32)
        end = tl.load(ends + row).to(tl.int32)
        wanted = tl.maximum(tl.minimum(end - start, num_selected), 0)
        tl.store(counts + row, wanted)
        chosen = indices + (zero + row) * num_selected
        if end - start <= num_selected:
            tl.store(chosen + places, tl.where(places < wanted, start + places, -1), mask=places < num_selected)
        else:
            logits_row = logits + (zero + row) * num_keys
            bar = tl.full((), -2147483647, tl.int32)
            if end - start >= 4 * SAMPLE:
                bar = _sampled_bar(logits_row, start, end, num_selected, SAMPLE, RUN)
            held = 0
            while held < wanted:
                held = 0
                for first in range(start // TILE * TILE, end, TILE):
                    position = first + tl.arange(0, TILE)
                    values = tl.load(logits_row + position, mask=position < num_keys, other=0.0)
                    if held > CAPACITY - TILE:
                        tl.debug_barrier()
                        threshold, room = _threshold(keys_of, held, wanted, CAPACITY)
                        _keep(keys_of, positions_of, held, threshold, room, keys_of, positions_of, True, TILE)
                        tl.debug_barrier()
                        # Whoever comes later must beat the last one kept, for ties go to the earlier position.
                        bar = threshold + 1
                        held = wanted
                    keys = ordered_keys(values, position, start, end)
                    entering = (keys >= bar).to(tl.int32)
                    place = held + tl.cumsum(entering, 0) - 1
                    tl.store(keys_of + place, keys, mask=entering > 0)
                    tl.store(positions_of + place, position, mask=entering > 0)
                    held += tl.sum(entering)
                if held < wanted:
                    bar = tl.full((), -2147483647, tl.int32)
            tl.debug_barrier()
            threshold, room = _threshold(keys_of, held, wanted, CAPACITY)
            _keep(keys_of, positions_of, held, threshold, room, keys_of, chosen, False, TILE)
            # The next row writes into the same buffer.
            tl.debug_barrier()


def select(
    logits_NS: Tensor,
    starts_N: Tensor,
    ends_N: Tensor,
    num_selected: int,
    *,
    tile: int | None = None,
) -> tuple[Tensor, Tensor]:
    """(indices_NC, count_N) of the `num_selected` best valid keys of each row; float32 only.

    `tile` changes the way, never the result. Raises ValueError on float64 logits.
    """
    if logits_NS.dtype != torch.float32:
        raise ValueError(
            f"backend triton selects on float32 logits; got {logits_NS.dtype}. Use backend torch for those."
        )
    num_rows, num_keys = logits_NS.shape
    indices_NC = torch.empty(num_rows, num_selected, dtype=torch.int32, device=logits_NS.device)
    count_N = torch.empty(num_rows, dtype=torch.int32, device=logits_NS.device)
    if num_rows == 0:
        return indices_NC, count_N
    if not interpreting():
        # Triton has no memory that threads may share at will, which a fast selection lives on.
        return select_by_cuda(logits_NS.contiguous(), starts_N, ends_N, num_selected)
    tile = tile or (2048 if num_keys > 512 else 64)
    capacity = triton.next_power_of_2(num_selected + tile + 1)
    buffers = torch.empty(2, num_rows, capacity, dtype=torch.int32, device=logits_NS.device)
    _select_rows[(num_rows,)](
        logits_NS.contiguous(),
        starts_N.contiguous(),
        ends_N.contiguous(),
        indices_NC,
        count_N,
        buffers[0],
        buffers[1],
        num_rows,
        num_keys,
        num_selected,
        WIDTH=triton.next_power_of_2(num_selected),
        TILE=tile,
        CAPACITY=capacity,
        SAMPLE=min(4096, tile),
        RUN=8,
    )
    return indices_NC, count_N
