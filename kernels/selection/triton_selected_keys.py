"""What follows a selection, in one kernel each (Triton): integers, so the results are those of the separate operations.

Axes: N rows, C selected keys, B sequences of a window, S their positions.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _fingerprint(positions, counts, fingerprints, num_selected, SLOTS: tl.constexpr):
    """Wrapped sum of the SplitMix64 hashes of a row's positions."""
    row = tl.program_id(0).to(tl.int64)
    count = tl.load(counts + row)
    total = tl.zeros((SLOTS,), tl.int64)
    for first in range(0, count, SLOTS):
        slot = first + tl.arange(0, SLOTS)
        mixed = tl.load(positions + row * num_selected + slot, mask=slot < count, other=0).to(tl.int64)
        mixed = mixed * -7046029254386353131 - 7046029254386353131
        mixed = (mixed ^ ((mixed >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
        mixed = (mixed ^ ((mixed >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
        total += tl.where(slot < count, mixed ^ ((mixed >> 31) & 0x1FFFFFFFF), 0)
    tl.store(fingerprints + row, tl.sum(total, 0))


def selection_fingerprint(positions_NC: Tensor, count_N: Tensor) -> Tensor:
    """int64 [N] as `selection.selection_fingerprint` describes."""
    num_rows, num_selected = positions_NC.shape
    fingerprints_N = torch.empty(num_rows, dtype=torch.int64, device=positions_NC.device)
    slots = min(512, triton.next_power_of_2(num_selected))
    if num_rows:
        _fingerprint[(num_rows,)](
            positions_NC.contiguous(), count_N.contiguous(), fingerprints_N, num_selected, SLOTS=slots, num_warps=1
        )
    return fingerprints_N


@triton.jit
def _key_rows(keys, positions, rows, num_keys, num_queries, num_selected, SLOTS: tl.constexpr):
    """Key-store row of each selected position of a query's own sequence; −1 stays."""
    query = tl.program_id(0).to(tl.int64)
    slot = tl.program_id(1) * SLOTS + tl.arange(0, SLOTS)
    position = tl.load(positions + query * num_selected + slot, mask=slot < num_selected, other=-1)
    row = tl.load(keys + (query // num_queries) * num_keys + position, mask=position >= 0, other=-1)
    tl.store(rows + query * num_selected + slot, row.to(tl.int32), mask=slot < num_selected)


def key_rows(keys_BS: Tensor, positions_NC: Tensor) -> Tensor:
    """int32 [N, C] as `selection.key_rows` describes."""
    num_rows, num_selected = positions_NC.shape
    rows_NC = torch.empty(num_rows, num_selected, dtype=torch.int32, device=positions_NC.device)
    slots = min(1024, triton.next_power_of_2(num_selected))
    if num_rows:
        _key_rows[(num_rows, triton.cdiv(num_selected, slots))](
            keys_BS.contiguous(),
            positions_NC.contiguous(),
            rows_NC,
            keys_BS.shape[1],
            num_rows // keys_BS.shape[0],
            num_selected,
            SLOTS=slots,
            num_warps=1 if slots <= 128 else 4,
        )
    return rows_NC
