"""Σ dO·O of each row and head (Triton), which every backward of attention subtracts: the softmax's share in the gradient of a score.

Axes: N query rows, H heads, V value width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _row_deltas(out, grad_out, delta, num_rows, width, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """Σ dO·O of each row and head."""
    row = (tl.full((), 0, tl.int64) + tl.program_id(0)) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDTH)
    place = row[:, None] * width + channel[None, :]
    keep = (row < num_rows)[:, None] & (channel < width)[None, :]
    product = tl.load(out + place, mask=keep, other=0.0).to(tl.float32)
    product *= tl.load(grad_out + place, mask=keep, other=0.0).to(tl.float32)
    tl.store(delta + row, tl.sum(product, 1), mask=row < num_rows)


def row_deltas(out_NHV: Tensor, grad_out_NHV: Tensor) -> Tensor:
    """float32 Σ dO·O [N, H]."""
    width = out_NHV.shape[2]
    delta_NH = torch.empty(out_NHV.shape[:2], dtype=torch.float32, device=out_NHV.device)
    rows = 4
    _row_deltas[(triton.cdiv(delta_NH.numel(), rows),)](
        out_NHV, grad_out_NHV, delta_NH, delta_NH.numel(), width, WIDTH=triton.next_power_of_2(width), ROWS=rows
    )
    return delta_NH
