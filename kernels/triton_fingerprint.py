"""Fingerprints of selections in one kernel (Triton): integers, so the bits are those of the separate operations.

Axes: N rows, C selected keys.
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
